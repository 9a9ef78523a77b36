"""What a run's validations say, read from what a checkpoint holds beside its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from raymat.config import Mode


def metric_of(extra: Mapping[str, Any]) -> tuple[str, Mode]:
    """The metric by which the run chooses its best checkpoint, and which end of it is better."""
    config = extra.get("config")
    config = config if isinstance(config, dict) else {}
    mode: Mode = "max" if config.get("best_mode") == "max" else "min"
    return str(config.get("best_metric") or "loss"), mode


def validated(extra: Mapping[str, Any], metric: str = "loss") -> dict[int, float]:
    """The metric of each validation by step, as far as it has it and it is finite."""
    found = {}
    for validation in _validations(extra):
        value = _fields(validation).get(metric)
        if isinstance(value, int | float) and math.isfinite(value):
            found[validation["step"]] = float(value)
    return found


def metrics_in(extra: Mapping[str, Any]) -> list[str]:
    """Names of all metrics that any validation has."""
    return sorted({name for validation in _validations(extra) for name in _fields(validation)})


def ranked(values: Mapping[int, float], mode: Mode = "min") -> list[int]:
    """The steps, best first, the earliest of equals first."""
    sign = 1.0 if mode == "min" else -1.0
    return sorted(values, key=lambda step: (sign * values[step], step))


def _validations(extra: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = extra.get("validations")
    found = found if isinstance(found, list) else []
    return [v for v in found if isinstance(v, dict) and type(v.get("step")) is int]


def _fields(validation: dict[str, Any]) -> dict[str, Any]:
    """A validation's numbers by name, whether they stand beside the step or below `metrics`."""
    metrics = validation.get("metrics")
    flat = {n: v for n, v in validation.items() if n not in ("step", "metrics")}
    return flat | (metrics if isinstance(metrics, dict) else {})
