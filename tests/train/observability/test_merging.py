"""Long runs: the objects of metrics, events and TensorBoard become few, and nobody who reads them sees a difference."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from raymat.distributed.world import World
from raymat.storage.store import Store
from raymat.train.observability.events import EventLog, highest_attempt, read_events
from raymat.train.observability.merging import events_merge
from raymat.train.observability.merging.background_merge import BackgroundMerge
from raymat.train.observability.merging.curves_merge import CurvesMerge
from raymat.train.observability.merging.events_merge import EventsMerge
from raymat.train.observability.merging.merge_plan import next_merge
from raymat.train.observability.merging.metrics_merge import MetricsMerge
from raymat.train.observability.metrics_log import MetricsLog, read_metrics
from raymat.train.observability.tensorboard_log import TensorBoardLog
from tests.support import runs
from tests.support.events import note
from tests.support.merge_to_kill import died, merge_all
from tests.support.s3 import S3Server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path), "run")


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_merge, "QUIET_SECONDS", 0.0)


def row(step: int, loss: float, kind: str = "train") -> dict[str, Any]:
    place = {"kind": kind, "step": step, "examples": 4 * step, "epoch": step / 10, "time": 1e9}
    rates = (
        {"lr": {"aspp": 5e-4}, "step_seconds": 0.25, "data_wait": 0.5, "memory": 2**30}
        if kind == "train"
        else {"metrics": {}}
    )
    return place | {"loss": loss, "digest": "00"} | rates


def write(log: Any, resumed: int | None, ends: range, loss: float) -> None:
    """Spans that end at each of `ends`, each with a row for each step."""
    if resumed is not None:
        log.resumed(resumed)
    for end in ends:
        for step in range(end - ends.step + 1, end + 1):
            log.row(row(step, loss))
        log.cut(end)
        log.flush(end)


def losses(store: Store) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in read_metrics(store)]


def names(store: Store, folder: str) -> list[str]:
    return [file.path.removeprefix(f"{folder}/") for file in store.list(folder)]


# The plan.


def test_few_objects_stay_as_they_are_and_sixteen_small_neighbours_become_one() -> None:
    assert next_merge([]) is None
    assert next_merge([100] * 15) is None
    assert next_merge([2**24, *[100] * 16, 2**22]) == slice(1, 17)
    assert next_merge([100] * 8 + [2**16] + [100] * 8) is None
    assert next_merge([2**16] * 31) is None
    assert next_merge([2**16] * 32) == slice(0, 32)


def test_a_merge_is_bounded_in_bytes_and_parts() -> None:
    assert next_merge([1] * 100_000) == slice(0, 1000)
    assert next_merge([1_000_000] * 40) == slice(0, 16)


@pytest.mark.parametrize("size", [100, 2_500, 60_000, 300_000])
def test_any_number_of_commits_leaves_few_objects_and_rewrites_each_byte_a_few_times(
    size: int,
) -> None:
    commits, sizes, rewritten, most = 20_000, [], 0, 0
    for _ in range(commits):
        sizes.append(size)
        while (group := next_merge(sizes)) is not None:
            merged = sum(sizes[group])
            rewritten += merged
            sizes[group] = [merged]
        most = max(most, len(sizes) - commits * size / 2**22)
    assert sum(sizes) == commits * size
    assert most < 48
    assert rewritten < 44 * commits * size if size == 100 else rewritten < 8 * commits * size


# Metrics.


def history(store: Store) -> None:
    """A run that was restarted twice, once a little behind what was written and once far."""
    write(MetricsLog(store, 1), 0, range(10, 401, 10), 0.1)
    write(MetricsLog(store, 2), 375, range(385, 576, 10), 0.2)
    write(MetricsLog(store, 9), 300, range(303, 400, 3), 0.9)


EXPECTED = [(step, 0.1) for step in range(1, 301)] + [(step, 0.9) for step in range(301, 400)]


def test_merged_metrics_read_the_same(store: Store) -> None:
    history(store)
    assert losses(store) == EXPECTED
    merge_all(MetricsMerge(store, 9))
    assert losses(store) == EXPECTED
    assert len(names(store, "metrics")) < 16
    assert all(
        len(name) == len("000000001-000000400-a003.jsonl") for name in names(store, "metrics")
    )


def test_a_reader_of_the_older_layout_reads_merged_metrics_the_same(store: Store) -> None:
    history(store)
    merge_all(MetricsMerge(store, 9))
    assert read_as_before(store) == EXPECTED


def read_as_before(store: Store) -> list[tuple[int, float]]:
    """What the version before there were merged objects reads."""
    attempts: dict[int, list[tuple[int, str]]] = {}
    for name in names(store, "metrics"):
        first, _, attempt = name.removesuffix(".jsonl").split("-")
        attempts.setdefault(int(attempt[1:]), []).append((int(first), f"metrics/{name}"))
    kept: dict[int, float] = {}
    for _, segments in sorted(attempts.items()):
        kept = {step: loss for step, loss in kept.items() if step < min(segments)[0]}
        for _, path in sorted(segments):
            kept |= {r["step"]: r["loss"] for r in map(json.loads, store.read(path).splitlines())}
    return sorted(kept.items())


def test_a_run_goes_on_behind_merged_metrics_and_replaces_what_it_does_again(store: Store) -> None:
    history(store)
    merge_all(MetricsMerge(store, 9))
    write(MetricsLog(store, 10), 150, range(160, 191, 10), 0.5)
    expected = [(s, 0.1) for s in range(1, 151)] + [(s, 0.5) for s in range(151, 191)]
    assert losses(store) == expected
    for _ in range(40):  # small ones, so that the large one is merged with them
        merge_all(MetricsMerge(store, 10))
    assert losses(store) == expected
    assert read_as_before(store) == expected


def test_a_late_writer_of_a_dead_attempt_changes_nothing_and_its_merges_neither(
    store: Store, tmp_path: Path
) -> None:
    history(store)
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    merge_all(MetricsMerge(store, 9))
    late = MetricsLog(store, 2)
    write(late, 575, range(585, 826, 10), 0.2)
    assert not MetricsMerge(store, 2)()  # it sees attempt 9
    assert losses(store) == EXPECTED
    # It looked before attempt 9 had written anything, and writes, or deletes, only now.
    for file in (tmp_path / "before" / "metrics").iterdir():
        if "a009" in file.name:
            file.unlink()
    behind = Store.open(str(tmp_path), "before")
    assert MetricsMerge(behind, 2)()
    shutil.copytree(
        tmp_path / "before" / "metrics", tmp_path / "run" / "metrics", dirs_exist_ok=True
    )
    assert losses(store) == EXPECTED
    merge_all(MetricsMerge(store, 9))
    assert losses(store) == EXPECTED
    assert read_as_before(store) == EXPECTED


def test_rows_count_again_when_a_run_goes_on_from_a_late_checkpoint_of_an_attempt_that_was_replaced(
    store: Store,
) -> None:
    """A driver slept before its last manifest; its successor left after one step; and the manifest came after all."""
    write(MetricsLog(store, 1), None, range(2, 17, 2), 1.0)
    successor = MetricsLog(store, 2)
    write(successor, 14, range(15, 16), 2.0)
    assert [step for step, _ in losses(store)] == list(range(1, 16))
    while MetricsMerge(store, 2)():
        pass
    write(MetricsLog(store, 3), 16, range(18, 21, 2), 3.0)
    assert losses(store) == [
        *((step, 1.0) for step in range(1, 15)),
        (15, 2.0),
        (16, 1.0),
        *((step, 3.0) for step in range(17, 21)),
    ]
    for merge in (MetricsMerge(store, 3), MetricsMerge(store, 3)):
        merge()
    assert [step for step, _ in losses(store)] == list(range(1, 21))


def test_a_result_that_is_logged_late_is_read_once(store: Store) -> None:
    log = MetricsLog(store, 1)
    log.resumed(0)
    for end in range(10, 201, 10):
        log.row(row(end, 0.1))
        if end > 10:
            log.row(row(end - 10, 0.3, "valid"))
        log.cut(end)
        log.flush(end)
    before = read_metrics(store)
    merge_all(MetricsMerge(store, 1))
    assert len(names(store, "metrics")) == 1
    assert read_metrics(store) == before
    assert [r["step"] for r in before if r["kind"] == "valid"] == list(range(10, 200, 10))


# Kills.


def curve(folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [(event.step, round(event.value, 3)) for event in found.Scalars("loss")]


def prepare(kind: str, store: Store) -> None:
    """Write something to merge."""
    if kind == "metrics":
        history(store)
    elif kind == "events":
        for attempt in range(1, 9):
            for rank in range(3):
                EventLog.for_rank(store, attempt, rank).emit(note("start"))
    else:
        write(TensorBoardLog(store, 9), 0, range(10, 401, 10), 0.1)
    if kind == "restart":
        merge_all(CurvesMerge(store, 9))


def shown(kind: str, folder: Path) -> list[tuple[Any, ...]]:
    store = Store.open(str(folder), "run")
    if kind == "metrics":
        return losses(store)
    if kind == "events":
        return [(event["attempt"], event["writer"]) for event in read_events(store)]
    return curve(folder / "run" / "tensorboard")


SHOWN = {
    "metrics": EXPECTED,
    "events": [(attempt, f"rank-0000{rank}") for attempt in range(1, 9) for rank in range(3)],
    "tensorboard": [(step, 0.1) for step in range(1, 401)],
    "restart": [(step, 0.1) for step in range(1, 401)],
}


@pytest.mark.parametrize("kind", list(SHOWN))
def test_a_merge_killed_at_any_point_loses_doubles_and_reorders_nothing(
    tmp_path: Path, kind: str
) -> None:
    prepare(kind, Store.open(str(tmp_path / "0"), "run"))
    expected = SHOWN[kind]
    assert shown(kind, tmp_path / "0") == expected
    for change in range(1, 150):
        folder = tmp_path / str(change)
        shutil.copytree(tmp_path / "0", folder)
        killed = died(str(folder), kind, change)
        found = shown(kind, folder)
        # On a restart those steps go that come again, the last ones first.
        least = 301 if kind == "restart" else len(expected)
        assert found == expected[: max(least, len(found))], change
        assert not died(str(folder), kind, 10_000)  # the next one clears up
        assert shown(kind, folder) == expected[:least], change
        if not killed:
            break
    assert 10 < change < 149


# Events.


@pytest.mark.usefixtures("no_waiting")
def test_merged_events_read_the_same_and_attempts_are_never_reused(store: Store) -> None:
    for attempt in range(1, 21):
        EventLog.for_rank(store, attempt, 0).emit(note("start", world=1))
        EventLog.for_driver(store).emit(note("launch"))
    before = read_events(store)
    merge_all(EventsMerge(store, 20))
    assert read_events(store) == before
    assert len(before) == 40
    assert len(names(store, "events")) == 2  # the merged one, and the one of attempt 20 itself
    assert highest_attempt(store) == 20


@pytest.mark.usefixtures("no_waiting")
def test_a_log_that_was_taken_for_dead_writes_on_and_no_event_is_lost_or_doubled(
    store: Store,
) -> None:
    sleeper, driver = EventLog.for_rank(store, 1, 0), EventLog.for_driver(store)
    sleeper.emit(note("start"))
    driver.emit(note("launch"))
    for attempt in range(2, 20):
        EventLog.for_rank(store, attempt, 0).emit(note("start"))
    merge_all(EventsMerge(store, 19))
    assert len(names(store, "events")) == 2
    sleeper.emit(note("late"))
    driver.emit(note("failure"))
    kinds = [event["kind"] for event in read_events(store)]
    assert kinds == ["start", "launch", *["start"] * 18, "late", "failure"]
    for attempt in range(20, 40):
        EventLog.for_rank(store, attempt, 0).emit(note("start"))
    merge_all(EventsMerge(store, 39))
    assert len(names(store, "events")) == 2
    assert [event["kind"] for event in read_events(store)] == kinds + ["start"] * 20


def test_what_is_still_being_written_is_left_alone(store: Store) -> None:
    merge = EventsMerge(store, 3)
    own = EventLog.for_rank(store, 3, 0)
    for number in range(60):
        own.emit(note("note", number=number, text="x" * 30_000))
    for _ in range(20):
        EventLog.for_driver(store).emit(note("launch"))  # nobody knows yet whether they are dead
    before = names(store, "events")
    assert not merge()
    assert names(store, "events") == before
    for number in range(60, 120):
        own.emit(note("note", number=number, text="x" * 30_000))
    merge_all(merge)
    assert len(names(store, "events")) == 20 + 1 + 1
    notes = [event["number"] for event in read_events(store) if event["kind"] == "note"]
    assert notes == list(range(120))


# TensorBoard.


def test_tensorboard_files_become_few_over_many_restarts(store: Store, tmp_path: Path) -> None:
    step = 0
    for attempt in range(1, 61):
        log = TensorBoardLog(store, attempt)
        write(log, step, range(step + 1, step + 8), 0.1)
        merge_all(CurvesMerge(store, attempt))
        step += 5  # the last two commits come to nothing
    assert curve(tmp_path / "run" / "tensorboard") == [(s, 0.1) for s in range(1, step + 3)]
    assert len(names(store, "tensorboard")) < 16 + 7


def test_a_merged_tensorboard_file_is_cut_where_a_run_falls_far_back(
    store: Store, tmp_path: Path
) -> None:
    log = TensorBoardLog(store, 1)
    write(log, 0, range(10, 801, 10), 0.1)
    merge_all(CurvesMerge(store, 1))
    assert len(names(store, "tensorboard")) < 40 + 4
    write(TensorBoardLog(store, 2), 333, range(334, 340), 0.2)
    expected = [(s, 0.1) for s in range(1, 334)] + [(s, 0.2) for s in range(334, 340)]
    assert curve(tmp_path / "run" / "tensorboard") == expected


@pytest.mark.slow
def test_a_running_tensorboard_of_either_kind_shows_the_curve_on_while_files_are_merged(
    store: Store, tmp_path: Path
) -> None:
    boards = [Python(tmp_path / "run" / "tensorboard"), DataServer(tmp_path)]
    log = TensorBoardLog(store, 1)
    for last in range(250, 1001, 250):
        write(log, 0 if last == 250 else None, range(last - 245, last + 1, 5), 0.1)
        for board in boards:
            board.shows(range(1, last + 1))
        merge_all(CurvesMerge(store, 1))
        for board in boards:
            board.shows(range(1, last + 1))
    assert len(names(store, "tensorboard")) < 24 + 18
    DataServer(tmp_path).shows(range(1, 1001))
    Python(tmp_path / "run" / "tensorboard").shows(range(1, 1001))
    write(TensorBoardLog(store, 2), 950, range(960, 1101, 10), 0.1)
    boards[1].shows(range(1, 1101))


class Python:
    """TensorBoard's own reader, as it runs where the data server does not."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        self._found = EventAccumulator(str(folder), size_guidance={"scalars": 0})

    def shows(self, steps: range) -> None:
        self._found.Reload()
        assert [event.step for event in self._found.Scalars("loss")] == list(steps)


class DataServer:
    """TensorBoard's data server, which `tensorboard --logdir` starts where it can."""

    def __init__(self, folder: Path) -> None:
        import tensorboard_data_server
        from tensorboard.data import server_ingester
        from tensorboard.util import grpc_util

        binary = server_ingester.ServerBinary(tensorboard_data_server.server_binary(), None)
        credentials = grpc_util.ChannelCredsType.LOCAL
        self._server = server_ingester.SubprocessServerDataIngester(
            binary,
            str(folder),
            reload_interval=1,
            channel_creds_type=credentials,
            samples_per_plugin={"scalars": 0},
        )
        self._server.start()

    def shows(self, steps: range) -> None:
        deadline = time.monotonic() + 15
        while self._steps() != list(steps):
            assert time.monotonic() < deadline, self._steps()
            time.sleep(0.1)
        time.sleep(1.2)  # and it stays so at its next look
        assert self._steps() == list(steps)

    def _steps(self) -> list[int]:
        from tensorboard import context

        runs = self._server.data_provider.read_scalars(
            context.RequestContext(), experiment_id="", plugin_name="scalars", downsample=10**6
        )
        return [datum.step for tags in runs.values() for datum in tags.get("loss", [])]


# Beside training.


def test_a_run_does_not_wait_for_merges_and_leaves_few_objects(store: Store) -> None:
    merge = BackgroundMerge([MetricsMerge(store, 1)])
    log = MetricsLog(store, 1)
    log.resumed(0)
    for end in range(10, 2001, 10):
        write(log, None, range(end, end + 1, 10), 0.1)
        merge.committed()
    merge.finish()
    assert len(names(store, "metrics")) < 16
    assert losses(store) == [(step, 0.1) for step in range(1, 2001)]


@pytest.mark.slow
def test_a_run_of_many_commits_leaves_few_objects_and_every_row(tmp_path: Path) -> None:
    config = runs.tiny(tmp_path, "run", steps=40, checkpoint_interval=1, valid_examples=0)
    assert runs.train(World(), config).step == 40
    store = runs.store_of(config)
    assert [r["step"] for r in read_metrics(store)] == list(range(1, 41))
    assert len(names(store, "metrics")) < 16
    assert len(names(store, "events")) < 16
    assert len(names(store, "tensorboard")) < 24 + 16
    shown = [step for step, _ in curve(tmp_path / "run" / "tensorboard")]
    assert shown == list(range(1, 41))


@pytest.mark.usefixtures("no_waiting")
def test_a_bucket_is_merged_and_read_as_a_folder_is(s3_server: S3Server) -> None:
    store = s3_server.store("merging")
    history(store)
    for attempt in range(1, 20):
        EventLog.for_rank(store, attempt, 0).emit(note("start"))
    merge_all(MetricsMerge(store, 20))
    merge_all(EventsMerge(store, 20))
    assert losses(store) == EXPECTED
    assert len(names(store, "metrics")) < 16
    assert len(names(store, "events")) == 1
    assert [event["attempt"] for event in read_events(store)] == list(range(1, 20))


def test_reading_goes_on_while_objects_are_merged(store: Store) -> None:
    history(store)
    draws = random.Random(3)
    listing = store.list

    def overtaken(folder: str = "", **options: Any) -> Any:
        found = listing(folder, **options)
        if draws.random() < 0.7 and folder == "metrics":
            MetricsMerge(Store.open(str(Path(store.url).parent), "run"), 9)()
        return found

    store.list = overtaken  # type: ignore[method-assign]
    assert losses(store) == EXPECTED
