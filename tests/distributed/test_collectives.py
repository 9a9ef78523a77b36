"""What rank 0 decides and what any worker fails at is known to all workers."""

from __future__ import annotations

import torch

from raymat.distributed.collectives import Group
from raymat.distributed.world import World
from raymat.errors import CheckpointError, StorageError
from tests.support.workers import in_workers


def raise_storage_error() -> int:
    raise StorageError("away")


def decide(world: World) -> tuple[int, list[int], str]:
    group, asked = Group(world, torch.device("cpu")), list[int]()

    def choose() -> int:
        asked.append(world.rank)
        return 10 + world.rank

    chosen = group.on_lead(choose)
    try:
        group.on_lead(raise_storage_error)
    except StorageError as error:
        return chosen, asked, error.line
    return chosen, asked, "nothing was raised"


def test_rank_0_alone_decides_and_all_workers_get_its_result_or_its_error() -> None:
    assert in_workers(2, decide) == [(10, [0], "away"), (10, [], "away")]


def count_up(world: World) -> tuple[list[float], list[float]]:
    group = Group(world, torch.device("cpu"))
    return group.sums([world.rank, torch.tensor(0.5)]), group.largest([world.rank, -world.rank])


def test_numbers_are_summed_or_the_largest_found_on_all_workers() -> None:
    assert in_workers(3, count_up) == 3 * [([3.0, 1.5], [2.0, 0.0])]
    assert count_up(World()) == ([0.0, 0.5], [0.0, 0.0])


def fail_unequally(world: World) -> tuple[int, str]:
    """Rank 0 finds damage, rank 1 a storage that fails, rank 2 nothing."""
    group = Group(world, torch.device("cpu"))
    number = group.on_all(lambda: world.rank)

    def fail() -> None:
        if world.rank == 0:
            raise CheckpointError("torn")
        if world.rank == 1:
            raise StorageError("away")

    try:
        group.on_all(fail)
    except (CheckpointError, StorageError) as error:
        return number, error.line
    return number, "nothing was raised"


def test_an_error_of_any_worker_is_raised_on_all_a_damaged_checkpoint_last() -> None:
    assert in_workers(3, fail_unequally) == [(0, "away"), (1, "away"), (2, "away")]
