"""The laws of validation beside training, on real processes, without Ray."""

from __future__ import annotations

import dataclasses
import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from raymat.checkpoint import async_writer
from raymat.checkpoint.catalog import scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.retention import RetentionPolicy
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.config.run import RunConfig
from raymat.data.batch import Replacement
from raymat.distributed.world import World
from raymat.errors import CheckpointError, NewerFormatError, RaymatError
from raymat.storage.store import Store
from raymat.train.loop import startup
from raymat.train.loop.saving.commits import Retainer
from raymat.train.loop.state import ResumeContract, RunState, capture
from raymat.train.loop.train_step import TrainStep
from raymat.train.loop.trainer import Outcome
from raymat.train.observability.events import EventLog, read_events
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.optim.forward import ForwardPass
from raymat.train.run.notice import LeavingError
from raymat.train.validation import checkpoint_validation as beside_module
from raymat.train.validation.checkpoint_validation import evaluators_of, validate_checkpoint
from raymat.train.validation.criteria import Validation
from raymat.train.validation.deferred import DeferredValidation
from raymat.train.validation.evaluator import ValidationResult, measure
from raymat.train.validation.interface import NoValidator, Place, ValidationStatus
from raymat.train.validation.result import ResultFolder, StoredResult
from tests.support import runs
from tests.support.small import build_small
from tests.support.workers import WorkerError, in_workers
from tests.train.loop.test_preemption import Warned

POINTS = {"steps": 12, "valid_interval": 4, "checkpoint_interval": 100}


class Threaded:
    """Validates in a thread; the first `deaths` that are begun die, the next `hangs` never end."""

    def __init__(self, config: RunConfig, deaths: int = 0, hangs: int = 0) -> None:
        self._config, self._deaths, self._hangs = config, deaths, hangs
        self._pool = ThreadPoolExecutor(1)
        self._checkpoint: CheckpointId | None = None
        self._task: Future[Any] = Future()

    def place(self) -> Place:
        return Place({}, "in a thread")

    def begin(self, checkpoint: CheckpointId) -> None:
        self._checkpoint, self._task = checkpoint, Future()
        if self._deaths:
            self._deaths -= 1
            self._task.set_exception(RaymatError("killed"))
        elif self._hangs:
            self._hangs -= 1
        else:
            job = runs.job_of(self._config, checkpoint)
            self._task = self._pool.submit(validate_checkpoint, job, torch.device("cpu"))

    def look(self) -> ValidationStatus:
        if not self._task.done():
            return ValidationStatus(self._checkpoint, "running", 0.0)
        error = self._task.exception()
        if error is not None:
            return ValidationStatus(self._checkpoint, "died", 0.0, str(error))
        return ValidationStatus(self._checkpoint, "ended", 0.0)

    def end(self) -> None:
        return


def train(world: World, config: RunConfig, deaths: int = 0, hangs: int = 0, **more: Any) -> Outcome:
    return train_in_loop(world, config, validator=Threaded(config, deaths, hangs), **more)


def train_in_loop(world: World, config: RunConfig, **more: Any) -> Outcome:
    """With nobody to validate beside training; with a small network."""
    for module in (startup, beside_module):
        module.build = build_small  # type: ignore[attr-defined]
    return runs.train(world, config, **more)


def train_warned(world: World, config: RunConfig, first: int, hangs: int) -> Outcome:
    return train(world, config, hangs=hangs, host=Warned(first, 10**9, None))


def events(config: RunConfig, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(runs.store_of(config)) if event["kind"] == kind]


def places(config: RunConfig) -> dict[int, str]:
    return {event["step"]: event["place"] for event in events(config, "validation")}


def numbers(config: RunConfig) -> list[tuple[int, Any, Any]]:
    """What each validation found, by step."""
    rows = [row for row in read_metrics(runs.store_of(config)) if row["kind"] == "valid"]
    return [(row["step"], row["loss"], row["metrics"]) for row in rows]


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run that nobody touched."""
    folder = tmp_path_factory.mktemp("beside")
    config = runs.tiny(folder, "undisturbed", validation="beside", **POINTS)
    in_workers(2, train, config)
    return config


def assert_same_run(ours: RunConfig, theirs: RunConfig) -> None:
    """Equal to the bit after each validation point, in the same rows."""
    mine, yours = runs.checkpoints(ours), runs.checkpoints(theirs)
    assert {4, 8, 12} <= mine.keys()
    for step in (4, 8, 12):
        assert runs.differences(mine[step], yours[step]) == []
    assert numbers(ours) == numbers(theirs)


@pytest.mark.slow
def test_the_number_beside_training_is_that_of_the_loop_to_the_bit(
    tmp_path: Path, beside: RunConfig
) -> None:
    three = runs.tiny(tmp_path / "three", "loop", **POINTS)
    in_workers(3, train_in_loop, three)
    two = runs.tiny(tmp_path / "two", "loop", **POINTS)
    in_workers(2, train_in_loop, two)
    assert numbers(two) == numbers(beside)
    assert [step for step, _, _ in numbers(beside)] == [0, 4, 8, 12]
    assert places(beside) == {0: "loop", 4: "beside", 8: "beside", 12: "loop"}
    # Of the same weights three workers find what one process does.
    assert numbers(three)[0] == numbers(beside)[0]


def test_a_result_counts_from_the_next_validation_on_and_at_the_end_all_do(
    beside: RunConfig,
) -> None:
    found = {
        step: ([v["step"] for v in c.extra["validations"]], c.extra["pending_validation"])
        for step, c in runs.checkpoints(beside).items()
    }
    assert found == {4: ([], 4), 8: ([4], 8), 12: ([4, 8, 12], None)}


@pytest.mark.slow
def test_where_there_is_no_place_the_workers_validate_and_the_run_is_the_same(
    tmp_path: Path, beside: RunConfig
) -> None:
    config = runs.tiny(tmp_path, "nowhere", validation="beside", **POINTS)
    in_workers(2, train_in_loop, config)
    assert places(config) == {0: "loop", 4: "loop", 8: "loop", 12: "loop"}
    assert [e["step"] for e in events(config, "validation_in_loop")] == [4, 8]
    assert_same_run(config, beside)


def test_a_validation_that_dies_is_begun_again(tmp_path: Path, beside: RunConfig) -> None:
    config = runs.tiny(tmp_path, "dies", validation="beside", **POINTS)
    in_workers(2, train, config, 2)
    assert [(e["step"], e["error"]) for e in events(config, "validation_died")] == [
        (4, "killed"),
        (4, "killed"),
    ]
    assert places(config)[4] == "beside"
    assert_same_run(config, beside)


def test_after_three_deaths_the_workers_validate_the_checkpoint(
    tmp_path: Path, beside: RunConfig
) -> None:
    config = runs.tiny(tmp_path, "keeps-dying", validation="beside", **POINTS)
    in_workers(2, train, config, 3)
    assert places(config) == {0: "loop", 4: "loop", 8: "beside", 12: "loop"}
    assert_same_run(config, beside)


@pytest.mark.slow
def test_a_worker_killed_while_a_validation_is_pending_changes_no_bit(
    tmp_path: Path, beside: RunConfig
) -> None:
    config = runs.tiny(tmp_path, "killed", validation="beside", **POINTS)
    with pytest.raises(WorkerError):
        in_workers(2, train_to_death, config, 1)
    in_workers(2, train, config)
    assert [e["step"] for e in events(config, "restore")] == [4]
    assert [(e["step"], e["attempt"]) for e in events(config, "validation_begun")][-2:] == [
        (4, 2),
        (8, 2),
    ]
    assert_same_run(config, beside)


def train_to_death(world: World, config: RunConfig, hangs: int) -> Outcome:
    return train(world, config, hangs=hangs, kill={1: 6}, patient=True)


@pytest.mark.slow
def test_a_result_that_is_there_is_not_looked_for_again(tmp_path: Path, beside: RunConfig) -> None:
    config = runs.tiny(tmp_path, "found", validation="beside", **POINTS)
    with pytest.raises(WorkerError):
        in_workers(2, train_slowly_to_death, config)
    in_workers(2, train, config)
    begun = [(e["step"], e["attempt"]) for e in events(config, "validation_begun")]
    assert begun == [(4, 1), (8, 2)]
    assert_same_run(config, beside)


def test_a_result_of_which_a_digit_has_changed_is_said_to_be_and_found_again(
    tmp_path: Path, beside: RunConfig
) -> None:
    config = runs.tiny(tmp_path, "damaged", validation="beside", **POINTS)
    with pytest.raises(WorkerError):
        in_workers(2, train_slowly_to_death, config)
    store, path = runs.store_of(config), "validations/step-000000004-a001.json"
    result = json.loads(store.read(path))
    result["found"]["loss"] += 1.0
    store.write(path, json.dumps(result).encode())
    in_workers(2, train, config)
    assert [(e["path"], e["reason"]) for e in events(config, "validation_damaged")] == [
        (path, "its digest is wrong")
    ]
    begun = [(e["step"], e["attempt"]) for e in events(config, "validation_begun")]
    assert begun == [(4, 1), (4, 2), (8, 2)]
    assert_same_run(config, beside)


class _Waiting(runs.Feed):
    """Holds step 6 back until the result of step 4 is there."""

    def train(self, first_step: int, end_step: int) -> Any:
        for batch in super().train(first_step, end_step):
            if batch.step == 6:
                deadline = threading.Event()
                for _ in range(600):
                    if self._store.list("validations"):
                        break
                    deadline.wait(0.1)
            if batch.step == 7 and self._dies:
                raise RuntimeError("dies here")
            yield batch

    _dies = True


def train_slowly_to_death(world: World, config: RunConfig) -> Outcome:
    return train(world, config, feed=_Waiting(config, world, {}))


@pytest.mark.slow
def test_a_notice_does_not_wait_for_a_validation(tmp_path: Path, beside: RunConfig) -> None:
    config = runs.tiny(tmp_path, "warned", validation="beside", **POINTS)
    # Eight steps ask, then each look at the result of step 4 that step 8 waits for, in vain: the tenth question.
    for error in in_workers(2, train_warned, config, 10, 10):
        assert isinstance(error, LeavingError)
    (leave,) = events(config, "leave")
    assert (leave["step"], leave["committed"]) == (8, 8)
    in_workers(2, train, config)
    assert [e["step"] for e in events(config, "restore")] == [8]
    assert numbers(config) == numbers(beside)
    last = 12
    assert runs.differences(runs.checkpoints(config)[last], runs.checkpoints(beside)[last]) == []


def committed(store: Store, steps: range) -> None:
    for step in steps:
        snapshot = Snapshot({"model/w": torch.zeros(1)}, {})
        write_share(store, CheckpointId(step, 1), snapshot, World(), "run")


def test_the_checkpoint_of_a_pending_validation_stays_and_may_be_the_best(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), "run")
    committed(store, range(1, 7))
    record = RunState(pending_validation=2, validations=[Validation(1, 5.0)])
    policy = RetentionPolicy(keep=1, best="min")
    retainer = Retainer(store, policy, 1)
    retainer.committed(record, ())
    retainer.finish(record, ())
    assert {s.id.step for s in scan(store)} == {1, 2, 6}
    record = RunState(validations=[Validation(1, 5.0), Validation(2, 4.0)])
    retainer = Retainer(store, policy, 1)
    retainer.committed(record, ())
    retainer.finish(record, ())
    assert {s.id.step for s in scan(store)} == {2, 6}


def test_a_result_is_the_same_after_a_journey_through_storage_and_a_damaged_one_is_none() -> None:
    found = ValidationResult(0.1 + 0.2, {"sad": None, "ema_mse": 1e-300}, 3, "abcd")
    result = StoredResult(found, "beside", 1.5, (Replacement(7, "a.jpg", "truncated"),))
    checkpoint = CheckpointId(6, 1)
    data = result.encode("id", checkpoint)
    assert StoredResult.decode(data, "id", checkpoint) == result
    plain = {"format": 1} | dataclasses.asdict(result)  # as older versions wrote it
    assert StoredResult.decode(json.dumps(plain).encode(), "id", checkpoint) == result
    digit = data.replace(b"0.30000000000000004", b"0.20000000000000004")
    half = json.dumps(json.loads(data) | {"format": 1}).encode()
    for damaged in (
        b"",
        b"[]",
        b"{}",
        data[:-1],
        digit,
        half,
        b'{"format": 2}',
        b'{"format": "2"}',
    ):
        with pytest.raises(CheckpointError):
            StoredResult.decode(damaged, "id", checkpoint)
    for run, other in (("other", checkpoint), ("id", CheckpointId(6, 2))):
        with pytest.raises(CheckpointError, match="another checkpoint or run"):
            StoredResult.decode(data, run, other)
    with pytest.raises(NewerFormatError, match="format 3"):
        StoredResult.decode(data.replace(b'"format": 2', b'"format": 3'), "id", checkpoint)


def test_what_was_never_saved_and_has_no_result_is_lost(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), "run")
    late = DeferredValidation(
        ResultFolder(store, "id"), NoValidator(), EventLog.for_rank(store, 1, 0), limit=1.0
    )
    late.resume(4, CheckpointId(6, 2))
    assert late.poll().waits
    answer = late.poll(lost=True, waited_for=True)
    assert (answer.waits, answer.result, answer.checkpoint) == (False, None, None)


class _Releasing(runs.Feed):
    """Lets the storage go on when step 7 is asked for."""

    release = threading.Event()

    def train(self, first_step: int, end_step: int) -> Any:
        for batch in super().train(first_step, end_step):
            if batch.step == 7:
                self.release.set()
            yield batch


def test_no_later_save_takes_the_place_of_one_that_a_validation_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = async_writer.write_files

    def write_when_released(*args: Any) -> Any:
        assert _Releasing.release.wait(60)
        return write(*args)

    for module in (startup, beside_module):
        monkeypatch.setattr(module, "build", build_small)
    monkeypatch.setattr(async_writer, "write_files", write_when_released)
    options = POINTS | {"checkpoint_interval": 1, "steps": 8}
    config = runs.tiny(tmp_path, "behind", validation="beside", **options)
    train(World(), config, feed=_Releasing(config, World(), {}))
    # Step 1 is on its way until step 7; 2, 3 and 4 take each other's place, and 5 to 7 find that of 4 taken.
    assert [e["step"] for e in events(config, "save_skipped")] == [5, 6, 7]
    assert sorted(runs.checkpoints(config)) == [1, 4, 8]
    assert places(config) == {0: "loop", 4: "beside", 8: "loop"}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_state_says_by_itself_what_its_network_and_its_average_say(
    channels_last: bool, decay: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside_module, "build", build_small)
    config = runs.tiny("memory://", "alone", ema_decay=decay, crop=32)
    config = runs.job_of(config, CheckpointId(1, 1)).config
    step = TrainStep(
        build_small("base", None, 0),
        ForwardPass(
            stage="base",
            precision="fp32",
            seed=config.data.seed,
            resolution=config.data.resolution,
            device=torch.device("cpu"),
            channels_last=channels_last,
        ),
        World(),
        config.optim,
    )
    feed = runs.Feed(config, World(), {})
    for batch in feed.train(0, 2):
        step(batch, len(batch.examples), {"backbone": 1e-3, "aspp": 1e-3, "decoder": 1e-3})
    snapshot = Snapshot.take(0, *capture(step, RunState(), ResumeContract(config, "synthetic")))
    (valid,) = feed.valid()
    alone = measure(evaluators_of(snapshot, config, torch.device("cpu")), valid)
    assert alone == measure(step.evaluators(config.log.metrics), valid)
    names = {"loss", "ema_loss"} if decay else {"loss"}
    assert {name for name in alone[0] if name.endswith("loss")} == names
    if decay:
        assert alone[0]["loss"] != alone[0]["ema_loss"]


# Nothing gets better by 10: patience is over with the second validation.
IMPATIENT = {"plateau_min_delta": 10.0, "plateau_patience": 16, "schedule": "plateau"}


@pytest.mark.slow
def test_a_plateau_found_late_lowers_the_rates_at_the_same_step_wherever_it_was_found(
    tmp_path: Path,
) -> None:
    options = POINTS | IMPATIENT | {"steps": 16}
    whole = runs.tiny(tmp_path, "whole", validation="beside", **options)
    in_workers(2, train, whole)
    killed = runs.tiny(tmp_path, "killed", validation="auto", **options)
    with pytest.raises(WorkerError):
        in_workers(2, train_to_death, killed, 1)
    in_workers(2, train_in_loop, killed)
    assert places(whole)[4] == "beside"
    assert places(killed)[4] == "loop"
    mine, yours = runs.checkpoints(killed), runs.checkpoints(whole)
    # The result of step 8 counts from step 12 on, those of 12 and 16 at the end.
    assert {n: c.extra["schedule"]["reductions"] for n, c in yours.items()} == {
        4: 0,
        8: 0,
        12: 1,
        16: 3,
    }
    for step in (4, 8, 12, 16):
        assert set(runs.differences(mine[step], yours[step])) <= {"config"}
    rates = {
        row["step"]: row["lr"]["decoder"]
        for row in read_metrics(runs.store_of(killed))
        if row["kind"] == "train"
    }
    assert rates[13] == pytest.approx(0.1 * rates[12])
    assert rates[12] == rates[1]


def test_a_run_stops_early_by_a_late_result_and_validates_once_more(tmp_path: Path) -> None:
    options = POINTS | {"steps": 16, "early_stop_patience": 16, "early_stop_min_delta": 10.0}
    config = runs.tiny(tmp_path, "early", validation="beside", **options)
    outcomes = in_workers(2, train, config)
    assert [outcome.step for outcome in outcomes] == [12, 12]
    assert places(config) == {0: "loop", 4: "beside", 8: "beside", 12: "loop"}
    extra = runs.checkpoints(config)[12].extra
    assert [v["step"] for v in extra["validations"]] == [4, 8, 12]
    assert extra["pending_validation"] is None
