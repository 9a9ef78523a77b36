"""Laws of loggers that hand rows to services: each row once, whatever is killed, slow or down, and training waits for none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from raymat.distributed.world import World
from raymat.errors import ConfigError
from raymat.storage.store import Store
from raymat.train.observability.event import Event
from raymat.train.observability.logger import Row
from raymat.train.observability.metrics_log import MetricsLog
from raymat.train.observability.services.service_logger import (
    LoggedRun,
    ServiceError,
    ServiceLogger,
)
from raymat.train.observability.training_events import LoggerBehind, LoggerCaughtUp
from tests.support import runs


class Memory:
    """A service that keeps rows by kind and step, and can be down or hang. It outlives its clients, as services do."""

    name = "memory"

    def __init__(self) -> None:
        self.rows: list[tuple[str, int]] = []
        self.down = False
        self.connects = 0
        self.open = threading.Event()
        self.open.set()
        self.closed = False

    def connect(self) -> None:
        self.connects += 1
        if self.down:
            raise ServiceError("https://host/x?token=cAn4ry does not answer")

    def send(self, rows: Sequence[Row]) -> None:
        self.open.wait()
        for row in rows:
            if self.down:
                raise ServiceError("it went away")
            if (row["kind"], row["step"]) not in self.rows:
                self.rows.append((row["kind"], row["step"]))

    def close(self) -> None:
        self.closed = True

    def steps(self, kind: str = "train") -> list[int]:
        return [step for each, step in self.rows if each == kind]


class Attempt:
    """An attempt's loggers: metrics/, and one for the service."""

    def __init__(self, store: Store, number: int, service: Memory, most: int = 10_000) -> None:
        self.events: list[Event] = []
        run = LoggedRun(
            run_id="5f3a",
            name="run",
            config={},
            store=store,
            environment={},
            emit=self.events.append,
        )
        self.service = ServiceLogger(service, run, most)
        self._all = [MetricsLog(store, number), self.service]

    def resumed(self, step: int) -> None:
        for logger in self._all:
            logger.resumed(step)

    def train(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            for logger in self._all:
                logger.row(row(step))

    def commit(self, step: int) -> None:
        for logger in self._all:
            logger.cut(step)
        for logger in self._all:
            logger.flush(step)


def row(step: int, kind: str = "train") -> Row:
    return {"kind": kind, "step": step, "loss": 0.5, "time": 1e9, "epoch": 0.1, "lr": {}}


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path), "run")


def test_rows_are_sent_once_they_are_flushed_and_not_before(store: Store) -> None:
    service = Memory()
    attempt = Attempt(store, 1, service)
    attempt.resumed(0)
    attempt.train(1, 4)
    attempt.commit(4)
    attempt.train(5, 6)
    eventually(lambda: service.steps() == [1, 2, 3, 4])
    attempt.service.cut(6)
    attempt.train(7, 7)
    attempt.service.flush(6)
    attempt.service.close()
    assert service.steps() == [1, 2, 3, 4, 5, 6]
    assert service.closed
    assert attempt.events == []


def test_what_a_killed_attempt_had_not_sent_is_sent_by_the_next_and_nothing_twice(
    store: Store,
) -> None:
    service = Memory()
    first = Attempt(store, 1, service)
    first.resumed(0)
    first.train(1, 4)
    first.commit(4)
    eventually(lambda: service.steps() == [1, 2, 3, 4])
    service.open.clear()  # it is slow, and the attempt dies with rows on their way
    first.train(5, 8)
    first.commit(8)
    second_service = Memory()
    second_service.rows = service.rows
    second = Attempt(store, 2, second_service)
    second.resumed(8)
    second.train(9, 9)
    second.commit(9)
    eventually(lambda: service.steps() == [*range(1, 10)])
    # A third one replays: its checkpoint is older than what the service has.
    third = Attempt(store, 3, second_service)
    third.resumed(6)
    third.train(7, 12)
    third.commit(12)
    third.service.close()
    assert service.steps() == [*range(1, 13)]


def test_a_service_that_is_down_is_said_once_and_gets_everything_later(store: Store) -> None:
    service = Memory()
    service.down = True
    attempt = Attempt(store, 1, service)
    attempt.resumed(0)
    for step in range(1, 6):
        began = time.monotonic()
        attempt.train(step, step)
        attempt.commit(step)
        assert time.monotonic() - began < 5
        eventually(lambda step=step: service.connects == step)  # type: ignore[misc]
    eventually(lambda: len(attempt.events) == 1)
    (event,) = attempt.events
    assert isinstance(event, LoggerBehind)
    assert event.line == (
        "memory does not take rows (https://host/x?... does not answer): they stay in metrics/, and are sent later"
    )
    service.down = False
    attempt.train(6, 6)
    attempt.commit(6)
    eventually(lambda: service.steps() == [1, 2, 3, 4, 5, 6])
    eventually(lambda: len(attempt.events) == 2)
    assert attempt.events[1] == LoggerCaughtUp(logger="memory", step=6)
    attempt.service.close()
    assert len(attempt.events) == 2


def test_a_service_that_goes_away_between_two_rows_has_each_once(store: Store) -> None:
    service = Memory()
    attempt = Attempt(store, 1, service)
    attempt.resumed(0)
    attempt.train(1, 3)
    attempt.commit(3)
    eventually(lambda: service.steps() == [1, 2, 3])
    service.down = True
    attempt.train(4, 5)
    attempt.commit(5)
    eventually(lambda: len(attempt.events) == 1)
    service.down = False
    attempt.commit(6)
    attempt.service.close()
    assert service.steps() == [1, 2, 3, 4, 5]


def test_rows_for_a_slow_service_take_no_more_memory_than_their_bound(store: Store) -> None:
    service = Memory()
    attempt = Attempt(store, 1, service, most=10)
    attempt.resumed(0)
    service.open.clear()
    for step in range(1, 101):
        attempt.train(step, step)
        attempt.commit(step)
        assert len(attempt.service._ready) <= 10
        assert len(attempt.service._held) == 0
    service.open.set()
    attempt.service.close()
    assert sorted(service.steps()) == [*range(1, 101)]


def test_a_service_that_hangs_holds_up_the_end_for_a_bounded_time(store: Store) -> None:
    service = Memory()
    attempt = Attempt(store, 1, service)
    attempt.resumed(0)
    service.open.clear()
    attempt.train(1, 2)
    attempt.commit(2)
    began = time.monotonic()
    attempt.service.close(seconds=0.2)
    assert time.monotonic() - began < 10
    (event,) = attempt.events
    assert isinstance(event, LoggerBehind)
    assert event.reason == "no answer in time"
    service.open.set()


def test_a_service_that_stays_down_to_the_end_is_not_said_to_have_caught_up(store: Store) -> None:
    service = Memory()
    service.down = True
    attempt = Attempt(store, 1, service)
    attempt.resumed(0)
    attempt.train(1, 2)
    attempt.commit(2)
    attempt.service.close()
    assert [event.kind for event in attempt.events] == ["logger_behind"]
    assert not service.closed


def test_a_fault_that_nobody_expects_ends_no_training(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Memory):
        def send(self, rows: Sequence[Row]) -> None:
            raise ZeroDivisionError("a bug of the package")

    attempt = Attempt(store, 1, Broken())
    attempt.resumed(0)
    attempt.train(1, 1)
    attempt.commit(1)
    eventually(lambda: len(attempt.events) == 1)
    attempt.service.close()
    assert "ZeroDivisionError: a bug of the package" in str(attempt.events[0].line)
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("logger", "line"),
    [
        (
            "mlflow",
            "--logger mlflow: the package is missing on the workers: pip install 'raymat[mlflow]'",
        ),
        (
            "wandb",
            "--logger wandb: the package is missing on the workers: pip install 'raymat[wandb]'",
        ),
    ],
)
def test_a_package_that_is_missing_is_named_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: str, line: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as raised:
        runs.train(World(), runs.tiny(tmp_path, "run", logger=logger))
    assert str(raised.value) == line


def test_mlflow_needs_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI is not set on the workers"):
        runs.train(World(), runs.tiny(tmp_path, "run", logger="wandb\nmlflow"))


@pytest.mark.parametrize("logger", ["wandb", "mlflow", "mine:Logger", "wandb\nmlflow\na.b:C"])
def test_loggers_may_be_several(tmp_path: Path, logger: str) -> None:
    assert runs.tiny(tmp_path, "run", logger=logger).log.logger == logger
