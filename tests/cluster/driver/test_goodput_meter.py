"""The goodput that a driver shows is read from the run's events, and outlives a storage that fails."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from raymat.cluster.driver.goodput_meter import GoodputMeter
from raymat.storage.store import Store
from raymat.train.observability.events import EventLog
from tests.support.events import note
from tests.support.heads import wait_for


def test_it_is_known_once_the_run_has_trained_and_is_kept_while_the_storage_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(str(tmp_path), "run")
    with GoodputMeter(store, seconds=0.02) as meter:
        time.sleep(0.1)
        assert meter.value is None
        events = EventLog.for_rank(store, 1, 0)
        events.emit(note("start", world=1))
        events.emit(note("first_step", step=1, seconds=0.0, batch=0.0))
        value = wait_for(lambda: meter.value, 10)
        assert 0.0 < value <= 1.0
        (tmp_path / "run" / "events").rename(tmp_path / "away")
        (tmp_path / "run" / "events").write_text("no folder", encoding="utf-8")
        time.sleep(0.1)
        assert meter.value is not None
        (tmp_path / "run" / "events").unlink()
        (tmp_path / "away").rename(tmp_path / "run" / "events")
        time.sleep(0.1)
        assert meter.value != value
