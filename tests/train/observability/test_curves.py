"""What a run that was killed again and again shows of itself, as TensorBoard reads it, and to a logger of the user's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raymat.distributed.world import World
from raymat.errors import ConfigError
from raymat.storage.store import Store
from raymat.train.observability.merging.curves_merge import decode_events, list_event_files
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.observability.tensorboard_log import TensorBoardLog
from tests.support import runs
from tests.support.workers import WorkerError, in_workers

GRIDS = {
    "train_pred_pha", "train_pred_fgr", "train_pred_com", "train_pred_err", "train_true_src", "train_true_bgr",
}  # fmt: skip


@pytest.mark.slow
def test_event_files_of_a_run_killed_three_times_have_every_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = runs.tiny(tmp_path, "run", steps=10, checkpoint_interval=3, schedule="cosine")
    for at in (2, 5, 8):  # before the first commit, in the middle of a span, right after an image
        with pytest.raises(WorkerError):
            in_workers(1, runs.train, config, {0: at})
    in_workers(1, runs.train, config)
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"images": 0})
    found.Reload()
    every = list(range(1, 11))
    for tag in ("loss", "epoch", "lr/backbone", "lr/aspp", "lr/decoder"):
        assert [event.step for event in found.Scalars(tag)] == every, tag
    assert [event.step for event in found.Scalars("valid_loss")] == [0, 4, 8, 10]
    assert set(found.Tags()["images"]) == GRIDS
    for tag in GRIDS:
        assert [event.step for event in found.Images(tag)] == [4, 8], tag
    rows = [row for row in read_metrics(runs.store_of(config)) if row["kind"] == "train"]
    shown = [event.value for event in found.Scalars("loss")]
    assert shown == pytest.approx([row["loss"] for row in rows], rel=1e-6)


def test_event_files_of_an_attempt_without_a_commit_are_gone_when_the_next_begins_from_the_start(
    tmp_path: Path,
) -> None:
    store = Store.open(str(tmp_path), "run")
    for attempt in (1, 2):  # the first is killed between its curves and the commit of step 3
        log = TensorBoardLog(store, attempt)
        log.resumed(0)
        log.row({"kind": "valid", "step": 0, "time": 1.0, "loss": 0.5})
        log.cut(3)
        log.flush(3)
    assert [event.step for event in _events_of(store)] == [0]


def _events_of(store: Store) -> list[Any]:
    files = [store.read(file.path) for file in list_event_files(store)]
    return [event for data in files for _, event in decode_events(data) if event.summary.value]


class Notebook:
    """A logger as a user would write one: all that it was told, in a file."""

    def __init__(self, store: Store, attempt: int) -> None:
        self._file = Path(store.url.removeprefix("file://")).parent / "notebook.jsonl"
        self._note("made", attempt=attempt)

    def resumed(self, step: int) -> None:
        self._note("resumed", step=step)

    def row(self, row: dict[str, Any]) -> None:
        self._note(row["kind"], step=row["step"])

    def images(self, step: int, grids: Mapping[str, Any]) -> None:
        self._note("images", step=step, names=sorted(grids))

    def cut(self, step: int) -> None:
        self._note("cut", step=step)

    def flush(self, step: int) -> None:
        self._note("flush", step=step)

    def _note(self, kind: str, **fields: Any) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps({"kind": kind} | fields) + "\n")


def test_a_logger_of_the_users_own_is_told_what_the_others_are(tmp_path: Path) -> None:
    config = runs.tiny(
        tmp_path,
        "run",
        steps=4,
        logger="tests.train.observability.test_curves:Notebook",
        valid_interval=2,
    )
    runs.train(World(), config)
    told = [json.loads(line) for line in (tmp_path / "notebook.jsonl").read_text().splitlines()]
    assert told[:2] == [{"kind": "made", "attempt": 1}, {"kind": "resumed", "step": 0}]
    of = {
        kind: [t["step"] for t in told if t["kind"] == kind] for kind in ("train", "valid", "cut")
    }
    assert of == {"train": [1, 2, 3, 4], "valid": [0, 2, 4], "cut": [2, 4]}
    assert [t["step"] for t in told if t["kind"] == "flush"] == [2, 4]
    assert [t["names"] for t in told if t["kind"] == "images"] == [sorted(GRIDS)]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nothing_there:Logger", "--logger nothing_there:Logger: No module named 'nothing_there'"),
        ("json:Logger", "--logger json:Logger: the module json has no Logger"),
    ],
)
def test_a_logger_that_is_not_there_is_named_before_the_first_step(
    tmp_path: Path, name: str, line: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        runs.train(World(), runs.tiny(tmp_path, "run", logger=name))
    assert str(raised.value).startswith(line)


def test_a_logger_is_named_by_module_and_name(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="--logger must be wandb, mlflow or MODULE:NAME, got 'mine'"
    ):
        runs.tiny(tmp_path, "run", logger="mine")
