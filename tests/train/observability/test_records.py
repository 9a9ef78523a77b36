"""Schedules, events, metrics, TensorBoard and image grids."""

from __future__ import annotations

import copy
import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymat.errors import ConfigError, StorageError
from raymat.storage.store import Store
from raymat.train.observability import events
from raymat.train.observability.events import EventLog, claim_attempt, read_events
from raymat.train.observability.image_grids import grid, training_grids
from raymat.train.observability.metrics_log import MetricsLog, read_metrics
from raymat.train.observability.tensorboard_log import TensorBoardLog
from raymat.train.optim.lr_schedule import rates
from raymat.train.run.schedule import Schedule
from tests.support import runs
from tests.support.events import note


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path), "run")


def schedule(**options: Any) -> Schedule:
    defaults = {
        "batch_size": 4,
        "total_examples": 42,
        "epoch_examples": 10,
        "checkpoint_interval": 100,
        "valid_interval": 4,
        "valid_examples": 5,
        "log_loss_interval": 3,
        "log_images_interval": 5,
    }
    return Schedule(**(defaults | options))


def due(predicate: Any, total: int = 11) -> list[int]:
    return [step for step in range(1, total + 1) if predicate(step)]


def test_intervals_count_completed_steps_over_the_whole_run() -> None:
    s = schedule()
    assert s.total_steps == 11
    assert due(s.logs) == [3, 6, 9, 11]
    assert due(s.validates) == [4, 8, 11]
    assert due(s.draws_images) == [5, 10]
    assert due(schedule(valid_examples=0).validates) == []
    assert [s.examples(step) for step in (0, 1, 10, 11)] == [0, 4, 40, 42]


def test_checkpoints_lie_on_the_interval_at_epochs_ends_and_at_the_runs_end() -> None:
    # Epochs of 10 examples end within the steps that reach 10, 20, 30 and 40 examples.
    assert due(schedule(checkpoint_interval=12).commits) == [3, 5, 8, 10, 11]
    assert due(schedule(checkpoint_interval=4).commits) == [3, 4, 5, 8, 10, 11]
    assert due(schedule(epoch_examples=1000).commits) == [11]
    # Epochs smaller than a batch: every step ends one.
    assert due(schedule(epoch_examples=3, checkpoint_interval=10).commits) == list(range(1, 12))
    assert schedule().epoch(5) == 2.0


def test_an_epochs_end_has_no_checkpoint_within_a_tenth_of_the_interval_after_another() -> None:
    assert due(schedule().commits) == [10, 11]
    assert due(schedule(checkpoint_interval=30).commits) == [3, 8, 11]
    # 13 pairs in batches of 8: an epoch ends in five of eight steps.
    few = schedule(batch_size=8, total_examples=4000, epoch_examples=13, checkpoint_interval=200)
    assert len(due(few.ends_epoch, 500)) == 307
    found = due(few.commits, 500)
    assert found[:10] == [20, 41, 61, 82, 103, 124, 145, 165, 186, 200]
    assert len(found) == 25
    reference = schedule(
        batch_size=8, total_examples=4000, epoch_examples=13, checkpoint_interval=5000
    )
    assert due(reference.commits, 500) == [500]


def test_an_epochs_end_regards_what_is_due_for_validations_and_where_the_run_had_ended() -> None:
    options: dict[str, Any] = {"batch_size": 4, "epoch_examples": 4, "total_examples": 400}
    late = schedule(**options, checkpoint_interval=100, valid_interval=15, validates_late=True)
    assert due(late.commits, 50) == [10, 15, 25, 30, 40, 45]
    longer = schedule(**options, checkpoint_interval=100, ends=(24,))
    assert due(longer.commits, 40) == [6, 16, 26, 36]


@pytest.mark.parametrize("seed", range(60))
def test_what_is_due_is_what_the_rule_gives_step_after_step_from_the_runs_first(seed: int) -> None:
    draw = random.Random(seed)
    interval, late = draw.randint(1, 300), draw.random() < 0.5
    s = schedule(
        batch_size=draw.randint(1, 9), epoch_examples=draw.randint(1, 200), checkpoint_interval=interval,
        valid_interval=draw.randint(1, 100), validates_late=late, total_examples=900,
        ends=tuple(sorted(draw.sample(range(1, 800), draw.randint(0, 3)))),
    )  # fmt: skip
    expected, last = [], 0
    for step in range(1, s.total_steps + 1):
        always = step % interval == 0 or s.stops(step) or (late and s.validates(step))
        if always or (s.ends_epoch(step) and 10 * (step - last) >= interval):
            expected.append(step)
            last = step
    assert due(s.commits, s.total_steps) == expected


def test_segments_end_where_training_pauses() -> None:
    assert [schedule().segment_end(step) for step in (0, 3, 4, 7, 8, 10)] == [4, 4, 8, 8, 11, 11]
    assert schedule(valid_examples=0).segment_end(0) == 11


def test_what_the_feed_will_be_asked_for_follows_from_the_steps_numbers() -> None:
    def told(step: int, **options: Any) -> list[tuple[str, int, int]]:
        return [(s.kind, s.first, s.end) for s in schedule(**options).stretches(step)]

    pause = ("valid", 0, 0)
    whole = [("train", 0, 4), pause, ("train", 4, 8), pause, ("train", 8, 11), pause]
    assert told(0) == [pause, *whole]
    assert told(6) == [("train", 6, 8), pause, ("train", 8, 11), pause]
    assert told(6, validates_late=True) == [("train", 6, 8), ("train", 8, 11), pause]
    assert told(6, valid_examples=0) == [("train", 6, 11)]
    assert told(11) == []


def test_another_batch_size_keeps_length_and_epochs() -> None:
    for batch in (2, 3, 4, 7, 42):
        s = schedule(batch_size=batch)
        assert s.examples(s.total_steps) == 42
        assert s.epoch(s.total_steps) == 4.2
        assert sum(s.ends_epoch(step) for step in range(1, s.total_steps + 1)) == min(
            4, s.total_steps
        )


def test_a_batch_of_one_example_is_refused_with_the_fix() -> None:
    config = runs.tiny("x", "y", batch_size=1, workers=1)
    with pytest.raises(ConfigError, match="--batch-size 1 cannot be trained"):
        Schedule.of(config, runs.order_of(config))


def test_rates_are_the_configured_ones() -> None:
    base, refine = runs.tiny("x", "y"), runs.tiny("x", "y", "refine", lr_aspp=0.25)
    assert rates(base, 12345) == {"backbone": 1e-4, "aspp": 5e-4, "decoder": 5e-4}
    assert rates(refine, 0) == {"backbone": 5e-5, "aspp": 0.25, "decoder": 1e-4, "refiner": 3e-4}


def test_events_of_all_writers_come_back_in_order(store: Store) -> None:
    first, second = EventLog.for_rank(store, 3, 0), EventLog.for_rank(store, 3, 1)
    first.emit(note("start", world=2))
    second.emit(note("replaced", path="a.png"))
    first.emit(note("end", outcome="complete"))
    driver = EventLog.for_driver(store)
    driver.emit(note("failure"))
    found = read_events(store)
    assert [event["kind"] for event in found] == ["start", "replaced", "end", "failure"]
    assert [event["attempt"] for event in found] == [3, 3, 3, 3]
    assert [event["writer"] for event in found] == [
        "rank-00000",
        "rank-00001",
        "rank-00000",
        "driver",
    ]
    assert all(event["time"] > 1.7e9 for event in found)
    assert claim_attempt(store, note("start"))[0] == 4


def test_a_drivers_event_finds_its_attempt_without_a_listing_of_the_checkpoints(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    EventLog.for_rank(store, 7, 0).emit(note("start", world=1))
    listed: list[str] = []
    plain = Store.list

    def counted(self: Store, folder: str = "") -> Any:
        listed.append(folder)
        return plain(self, folder)

    monkeypatch.setattr(Store, "list", counted)
    EventLog.for_driver(store).emit(note("launch"))
    assert listed == ["events"]
    assert read_events(store)[-1]["attempt"] == 7


def test_attempts_are_never_reused(store: Store) -> None:
    store.write("checkpoints/step-000000100-a012/state.json", b"{}")
    store.write("checkpoints/a099/file", b"Ray's")
    store.write("events/a003-rank-00000-a7777777-00000.jsonl", b"")
    assert claim_attempt(store, note("start"))[0] == 13


def test_two_attempts_that_claim_a_number_at_once_get_two(store: Store) -> None:
    """Each lists before the other has written, as often as it takes."""
    both = threading.Barrier(2)
    listed = Store.list

    def together(number: int) -> tuple[int, EventLog]:
        slow = copy.copy(store)
        first = iter([True, True])

        def list_(folder: str = "", **options: Any) -> Any:
            found = listed(slow, folder, **options)
            if folder == "checkpoints" and next(first, False):
                both.wait(timeout=20)
            return found

        slow.list = list_  # type: ignore[method-assign]
        return claim_attempt(slow, note("start", world=number))

    with ThreadPoolExecutor(2) as pool:
        claims = list(pool.map(together, (1, 2)))
    numbers = sorted(number for number, _ in claims)
    assert numbers[0] < numbers[1]
    found = read_events(store)
    assert sorted(event["attempt"] for event in found) == numbers
    assert sorted(event["world"] for event in found) == [1, 2]


def test_a_full_segment_is_left_and_a_new_one_begun(store: Store, tmp_path: Path) -> None:
    log = EventLog.for_rank(store, 1, 0)
    for number in range(5):
        log.emit(note("note", number=number, text="x" * 30_000))
    sizes = [len(store.read(file.path)) for file in store.list("events")]
    assert len(sizes) == 2
    assert 64 * 1024 < sizes[0] < 100_000
    assert [event["number"] for event in read_events(store)] == [0, 1, 2, 3, 4]


def test_an_event_that_cannot_be_written_comes_with_the_next_one(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventLog.for_rank(store, 1, 0)
    (tmp_path / "run").write_text("a file where the run's folder should be")
    log.emit(note("first"))
    assert "events wait for storage" in caplog.text
    with pytest.raises(StorageError):
        log.emit(note("second"), required=True)
    (tmp_path / "run").unlink()
    log.emit(note("third"))
    assert [event["kind"] for event in read_events(store)] == ["first", "second", "third"]


def test_events_written_beside_come_in_order_and_survive_storage_that_was_away(
    store: Store, tmp_path: Path
) -> None:
    log = EventLog.for_rank(store, 1, 0)
    log.write_in_background()
    (tmp_path / "run").write_text("a file where the run's folder should be")
    log.emit(note("first"))
    log.emit(note("second"))
    time.sleep(0.1)
    (tmp_path / "run").unlink()
    log.emit(note("third"))
    log.close()
    assert [event["kind"] for event in read_events(store)] == ["first", "second", "third"]


def test_the_thread_that_writes_events_outlives_an_unexpected_error(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "PATIENCE_SECONDS", 0.05)
    log = EventLog.for_rank(store, 1, 0)
    write, failures = log._write, iter([KeyError("unexpected"), KeyError("again")])

    def fail_twice(store: Store) -> None:
        for error in failures:
            raise error
        write(store)

    monkeypatch.setattr(log, "_write", fail_twice)
    log.write_in_background()
    log.emit(note("first"))
    deadline = time.monotonic() + 20
    while not read_events(store):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    log.close()
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [KeyError] * 2


def test_events_that_storage_never_takes_do_not_fill_memory(store: Store, tmp_path: Path) -> None:
    log = EventLog.for_rank(store, 1, 0)
    (tmp_path / "run").write_text("a file where the run's folder should be")
    for number in range(40):
        log.emit(note("note", number=number, text="x" * 100_000))
    assert sum(map(len, log._lines)) <= 2**20
    (tmp_path / "run").unlink()
    log.emit(note("end"))
    kept = read_events(store)
    assert [event.get("number") for event in kept[-3:]] == [38, 39, None]


def test_damaged_lines_are_left_out(store: Store) -> None:
    EventLog.for_rank(store, 1, 0).emit(note("start"))
    store.write("events/a001-rank-00001-0-00000.jsonl", b'{"kind": "e\n[1]\n\xff\n{"kind": "end"}')
    assert sorted(event["kind"] for event in read_events(store)) == ["end", "start"]


def row(step: int, loss: float | None, kind: str = "train") -> dict[str, Any]:
    extra = {"lr": {"aspp": 5e-4}} if kind == "train" else {}
    place = {
        "kind": kind,
        "step": step,
        "examples": 4 * step,
        "epoch": step / 10,
        "time": 1e9 + step,
    }
    return place | {"loss": loss, "digest": "00"} | extra


def write_spans(log: Any, resumed: int, spans: list[list[int]], loss: float) -> None:
    log.resumed(resumed)
    for span in spans:
        for step in span:
            log.row(row(step, loss))
        log.cut(span[-1])
        log.flush(span[-1])


def test_replayed_rows_replace_and_never_double(store: Store) -> None:
    # Attempt 1 wrote a span whose checkpoint was never committed; attempt 2 resumed before it, with spans of its own.
    write_spans(MetricsLog(store, 1), 0, [[1, 2], [3, 4], [5, 6]], 0.1)
    write_spans(MetricsLog(store, 2), 4, [[5], [6, 7]], 0.2)
    # Attempt 3 fell back to step 2 and was killed after a span.
    write_spans(MetricsLog(store, 3), 2, [[3]], 0.3)
    found = [(r["step"], r["loss"]) for r in read_metrics(store)]
    assert found == [(1, 0.1), (2, 0.1), (3, 0.3)]
    # A late writer of attempt 2 changes nothing that attempt 3 has replayed.
    late = MetricsLog(store, 2)
    write_spans(late, 7, [[8]], 0.2)
    assert [(r["step"], r["loss"]) for r in read_metrics(store)] == found


def test_rows_beyond_the_last_commit_are_not_written(store: Store) -> None:
    log = MetricsLog(store, 1)
    write_spans(log, 0, [[1, 2]], 0.1)
    log.row(row(3, 0.1))
    assert [r["step"] for r in read_metrics(store)] == [1, 2]


def test_training_and_validation_rows_of_a_step_both_stay_and_losses_come_back_exactly(
    store: Store,
) -> None:
    log = MetricsLog(store, 1)
    log.resumed(0)
    log.row(row(1, 0.1 + 0.2))
    log.row(row(1, None, "valid"))
    log.cut(1)
    log.flush(1)
    assert [(r["kind"], r["loss"]) for r in read_metrics(store)] == [
        ("train", 0.30000000000000004),
        ("valid", None),
    ]
    (file,) = store.list("metrics")
    assert file.path == "metrics/000000001-000000001-a001.jsonl"
    assert len([json.loads(line) for line in store.read(file.path).splitlines()]) == 2


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return [(event.step, round(event.value, 3)) for event in found.Scalars(tag)]


def test_tensorboard_shows_one_curve_however_often_a_run_restarts(
    store: Store, tmp_path: Path
) -> None:
    write_spans(TensorBoardLog(store, 1), 0, [[1, 2], [3, 4]], 0.1)
    write_spans(TensorBoardLog(store, 2), 2, [[3]], 0.2)
    log = TensorBoardLog(store, 3)
    write_spans(log, 3, [[4, 5]], 0.3)
    log.row(row(6, 0.3))
    log.row(row(6, 0.4, "valid") | {"metrics": {"sad": 0.25, "mse": None}})
    log.images(
        6, {"train_pred_pha": np.zeros((8, 12), np.uint8), "x": np.ones((4, 4, 3), np.uint8)}
    )
    log.cut(6)
    log.flush(6)
    log.row(row(7, 0.3))  # never committed
    folder = tmp_path / "run" / "tensorboard"
    assert scalars(folder, "loss") == [
        (1, 0.1), (2, 0.1), (3, 0.2), (4, 0.3), (5, 0.3), (6, 0.3),
    ]  # fmt: skip
    assert scalars(folder, "valid_loss") == [(6, 0.4)]
    assert scalars(folder, "valid_sad") == [(6, 0.25)]
    assert scalars(folder, "lr/aspp")[0] == (1, 0.001)


def test_tensorboard_shows_the_pictures(store: Store, tmp_path: Path) -> None:
    import io

    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoardLog(store, 1)
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, 15:, 0] = 200
    log.images(4, {"train_true_src": pixels})
    log.cut(4)
    log.flush(4)
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    (image,) = found.Images("train_true_src")
    shown = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert (image.step, shown.shape) == (4, (20, 30, 3))
    assert np.abs(shown[:, 25].astype(int) - [200, 0, 0]).max() < 12


def test_a_grid_has_five_pictures_in_a_row() -> None:
    pictures = torch.linspace(0, 1, 7).view(7, 1, 1, 1).expand(7, 3, 4, 6)
    found = grid(pictures)
    assert found.shape == (2 * 4 + 2, 5 * 6 + 4 * 2, 3)
    assert found[0, 0].tolist() == [0, 0, 0]
    assert found[0, 4 * 8].tolist() == [170, 170, 170]
    assert found[6, 8].tolist() == [255, 255, 255]
    assert found[6, 16:].max() == 0
    assert grid(torch.ones(2, 1, 4, 4)).shape == (4, 10)


def test_large_pictures_are_averaged_down() -> None:
    checks = (torch.arange(1024).view(1, 1, 1, -1) % 2).float().expand(1, 1, 1024, 1024)
    found = grid(checks)
    assert found.shape == (512, 512)
    assert set(np.unique(found)) == {128}


def test_training_grids_have_the_references_names() -> None:
    pictures = {name: torch.rand(2, 3, 4, 4) for name in ("fgr", "src", "bgr")}
    pictures |= {name: torch.full((2, 1, 4, 4), 0.5) for name in ("pha", "err")}
    found = training_grids(pictures)
    assert list(found) == [
        "train_pred_pha", "train_pred_fgr", "train_pred_com",
        "train_pred_err", "train_true_src", "train_true_bgr",
    ]  # fmt: skip
    half = found["train_pred_com"].astype(int) * 2 - found["train_pred_fgr"]
    assert np.abs(half).max() <= 1
    assert training_grids({name: x[:0] for name, x in pictures.items()}) == {}
