from __future__ import annotations

import itertools
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

from raymat.checkpoint.catalog import Status, newest, scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.retention import RetentionPolicy, plan, prune, remove_abandoned
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.distributed.world import World
from raymat.storage.store import Store, unfinished_files


def _ids(*pairs: tuple[int, int]) -> list[CheckpointId]:
    return [CheckpointId(step, attempt) for step, attempt in pairs]


def _statuses(committed: list[CheckpointId], torn: list[CheckpointId] = []) -> list[Status]:  # noqa: B006
    return [Status(c, "committed") for c in committed] + [Status(c, "torn", "why") for c in torn]


def _kept(statuses: list[Status], policy: RetentionPolicy, **more: Any) -> list[tuple[int, int]]:
    return sorted((c.step, c.attempt) for c in plan(statuses, policy, **more).keep)


TEN = _ids(*[(step, 1) for step in range(10, 101, 10)])


def test_the_newest_stay() -> None:
    assert _kept(_statuses(TEN), RetentionPolicy(keep=3)) == [(80, 1), (90, 1), (100, 1)]
    assert plan(_statuses(TEN), RetentionPolicy(keep=3)).delete == tuple(TEN[:7])
    assert plan(_statuses(TEN), RetentionPolicy(keep=20)).delete == ()


def test_the_best_stay_beside_the_newest() -> None:
    metrics = {c: abs(c.step - 43) for c in TEN}
    assert _kept(_statuses(TEN), RetentionPolicy(keep=1, best="min"), metrics=metrics) == [
        (40, 1),
        (100, 1),
    ]
    two = RetentionPolicy(keep=1, best="min", keep_best=2)
    assert _kept(_statuses(TEN), two, metrics=metrics) == [(40, 1), (50, 1), (100, 1)]
    assert _kept(_statuses(TEN), RetentionPolicy(keep=1, best="max"), metrics=metrics) == [(100, 1)]
    assert plan(_statuses(TEN), two, metrics=metrics).keep[CheckpointId(40, 1)] == "best"


def test_of_equal_metrics_the_earliest_is_best() -> None:
    assert _kept(
        _statuses(TEN), RetentionPolicy(keep=1, best="min"), metrics=dict.fromkeys(TEN, 1.0)
    ) == [
        (10, 1),
        (100, 1),
    ]


def test_not_a_number_is_never_best() -> None:
    metrics = dict.fromkeys(TEN, math.nan) | {TEN[4]: 7.0}
    for best in ("min", "max"):
        policy = RetentionPolicy(keep=1, best=best)  # type: ignore[arg-type]
        assert _kept(_statuses(TEN), policy, metrics=metrics) == [(50, 1), (100, 1)]
        assert _kept(_statuses(TEN), policy, metrics={}) == [(100, 1)]


def test_multiples_of_a_step_stay() -> None:
    assert _kept(_statuses(TEN), RetentionPolicy(keep=1, every=40)) == [(40, 1), (80, 1), (100, 1)]


LOSSES = dict(zip(TEN, [0.9, 0.6, 0.45, 0.5, 0.3, 0.35, 0.3, 0.2, 0.4, 0.6], strict=True))


def test_the_first_at_or_below_each_threshold_stays() -> None:
    policy = RetentionPolicy(keep=1, thresholds=(0.6, 0.5, 0.3, 0.1))
    assert _kept(_statuses(TEN), policy, metrics=LOSSES) == [(20, 1), (30, 1), (50, 1), (100, 1)]
    found = plan(_statuses(TEN), policy, metrics=LOSSES)
    assert found.keep[CheckpointId(20, 1)] == "first at or below 0.6"
    assert _kept(_statuses(TEN), policy) == [(100, 1)]
    # Only what is believed can be the first.
    damaged = _ids((30, 1))
    assert (40, 1) in _kept(_statuses(TEN), policy, metrics=LOSSES, damaged=damaged)


def test_a_metric_that_grows_reaches_thresholds_from_below() -> None:
    policy = RetentionPolicy(keep=1, best="max", thresholds=(0.5, 0.95))
    scores = {c: 1 - loss for c, loss in LOSSES.items()}
    assert _kept(_statuses(TEN), policy, metrics=scores) == [(30, 1), (80, 1), (100, 1)]
    found = plan(_statuses(TEN), policy, metrics=scores)
    assert found.keep[CheckpointId(30, 1)] == "first at or above 0.5"


def test_thresholds_are_reached_once_however_often_it_is_pruned_on_the_way() -> None:
    policy = RetentionPolicy(keep=1, best="min", thresholds=(0.5, 0.3))
    left: list[Status] = []
    for checkpoint in TEN:
        left += _statuses([checkpoint])
        metrics = {c: loss for c, loss in LOSSES.items() if c <= checkpoint}
        kept = plan(left, policy, metrics=metrics).keep
        left = [status for status in left if status.id in kept]
    assert [s.id.step for s in left] == [30, 50, 80, 100]


def test_the_ends_of_epochs_stay() -> None:
    policy = RetentionPolicy(keep=1)
    # Nobody minds an epoch's end that has no checkpoint.
    assert _kept(_statuses(TEN), policy, epoch_ends={30, 45, 60, 100}) == [
        (30, 1),
        (60, 1),
        (100, 1),
    ]


def test_every_reason_to_stay_is_told() -> None:
    policy = RetentionPolicy(keep=2, best="min", every=40, thresholds=(0.2,))
    found = plan(_statuses(TEN), policy, metrics=LOSSES, epoch_ends=[80, 90])
    assert found.keep == {
        CheckpointId(40, 1): "every 40 steps",
        CheckpointId(80, 1): "best, first at or below 0.2, every 40 steps, end of an epoch",
        CheckpointId(90, 1): "end of an epoch, newest",
        CheckpointId(100, 1): "newest",
    }


def test_of_two_attempts_at_a_step_the_newer_counts() -> None:
    statuses = _statuses(_ids((10, 1), (20, 1), (20, 2), (30, 2)))
    assert _kept(statuses, RetentionPolicy(keep=2)) == [(20, 2), (30, 2)]
    metrics = {CheckpointId(20, 1): 0.1, CheckpointId(30, 2): 0.5}
    assert _kept(statuses, RetentionPolicy(keep=1, best="min"), metrics=metrics) == [
        (20, 2),
        (30, 2),
    ]


def test_torn_ones_never_count() -> None:
    statuses = _statuses(TEN[:3], _ids((40, 1), (50, 1), (60, 1)))
    assert _kept(statuses, RetentionPolicy(keep=2), attempt=1) == [
        (20, 1),
        (30, 1),
        (40, 1),
        (50, 1),
        (60, 1),
    ]


def test_torn_ones_go_when_superseded_and_nobody_writes_them_any_more() -> None:
    torn = _ids((15, 1), (25, 2), (35, 1), (36, 2))
    statuses = _statuses(_ids((10, 1), (30, 2)), torn)
    policy = RetentionPolicy(keep=5)
    # Each worker of the living attempt writes in order: step 25 was given up by one of them before step 30 was committed.
    assert plan(statuses, policy, attempt=2).delete == tuple(_ids((15, 1), (25, 2)))
    assert plan(_statuses(_ids((10, 1), (30, 1)), torn), policy, attempt=2).delete == tuple(
        _ids((15, 1))
    )
    assert plan(statuses, policy, attempt=3).delete == tuple(_ids((15, 1), (25, 2)))
    assert plan(statuses, policy, attempt=None).delete == ()
    assert plan(_statuses([], torn), policy, attempt=9).delete == ()


def test_a_writer_from_a_dead_attempt_does_not_prune_the_living() -> None:
    assert plan(_statuses(TEN, _ids((15, 7))), RetentionPolicy(keep=20), attempt=3).delete == ()


def test_what_is_still_read_stays() -> None:
    protected = _ids((10, 1), (15, 1))
    statuses = _statuses(TEN, _ids((15, 1)))
    assert _kept(statuses, RetentionPolicy(keep=1), attempt=5, protected=protected) == [
        (10, 1),
        (15, 1),
        (100, 1),
    ]


def test_a_damaged_one_is_never_the_reason_to_delete_a_good_one() -> None:
    statuses = _statuses(_ids((90, 2), (95, 3), (100, 2)))
    assert _kept(statuses, RetentionPolicy(keep=1), attempt=3) == [(95, 3), (100, 2)]
    damaged = _ids((100, 2))
    assert _kept(statuses, RetentionPolicy(keep=1), attempt=3, damaged=damaged) == [
        (95, 3),
        (100, 2),
    ]
    later = _statuses(_ids((95, 3), (100, 2), (100, 3)))
    assert _kept(later, RetentionPolicy(keep=1), attempt=3, damaged=damaged) == [(100, 3)]


def test_laws_of_retention_hold_for_any_history() -> None:
    draws = random.Random(11)
    for _ in range(2000):
        ids = list(
            {
                CheckpointId(draws.randrange(8) * 10, draws.randrange(4))
                for _ in range(draws.randrange(9))
            }
        )
        torn = {c for c in ids if draws.random() < 0.3}
        metrics = {c: draws.choice([0.0, 1.0, 2.0, math.nan]) for c in ids if draws.random() < 0.7}
        policy = RetentionPolicy(
            keep=draws.randrange(1, 4),
            best=draws.choice([None, "min", "max"]),
            keep_best=draws.randrange(1, 3),
            every=draws.choice([None, 20, 30]),
            thresholds=draws.choice([(), (0.0,), (0.5, 1.5)]),
        )
        ends = draws.sample(range(0, 80, 10), draws.randrange(3))
        living = draws.choice([None, 0, 1, 2, 3, 4])
        protected = {c for c in ids if draws.random() < 0.1}
        statuses = _statuses([c for c in ids if c not in torn], sorted(torn))
        draws.shuffle(statuses)
        given: Any = {"attempt": living, "metrics": metrics, "epoch_ends": ends}
        given["protected"] = protected
        result = plan(statuses, policy, **given)
        committed = sorted(set(ids) - torn)
        assert sorted([*result.delete, *result.keep]) == sorted(ids)
        assert not set(result.delete) & protected
        assert not committed or committed[-1] in result.keep
        for checkpoint in torn & set(result.delete):
            assert living is not None
            own = [c for c in committed if c.attempt == living]
            assert checkpoint.attempt < living or checkpoint < max(own)
            assert checkpoint.attempt <= living
            assert checkpoint < committed[-1]
        newest_steps = sorted({c.step for c in committed})[-policy.keep :]
        for step in newest_steps:
            assert max(c for c in committed if c.step == step) in result.keep
        # Doing it once is enough.
        left = [s for s in statuses if s.id in result.keep]
        assert plan(left, policy, **given).delete == ()
        by_step = {c.step: c for c in committed}
        for step in by_step.keys() & set(ends):
            assert by_step[step] in result.keep


def test_thresholds_are_numbers() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            RetentionPolicy(thresholds=(0.5, bad))


def test_policies_that_keep_nothing_are_refused() -> None:
    for bad in ({"keep": 0}, {"keep_best": 0}, {"every": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            RetentionPolicy(**bad)  # type: ignore[arg-type]


def _write(store: Store, checkpoint: CheckpointId, world: int = 2, ranks: int = 2) -> None:
    for rank in range(ranks):
        write_share(
            store, checkpoint, Snapshot.take(checkpoint.step, {}, {}), World(rank, world), "r"
        )


def test_pruned_ones_are_gone_and_the_others_untouched(store: Store) -> None:
    for checkpoint in TEN[:4]:
        _write(store, checkpoint)
    sizes = sum(
        i.size for i in store.list() if "step-000000010" in i.path or "step-000000030" in i.path
    )
    assert prune(store, [TEN[0], TEN[2]]) == sizes
    assert [s.id for s in scan(store)] == [TEN[3], TEN[1]]
    assert newest(store, "r")[0] == TEN[3]  # type: ignore[index]
    assert prune(store, [TEN[0], TEN[2]]) == 0
    assert prune(store, []) == 0


def test_pruning_in_a_bucket_is_three_requests(s3_server: Any, request_counter: Any) -> None:
    store = s3_server.store("pruned")
    for checkpoint in TEN[:3]:
        _write(store, checkpoint)
    calls = request_counter(store)
    prune(store, TEN[:2])
    assert calls == ["list_objects_v2", "delete_objects", "delete_objects"]


def test_a_crash_while_pruning_leaves_torn_ones_only(
    memory: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage dies after any number of single deletions, in the order in which they are asked
    for."""
    remove = memory.backend._delete_one  # type: ignore[attr-defined]
    for crash in itertools.count():
        for checkpoint in TEN[:3]:
            _write(memory, checkpoint)
        left = [crash]

        def dying(paths: list[str], left: list[int] = left) -> None:
            for path in paths:
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
                remove(path)

        monkeypatch.setattr(memory.backend, "delete", dying)
        try:
            prune(memory, TEN[:2])
        except KeyboardInterrupt:
            pass
        else:
            break
        for status in scan(memory, manifests=9):
            whole = len(status.files) == 5
            assert (status.state == "committed") == whole
        assert newest(memory, "r")[0] == TEN[2]  # type: ignore[index]
        monkeypatch.setattr(memory.backend, "delete", lambda paths: [remove(p) for p in paths])
        prune(memory, TEN[:2])
        assert [s.id for s in scan(memory)] == [TEN[2]]
    assert crash == 10


def test_what_dead_writers_left_is_cleaned_and_what_living_write_stays(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), "run")
    for checkpoint in (CheckpointId(10, 1), CheckpointId(20, 2)):
        _write(store, checkpoint)
    folders = [tmp_path / "run/checkpoints" / f"step-0000000{n}0-a00{n}" for n in (1, 2, 3)]
    folders[2].mkdir()
    for folder in folders:
        (folder / ".tmp-1-abcdef01").write_bytes(b"half")
        os.utime(folder / ".tmp-1-abcdef01", (0, 0))  # by the clock of a file system that is wrong
    assert prune(store, [], dead_before=2) == 4
    assert prune(store, [], dead_before=2) == 0
    assert [(folder / ".tmp-1-abcdef01").exists() for folder in folders] == [False, True, True]
    assert prune(store, [CheckpointId(20, 2)], dead_before=2) > 500
    assert not folders[1].exists()
    assert newest(store, "r")[0] == CheckpointId(10, 1)  # type: ignore[index]


def test_what_dead_writers_left_outside_the_checkpoints_is_cleaned_too(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), "run")
    _write(store, CheckpointId(10, 3))
    own = f"checkpoints/{CheckpointId(10, 3)}/.tmp-1-abcdef01"
    for path in (
        own,
        ".tmp-1-0",
        "events/.tmp-1-abcdef01",
        "tensorboard/.tmp-9-00000000-events.out.tfevents.1.a1",
    ):
        (tmp_path / "run" / path).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / path).write_bytes(b"half")
    remove_abandoned(store, [], 3)
    assert [info.path for info in unfinished_files(store)] == [own]
