"""Decisions by a run's validations: which is the best, whether a plateau lowers the rates, whether to stop early.

All are pure functions of the configuration and of the validations so far, which are part of the state: a run that was
killed comes to the same decisions, and to each of them once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raymat.config.run import RunConfig
from raymat.config.sections import Mode
from raymat.data.lineage import NO_LINEAGE, Lineage, Steps
from raymat.storage.fields import Count, parse_fields


@dataclass(frozen=True)
class Validation:
    """One validation: the means over all validation examples after `step` completed steps."""

    step: Count
    loss: float | None
    """None where it was not finite."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """All else that was measured, by name: `sad`, `mse`, ..., and `ema_loss`, `ema_sad`, ... of averaged weights."""

    def value(self, name: str) -> float | None:
        """Return the metric of this name, or the loss; None where it was not finite or not measured."""
        return self.loss if name == "loss" else self.metrics.get(name)


def validations_of(extra: Mapping[str, Any]) -> list[Validation]:
    """Read the validations from what a checkpoint holds beside its tensors."""
    return [parse_fields(Validation, validation) for validation in extra.get("validations", ())]


def best_of(validations: Iterable[Validation], metric: str, mode: Mode) -> Validation | None:
    """Return the validation with the lowest (`min`) or highest (`max`) value, the earliest of equals."""
    sign = _sign(mode)
    found = [(sign * v, each) for each in validations if (v := each.value(metric)) is not None]
    return min(found, key=lambda pair: (pair[0], pair[1].step))[1] if found else None


@dataclass(frozen=True)
class Trend:
    """A metric's trend up to its newest measurement. Places are in examples."""

    best: float | None
    """The newest value that beat the best before it by more than the minimum change."""
    best_at: int
    """Where that was; without one, where patience began to count."""
    waited: int
    """How long ago that was, as patience counts."""
    expired: int
    """How often patience ran out; each time it starts to count again."""


def follow(
    points: Iterable[tuple[int, float | None]],
    *,
    mode: Mode,
    patience: int,
    min_delta: float,
    begin: int = 0,
) -> Trend:
    """Return the trend of (examples, value) `points` in order; a value of None is no improvement.

    Patience runs out at the first point that is `patience` examples or more after the last improvement, after the last time
    it ran out, and after `begin`.
    """
    sign, best = _sign(mode), math.inf
    best_at = since = begin
    waited = expired = 0
    for at, value in points:
        if value is not None and sign * value < best - min_delta:
            best, best_at, since = sign * value, at, max(at, begin)
        elif at - since >= patience:
            expired, since = expired + 1, at
        waited = at - max(best_at, begin)
    return Trend(sign * best if best < math.inf else None, best_at, waited, expired)


def plateau_reductions(
    config: RunConfig, validations: Sequence[Validation], lineage: Lineage = NO_LINEAGE
) -> int:
    """Count how often a plateau has lowered the rates, by these validations.

    A validation that is there only because the run ended does not count, so that a run that is made longer continues like
    one that always had that length.
    """
    optim = config.optim
    if "plateau" not in config.schedules.values():
        return 0
    interval = config.log.valid_interval
    assert optim.plateau_patience is not None and interval is not None
    regular = [v for v in validations if v.step % interval == 0]
    return follow(
        _points(config, regular, lineage, optim.plateau_metric),
        mode=optim.plateau_mode,
        patience=optim.plateau_patience,
        min_delta=optim.plateau_min_delta,
        begin=optim.warmup_examples,
    ).expired


def stop_reason(
    config: RunConfig, validations: Sequence[Validation], lineage: Lineage = NO_LINEAGE
) -> str | None:
    """Return why the run stops early now, in one line; None if it does not. Patience restarts when the dataset grows."""
    length = config.length
    if not length.early_stop_patience:
        return None
    metric, mode = length.early_stop_metric, length.early_stop_mode
    trend = follow(
        _points(config, [v for v in validations if v.step > lineage.valid_since], lineage, metric),
        mode=mode,
        patience=length.early_stop_patience,
        min_delta=length.early_stop_min_delta,
        begin=max(config.optim.warmup_examples, lineage.start),
    )
    if trend.waited < length.early_stop_patience:
        return None
    if trend.best is None:
        return f"{metric} was not a finite number in {trend.waited} examples"
    verb = "fallen" if mode == "min" else "risen"
    by = f" by more than {length.early_stop_min_delta:g}" if length.early_stop_min_delta else ""
    return f"{metric} has not {verb}{by} for {trend.waited} examples (best {trend.best:.6g} at {trend.best_at})"


def _points(
    config: RunConfig, validations: Iterable[Validation], lineage: Lineage, metric: str
) -> Iterable[tuple[int, float | None]]:
    steps = Steps(config.data.batch_size, lineage.ends)
    return ((steps.examples(v.step), v.value(metric)) for v in validations)


def _sign(mode: Mode) -> float:
    return 1.0 if mode == "min" else -1.0


def metric_of(extra: Mapping[str, Any]) -> tuple[str, Mode]:
    """Return the metric by which the run chooses its best checkpoint, and which end of it is better."""
    config = extra.get("config")
    config = config if isinstance(config, dict) else {}
    mode: Mode = "max" if config.get("best_mode") == "max" else "min"
    return str(config.get("best_metric") or "loss"), mode


def validated(extra: Mapping[str, Any], metric: str = "loss") -> dict[int, float]:
    """Return the metric of each validation by step, where it was measured and is finite."""
    found = {}
    for validation in _validations(extra):
        value = _fields(validation).get(metric)
        if isinstance(value, int | float) and math.isfinite(value):
            found[validation["step"]] = float(value)
    return found


def metrics_in(extra: Mapping[str, Any]) -> list[str]:
    """Return the sorted names of all metrics that any validation has."""
    return sorted({name for validation in _validations(extra) for name in _fields(validation)})


def ranked(values: Mapping[int, float], mode: Mode = "min") -> list[int]:
    """Return the steps, best first, the earliest of equals first."""
    sign = 1.0 if mode == "min" else -1.0
    return sorted(values, key=lambda step: (sign * values[step], step))


def _validations(extra: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = extra.get("validations")
    found = found if isinstance(found, list) else []
    return [v for v in found if isinstance(v, dict) and type(v.get("step")) is int]


def _fields(validation: dict[str, Any]) -> dict[str, Any]:
    """Return a validation's numbers by name, whether they stand beside the step or below `metrics`."""
    metrics = validation.get("metrics")
    flat = {n: v for n, v in validation.items() if n not in ("step", "metrics")}
    return flat | (metrics if isinstance(metrics, dict) else {})
