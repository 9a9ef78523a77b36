"""Options that another option leaves without a meaning are said, with that reason; those that count, and defaults, are not."""

from __future__ import annotations

from typing import Any

import pytest

from raymat.config.run import build
from raymat.config.sections import Stage
from raymat.config.unused_options import unused_options

PLAIN = {"name": "x", "synthetic": 8}
FILES = {"name": "x", "dataset": "data", "backgrounds": "walls"}


@pytest.mark.parametrize(
    ("stage", "options", "lines"),
    [
        ("base", {}, []),
        ("refine", {}, []),
        ("base", {"refine_mode": "sampling"}, []),
        ("base", {"refine_mode": "full"}, ["--refine-mode: not used, base has no refiner"]),
        (
            "base",
            {"lr_refiner": 1e-3, "backbone_scale": 0.5, "schedule_refiner": "plateau"},
            ["--backbone-scale, --lr-refiner, --schedule-refiner: not used, base has no refiner"],
        ),
        ("refine", {"backbone_scale": 0.5, "refine_sample_pixels": 9, "lr_refiner": 1e-3}, []),
        (
            "refine",
            {"refine_mode": "full", "refine_sample_pixels": 9, "refine_threshold": 0.5},
            [
                "--refine-sample-pixels: not used, --refine-mode is full",
                "--refine-threshold: not used, --refine-mode is full",
            ],
        ),
        ("refine", {"refine_mode": "thresholding", "refine_threshold": 0.5}, []),
        ("base", {"step_examples": 8}, ["--step-examples: not used, no --schedule is step"]),
        ("base", {"step_examples": 8, "schedule_aspp": "step"}, []),
        ("base", {"plateau_mode": "max"}, ["--plateau-mode: not used, no --schedule is plateau"]),
        ("base", {"schedule_examples": 8}, ["--schedule-examples: not used, no --schedule is cosine"]),
        ("base", {"schedule_examples": 8, "schedule_floor": 0.1, "schedule": "cosine"}, []),
        ("base", {"schedule_floor": 0.1}, ["--schedule-floor: not used, no --schedule is cosine or plateau"]),
        ("base", {"early_stop_mode": "max"}, ["--early-stop-mode: not used, --early-stop-patience is 0"]),
        ("base", {"early_stop_mode": "max", "early_stop_patience": 8}, []),
        ("base", {"valid_examples": 0}, []),
        ("base", {"valid_examples": 0, "validation": "beside"}, ["--validation: not used, --valid-examples is 0"]),
        ("base", {"pair_suffix": "_a"}, ["--pair-suffix: not used, --synthetic reads no files"]),
        ("base", {**FILES, "synthetic": None, "pair_suffix": "_a"}, []),
    ],
)  # fmt: skip
def test_what_is_not_used_is_said_with_the_reason(
    stage: Stage, options: dict[str, Any], lines: list[str]
) -> None:
    assert unused_options(build(stage, PLAIN | options)) == lines
