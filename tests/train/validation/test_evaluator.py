"""Laws of validation: what it measures, that nobody's share or order shows in it, and which checkpoint it calls best."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from raymat.config.run import RunConfig
from raymat.distributed.world import World
from raymat.errors import ConfigError
from raymat.train.loop import startup
from raymat.train.loop.state import ResumeContract, RunState, capture, install
from raymat.train.loop.train_step import TrainStep
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.optim.forward import ForwardPass
from raymat.train.validation.criteria import Validation, best_of
from raymat.train.validation.evaluator import mean_values
from tests.support import runs
from tests.support.small import build_small


def new_step(config: RunConfig) -> TrainStep:
    torch.set_num_threads(1)
    return TrainStep(
        build_small("base", None, 0),
        ForwardPass(
            stage="base",
            precision="fp32",
            seed=0,
            resolution=config.data.resolution,
            device=torch.device("cpu"),
        ),
        World(),
    )


def valid_rows(config: RunConfig) -> list[dict[str, Any]]:
    return [row for row in read_metrics(runs.store_of(config)) if row["kind"] == "valid"]


def test_an_example_measures_the_same_in_any_company(tmp_path: Path) -> None:
    found = []
    for batch_size in (2, 3, 8):
        config = runs.tiny(tmp_path, "r", valid_examples=5, batch_size=batch_size)
        evaluator = new_step(config).evaluators(("sad", "mse"))[""]
        values: dict[int, Any] = {}
        for batch in runs.Feed(config, World(), {}).valid():
            values |= evaluator(batch)
        found.append(values)
    assert found[0] == found[1] == found[2]
    assert sorted(found[0]) == [0, 1, 2, 3, 4]
    for values in found[0].values():
        assert list(values) == ["loss", "sad", "mse"]
        # 32 x 32 pixels: sad is their sum in thousands, mse their mean square in thousandths, which is less than the mean.
        assert 0 < values["mse"] / 1000 < values["sad"] * 1000 / 32**2 < 1


def test_the_mean_is_the_correctly_rounded_one_in_any_order() -> None:
    # Left to right in floating point, 1e16 + 1 - 1e16 is 0.
    values = {0: {"loss": 1e16}, 1: {"loss": 3.0}, 2: {"loss": -1e16}}
    assert mean_values(values) == {"loss": 1.0}
    assert mean_values(dict(reversed(values.items()))) == {"loss": 1.0}
    assert mean_values({}) == {}


def test_one_example_that_is_not_finite_leaves_no_mean() -> None:
    values = {0: {"loss": math.inf, "sad": 1.0}, 1: {"loss": -math.inf, "sad": 2.0}}
    assert mean_values(values) == {"loss": None, "sad": 1.5}


def test_the_best_is_the_lowest_or_the_highest_and_the_earliest_of_equals() -> None:
    validations = [
        Validation(1, 0.5, {"sad": 4.0}),
        Validation(2, 0.25, {"sad": None}),
        Validation(3, 0.25, {"sad": 3.0}),
        Validation(4, None, {"sad": 9.0}),
    ]
    steps = [
        (best_of(validations, metric, mode) or validations[0]).step
        for metric, mode in (("loss", "min"), ("loss", "max"), ("sad", "min"), ("sad", "max"))
    ]
    assert steps == [2, 1, 3, 4]
    assert best_of(validations, "grad", "min") is None
    assert best_of([], "loss", "min") is None


def test_a_state_without_metrics_is_read_and_one_with_them_comes_back(tmp_path: Path) -> None:
    config = runs.tiny(tmp_path, "r")
    step = new_step(config)
    record = RunState(validations=[Validation(2, 0.5, {"sad": 4.0, "mse": None})])
    tensors, extra = capture(step, record, ResumeContract(config, "synthetic"))
    assert extra["best"] == {"step": 2, "loss": 0.5, "metrics": {"sad": 4.0, "mse": None}}
    assert install(step, tensors, extra).validations == record.validations
    extra["validations"] = [{"step": 2, "loss": 0.5}]
    (old,) = install(step, tensors, extra).validations
    assert (old.value("loss"), old.value("sad")) == (0.5, None)


def test_an_average_of_the_weights_is_measured_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "build", build_small)
    config = runs.tiny(
        tmp_path, "r", steps=2, valid_interval=1, ema_decay=0.9, best_metric="ema_mse"
    )
    outcome = runs.train(World(), config)
    first, *later = valid_rows(config)
    names = ["mse", "sad", "ema_loss", "ema_mse", "ema_sad"]
    assert all(list(row["metrics"]) == names for row in (first, *later))
    # Before the first step the average is the weights, later it is not.
    assert first["metrics"]["ema_sad"] == first["metrics"]["sad"]
    assert all(row["metrics"]["ema_sad"] != row["metrics"]["sad"] for row in later)
    assert outcome.best is not None
    assert outcome.best.value("ema_mse") == min(row["metrics"]["ema_mse"] for row in later)


def test_retention_keeps_the_best_by_the_metric_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "build", build_small)
    config = runs.tiny(
        tmp_path, "r", keep=1, valid_interval=2, valid_metrics="grad,sad,grad", best_metric="sad", best_mode="max"
    )  # fmt: skip
    outcome = runs.train(World(), config, patient=True)
    rows = [row for row in valid_rows(config) if row["step"]]
    assert [list(row["metrics"]) for row in rows] == [["grad", "sad"]] * 4
    worst = max(rows, key=lambda row: row["metrics"]["sad"])
    assert worst["step"] != 8
    assert outcome.best == Validation(worst["step"], worst["loss"], worst["metrics"])
    assert list(runs.checkpoints(config)) == [worst["step"], 8]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"valid_metrics": "loss,psnr"}, "--valid-metrics must be some of loss,mse,sad,grad,conn"),
        ({"valid_metrics": ""}, "--valid-metrics must be some of"),
        ({"best_metric": "grad"}, "--best-metric must be one of loss, mse, sad, got 'grad'"),
        (
            {"best_metric": "ema_loss"},
            "--best-metric must be one of loss, mse, sad, got 'ema_loss'",
        ),
        ({"best_mode": "low"}, "--best-mode must be one of min, max"),
    ],
)
def test_a_metric_that_nobody_measures_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        runs.tiny("x", "y", **options)
