"""What is decided before a run starts, and what its driver says, as pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, FailureConfig, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.cluster.blackboard import Blackboard
from raymat.cluster.controller.failure_policy import (
    RaymatFailurePolicy,
    cause_first,
    is_fatal,
    raymat_error,
    somebody_died,
)
from raymat.cluster.driver.cluster_setup import resolve_auto, worker_resources
from raymat.cluster.driver.launch import RunResult, absolute_paths, summary
from raymat.config.run import RunConfig
from raymat.distributed.world import World
from raymat.errors import CheckpointError, ConfigError, DataError, RunGoneError, StorageError
from raymat.storage.store import Store
from raymat.train.observability.checkpoint_events import CheckpointCommitted, CheckpointSkipped
from raymat.train.run.open_run import open_run
from tests.support.kit import tiny


def settled(
    begun: RunConfig | None, resources: dict[str, float], **options: Any
) -> tuple[Any, Any]:
    config = tiny("base", "/nowhere", "run", **({"device": "auto"} | options))
    found = resolve_auto(config, begun, lambda: resources)
    return found.workers.device, found.optim.precision


def test_auto_is_decided_by_what_the_cluster_has() -> None:
    assert settled(None, {"CPU": 8.0}) == ("cpu", "fp32")
    assert settled(None, {"CPU": 8.0, "GPU": 1.0}) == ("cuda", "fp16")
    assert settled(None, {"CPU": 8.0, "GPU": 1.0}, precision="bf16") == ("cuda", "bf16")


def test_auto_without_any_worker_node_is_refused_with_the_fix() -> None:
    with pytest.raises(ConfigError, match="say --device cuda or --device cpu"):
        settled(None, {"CPU": 0.0})


def test_a_resumed_run_stays_on_what_it_was_begun_with() -> None:
    begun = tiny("base", "/nowhere", "run", device="cpu", precision="bf16")
    assert settled(begun, {"CPU": 8.0, "GPU": 4.0}) == ("cpu", "bf16")


def test_fp16_on_the_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="use bf16 or fp32 on the CPU"):
        settled(None, {"CPU": 8.0}, precision="fp16")


def test_half_of_a_cpu_cluster_is_left_to_decode_with() -> None:
    two = tiny("base", "/nowhere", "run", workers="2")
    assert worker_resources(two, {"CPU": 2.0}) == {"CPU": 0.5}
    assert worker_resources(two, {"CPU": 64.0}) == {"CPU": 1.0}


def test_the_driver_tells_of_a_skipped_checkpoint_and_not_of_every_commit() -> None:
    skip = CheckpointSkipped(checkpoint="step-000000007-a001", step=7, reason="torn: no manifest")
    assert skip.line == "skipped step-000000007-a001: torn: no manifest"
    commit = CheckpointCommitted(
        checkpoint="step-000000007-a001", step=7, seconds=0.5, stall=0.1, bytes=9
    )
    assert commit.line is None


@pytest.fixture
def board(cluster: None) -> Iterator[Blackboard]:
    made = Blackboard.start()
    yield made
    made.stop()


def test_the_error_that_a_worker_raised_is_found_behind_those_it_caused() -> None:
    error = WorkerGroupError("failed", {0: RuntimeError("gloo"), 1: DataError("no such file")})
    assert str(raymat_error(error)) == "no such file"
    assert is_fatal(error)
    assert not somebody_died(error)


def test_a_worker_that_died_and_storage_that_failed_are_tried_again() -> None:
    died = WorkerGroupError("failed", {0: RuntimeError("gloo"), 1: ActorDiedError()})
    assert somebody_died(died)
    assert not is_fatal(died)
    assert not is_fatal(WorkerGroupError("failed", {0: StorageError("time-out")}))
    assert is_fatal(WorkerGroupError("failed", {0: CheckpointError("none verifies")}))
    assert is_fatal(WorkerGroupError("failed", {0: RunGoneError("not mounted")}))


def test_who_died_is_named_before_those_who_lost_the_connection_for_that() -> None:
    lost, frozen = RuntimeError("peer gone\nat pair.cc"), WorkerHealthCheckTimeoutError("hanging")
    found = cause_first({0: lost, 2: frozen, 10: ActorDiedError(), 3: lost})
    assert list(found.items()) == [
        ("2", "WorkerHealthCheckTimeoutError: hanging"),
        ("10", "ActorDiedError: The actor died unexpectedly before finishing this task."),
        ("0", "RuntimeError: peer gone"),
        ("3", "RuntimeError: peer gone"),
    ]


def test_a_run_is_complete_only_by_a_last_checkpoint_that_verifies(tmp_path: Path) -> None:
    config = tiny("base", tmp_path, "run", steps=7, device="cpu", precision="fp32")
    store = Store.open(config.storage, config.name)
    run = open_run(config, store)
    assert not run.complete
    for step in (6, 7):
        snapshot = Snapshot(step, {"weight": torch.arange(100.0)}, {"format": 1, "step": step})
        write_share(store, CheckpointId(step, 1), snapshot, World(), run.run_id)
    assert open_run(config, store).complete
    damage(tmp_path / "run/checkpoints/step-000000007-a001/shard-00000-of-00001.safetensors")
    assert not open_run(config, store).complete


def test_a_run_that_stopped_early_is_complete_until_it_is_given_more_patience(
    tmp_path: Path,
) -> None:
    options = {"steps": 70, "device": "cpu", "precision": "fp32", "early_stop_patience": 16}
    config = tiny("base", tmp_path, "run", **options)
    store = Store.open(config.storage, config.name)
    run = open_run(config, store)
    found = [{"step": 2, "loss": 1.0}, {"step": 3, "loss": 1.5}, {"step": 4, "loss": 1.5}]
    for step, validations in ((3, found[:2]), (4, found)):
        extra = {"format": 1, "step": step, "validations": validations}
        snapshot = Snapshot(step, {"weight": torch.arange(100.0)}, extra)
        write_share(store, CheckpointId(step, 1), snapshot, World(), run.run_id)
        # Of 8 examples a step: 8 after the best, then 16.
        assert open_run(config, store).complete == (step == 4)
    reason = "loss has not fallen for 16 examples (best 1 at 16)"
    assert open_run(config, store).status.stopped == reason
    assert summary(RunResult(store.url, 4, 70, True, reason), 1.0) == (
        f"{store.url} is complete: stopped early at step 4 of 70, since {reason}, nothing to do"
    )
    for patience in (0, 24):
        other = open_run(
            tiny("base", tmp_path, "run", **options | {"early_stop_patience": patience}), store
        )
        assert not other.complete
    damage(tmp_path / "run/checkpoints/step-000000004-a001/shard-00000-of-00001.safetensors")
    assert not open_run(config, store).complete


def damage(shard: Path) -> None:
    """Change one byte."""
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)


def test_a_killed_worker_that_a_health_check_found_has_died(board: Blackboard) -> None:
    check = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
    error = WorkerGroupError("failed", {0: check, 1: RuntimeError("gloo, port 1")})
    assert somebody_died(error)
    policy = RaymatFailurePolicy(FailureConfig(max_failures=100), lambda: 0, board)
    decisions = [policy.make_decision(error) for _ in range(9)]
    assert decisions == [FailureDecision.RETRY] * 9
    assert policy.make_decision(error) is FailureDecision.RAISE
    assert board.verdict() == (
        "workers died or were killed (10 times and nothing was committed yet); "
        "the run's events say more"
    )


def test_a_frozen_worker_counts_as_a_dead_one_and_waiting_for_places_as_no_failure(
    board: Blackboard,
) -> None:
    policy = RaymatFailurePolicy(FailureConfig(max_failures=100), lambda: 0, board)
    frozen = WorkerGroupError("failed", {1: WorkerHealthCheckTimeoutError("hanging")})
    assert [policy.make_decision(frozen).name for _ in range(9)] == ["RETRY"] * 9
    waiting = ControllerError(WorkerGroupStartupTimeoutError(2))
    assert [policy.make_decision(waiting).name for _ in range(20)] == ["RETRY"] * 20
    assert policy.make_decision(frozen).name == "RAISE"


def test_workers_that_stand_still_at_the_same_place_three_times_end_the_run(
    board: Blackboard,
) -> None:
    error = WorkerGroupError("failed", {0: RuntimeError("gloo"), 1: ActorDiedError()})
    policy = RaymatFailurePolicy(FailureConfig(max_failures=100), lambda: 7, board)
    decisions = []
    for _ in range(3):
        board.forget_workers()
        board.report_hang("rank 1 stood still waiting for a batch after step 9")
        decisions.append(policy.make_decision(error).name)
    assert decisions == ["RETRY", "RETRY", "RAISE"]
    assert board.verdict() == (
        "rank 1 stood still waiting for a batch after step 9 (3 times since step 7 was committed); "
        "the run's events say more"
    )


def test_the_same_failure_three_times_without_a_commit_ends_the_run(board: Blackboard) -> None:
    steps = iter([0, 0, 7, 7, 7])
    policy = RaymatFailurePolicy(FailureConfig(max_failures=10), lambda: next(steps), board)
    error = WorkerGroupError("failed", {0: ZeroDivisionError("division by zero")})
    decisions = [policy.make_decision(error).name for _ in range(5)]
    assert decisions == ["RETRY", "RETRY", "RETRY", "RETRY", "RAISE"]


def test_relative_paths_mean_the_folder_of_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = absolute_paths(tiny("base", "runs", "run", init="weights.pth"))
    assert config.storage == str(tmp_path / "runs")
    assert config.model.init == str(tmp_path / "weights.pth")
    assert absolute_paths(tiny("base", "s3://bucket/runs", "run")).storage == "s3://bucket/runs"
