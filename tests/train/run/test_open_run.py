"""The opening of a run: one pass, one scan of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from raymat.checkpoint.layout import CHECKPOINTS
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.cluster.driver import launch
from raymat.cluster.driver.launch import fit
from raymat.config.run import RunConfig
from raymat.distributed.world import World
from raymat.storage.store import FileInfo, Store
from raymat.train.run.lease.entries import RECORDS
from raymat.train.run.open_run import open_run
from tests.support.kit import tiny
from tests.support.tenures import Awaited

OPTIONS: dict[str, Any] = {"steps": 7, "precision": "fp32"}
STOPPED = {"validations": [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 1.5}]}


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that this process lists, in turn."""
    found: list[str] = []
    plain = Store.list

    def counted(self: Store, folder: str = "") -> list[FileInfo]:
        if folder != RECORDS:  # a few objects
            found.append(folder)
        return plain(self, folder)

    monkeypatch.setattr(Store, "list", counted)
    return found


def begin(config: RunConfig, step: int, extra: Mapping[str, Any]) -> None:
    """Make the run, and commit a checkpoint of it."""
    store = Store.open(config.storage, config.name)
    run = open_run(config, store)
    snapshot = Snapshot(
        step, {"weight": torch.arange(100.0)}, {"format": 1, "step": step} | dict(extra)
    )
    write_share(store, CheckpointId(step, 1), snapshot, World(), run.run_id)


@pytest.mark.parametrize(
    ("options", "step", "extra", "complete"),
    [
        ({}, 7, {}, True),
        ({}, 6, {}, False),
        ({"early_stop_patience": 16}, 4, STOPPED, True),
        ({"early_stop_patience": 24}, 4, STOPPED, False),
    ],
)
def test_a_run_is_opened_with_one_listing_whether_it_is_complete_or_not(
    tmp_path: Path, listed: list[str], options: Any, step: int, extra: Any, complete: bool
) -> None:
    config = tiny("base", tmp_path, "run", **OPTIONS | options)
    store = Store.open(config.storage, config.name)
    listed.clear()
    assert not open_run(config, store).complete
    assert listed == [CHECKPOINTS]
    begin(config, step, extra)
    listed.clear()
    run = open_run(config, store)
    assert (run.complete, run.status.step) == (complete, step)
    assert listed == [CHECKPOINTS]


def test_a_run_is_extended_with_one_listing_after_others_have_left(
    tmp_path: Path, listed: list[str]
) -> None:
    begin(tiny("base", tmp_path, "run", **OPTIONS), 6, {})
    longer = tiny("base", tmp_path, "run", **OPTIONS | {"steps": 9})
    listed.clear()
    open_run(
        longer,
        Store.open(longer.storage, "run"),
        tenure=Awaited(lambda: listed.append("the others have left")),
    )
    assert listed == ["the others have left", CHECKPOINTS]


def test_a_driver_of_a_complete_run_lists_its_checkpoints_once_and_needs_no_ray(
    tmp_path: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(launch, "running_ray")
    config = tiny("base", tmp_path, "run", **OPTIONS)
    begin(config, 7, {})
    listed.clear()
    assert fit(config).already_complete
    assert listed.count(CHECKPOINTS) == 1
