"""Laws of what a driver shows: a line that fits, a standstill that is seen, news above it, and the last word."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from raymat.checkpoint.catalog import scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.cluster.driver.progress_line import Standstill, progress_line
from raymat.cluster.driver.run_summary import closing, first_progress, opening
from raymat.distributed.world import World
from raymat.storage.store import Store
from raymat.train.observability.events import EventLog
from raymat.train.observability.training_events import ImageReplaced
from raymat.train.observability.validation_events import ValidationDone
from raymat.train.run.open_run import open_run
from raymat.train.run.run_status import read_status
from tests.support.kit import PROGRESS, tiny
from tests.support.paths import ROOT
from tests.support.terminal import Terminal, record


def test_the_progress_line_says_what_a_user_wants_to_know() -> None:
    assert progress_line(PROGRESS, 1012.0) == (
        "base 120/800  left 0:05:57  15.2 examples/s  loss 0.4312  commit 112, 12 s ago  "
        "restarts 1  workers 2"
    )


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (79, "base 120/800  left 0:05:57  15.2 examples/s  loss 0.4312  commit 112, 12 s ago"),
        (60, "base 120/800  left 0:05:57  15.2 examples/s  loss 0.4312"),
        (40, "base 120/800  left 0:05:57  loss 0.4312"),
        (20, "base 120/800"),
    ],
)
def test_a_narrow_terminal_gets_what_matters_most(width: int, line: str) -> None:
    assert progress_line(PROGRESS, 1012.0, width) == line


def test_goodput_and_a_wait_for_data_that_is_worth_telling_are_told() -> None:
    starved = dataclasses.replace(PROGRESS, data_wait=0.12, attempt=1, goodput=0.9712)
    assert progress_line(starved, 1012.0) == (
        "base 120/800  left 0:05:57  15.2 examples/s  waits 12% for data  loss 0.4312  commit 112, 12 s ago  "
        "goodput 97.1%  workers 2"
    )
    fed = dataclasses.replace(PROGRESS, data_wait=0.04)
    assert progress_line(fed, 1012.0) == progress_line(PROGRESS, 1012.0)


def test_a_standstill_takes_the_place_of_the_pace() -> None:
    line = progress_line(PROGRESS, 1012.0, 79, "no step for 25 s: waiting for a batch")
    assert line == ("base 120/800  no step for 25 s: waiting for a batch  loss 0.4312  restarts 1")


def test_before_the_workers_are_up_and_at_the_end_nothing_is_guessed() -> None:
    begun = dataclasses.replace(
        PROGRESS, step=0, examples_per_second=0.0, loss=None, commit_step=None, attempt=1
    )
    assert progress_line(begun, 0.0) == "base 0/800  workers 2"
    ended = dataclasses.replace(PROGRESS, step=800, examples_left=0)
    assert "left" not in progress_line(ended, 1012.0)


def test_it_stands_still_after_ten_seconds_or_three_steps() -> None:
    times = iter([0, 0, 9, 10, 12, 20, 52, 90, 172])
    watch = Standstill(lambda: next(times))
    assert [watch.seconds(0) for _ in range(3)] == [None, None, 10]
    assert [watch.seconds(1) for _ in range(2)] == [None, None]
    # The second step took 40 s: only after 120 s without a third it is one.
    assert [watch.seconds(2) for _ in range(3)] == [None, None, 120]


SHOW = """
import sys, time
from raymat.console import Display
display = Display(sys.stderr)
for step in range(30):
    display.show(f"base {step}/30  " + "x" * 200)
    if step % 10 == 5:
        display.print(f"validation of step {step}: loss 0.5")
display.show("base 30/30 " + "y" * 200, last=True)
"""


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_terminal_is_left_with_garbage(width: int) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    status, terminal, _ = record([sys.executable, "-c", SHOW], width, environment)
    assert status == 0
    assert terminal.wrapped == []
    assert terminal.shown() == [
        *(f"validation of step {step}: loss 0.5" for step in (5, 15, 25)),
        ("base 30/30 " + "y" * 200)[: width - 1],
        "",
    ]


def test_the_terminal_of_the_tests_wraps_what_is_too_wide() -> None:
    terminal = Terminal(10)
    terminal.feed("0123456789ab\r\x1b[2Kc\n")
    assert (terminal.shown(), terminal.wrapped) == (["0123456789", "c", ""], ["0123456789"])


def test_a_validation_is_a_line_that_says_whether_it_is_the_best() -> None:
    done = ValidationDone(
        step=20, loss=0.5312, metrics={"sad": 3.409, "mse": None}, seconds=1.0, place="loop", waited=0.0
    )  # fmt: skip
    line = "validation of step 20: loss 0.5312, sad 3.409, mse not finite"
    assert done.line == line
    assert dataclasses.replace(done, best=True).line == f"{line}, the best so far"
    assert "best" not in done.to_dict()


def run_of(folder: Path, **options: Any) -> Any:
    config = tiny("base", folder, "run", steps=7, device="cpu", precision="fp32", **options)
    store = Store.open(config.storage, config.name)
    return config, store, open_run(config, store)


def test_a_run_opens_with_few_short_lines(tmp_path: Path) -> None:
    _, _, run = run_of(tmp_path)
    shown = opening(run, run.source.open()).replace(str(tmp_path), "/data")
    assert shown.splitlines() == [
        "data        64 synthetic pairs and backgrounds, 6 to validate on",
        "network     base, mobilenetv2, new weights",
        "workers     1 on cpu, fp32",
        "length      7 steps of 8 examples",
        "saves       every 7 steps, and at each epoch's end; kept: the newest 3, the best",
        "validation  every 20 steps, 6 examples",
        "run         /data/run",
        "watch       tensorboard --logdir /data/run/tensorboard",
    ]
    assert progress_line(first_progress(run), time.time()) == "base 0/7  workers 1"


def test_a_resumed_run_names_its_own_weights_and_no_new_ones(tmp_path: Path) -> None:
    config, store, run = run_of(tmp_path, epoch_examples=56)
    extra = {"format": 1, "step": 4, "validations": []}
    snapshot = Snapshot(4, {"weight": torch.arange(10.0)}, extra)
    write_share(store, CheckpointId(4, 1), snapshot, World(), run.run_id)
    again = open_run(config, store)
    shown = opening(again, again.source.open()).splitlines()
    assert shown[1] == "network     base, mobilenetv2, weights of its own"
    assert shown[3] == "length      7 steps of 8 examples, 1 epoch of 56, from step 4"


def test_a_run_says_as_it_opens_which_options_it_does_not_use(tmp_path: Path) -> None:
    _, _, run = run_of(tmp_path, refine_mode="full")
    last = opening(run, run.source.open()).splitlines()[-1]
    assert last == "ignored     --refine-mode: not used, base has no refiner"


def test_a_run_closes_with_its_best_and_commands_to_go_on_with(tmp_path: Path) -> None:
    config, store, run = run_of(tmp_path)
    found = [{"step": 4, "loss": 0.25, "metrics": {"sad": 1.5}}, {"step": 7, "loss": 0.5}]
    extra = {"format": 1, "step": 7, "validations": found}
    snapshot = Snapshot(7, {"weight": torch.arange(10.0)}, extra)
    write_share(store, CheckpointId(7, 1), snapshot, World(), run.run_id)
    for path in ("a.png", "b.png", "a.png"):
        EventLog.for_driver(store).emit(ImageReplaced(path=path, reason="torn", example=3))
    validations = read_status(store, config, run.order, scan(store)).validations
    assert closing(config, store, validations).replace(str(tmp_path), "/data").splitlines() == [
        "best      step 4: loss 0.25, sad 1.5",
        "final     step 7: loss 0.5",
        "replaced  2 pictures that could not be used, for which others stood in (events/)",
        "weights   /data/run@best, newest /data/run",
        "next      raymat evaluate /data/run@best",
        "          raymat export /data/run@best -o run.pth",
        "          raymat matte /data/run@best --source photo.jpg --background empty.jpg -o out.png",
        "          tensorboard --logdir /data/run/tensorboard",
    ]
