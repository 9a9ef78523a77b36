"""Chooses checkpoints of a run: the best by a metric, or the one before its curve flattens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raymat.analysis.plateau import Point, binned, find_plateau
from raymat.checkpoint.catalog import Status, newest_extra
from raymat.checkpoint.integrity import verify_checkpoints
from raymat.config.sections import Mode
from raymat.console import count
from raymat.errors import CheckpointError, ConfigError
from raymat.storage.store import Store
from raymat.train.observability.logger import Row
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.run.run_url import list_checkpoints
from raymat.train.validation.criteria import metric_of, metrics_in, ranked, validated

TRAIN = "train_"
"""Prefix of the names of what training rows hold, as in train_loss."""
MEASURED = 3
"""Checkpoints without a value that a note names, at most."""


@dataclass(frozen=True)
class Choice:
    """The chosen checkpoints, best first."""

    url: str
    metric: str
    points: tuple[Point, ...]
    notes: tuple[str, ...] = ()
    """Why others were passed over."""
    verdict: str = ""
    """The plateau found, or why there is none."""

    @property
    def names(self) -> list[str]:
        """References to the checkpoints, as `raymat.train.run.weights_reference` reads them."""
        ema = "@ema" if self.metric.startswith("ema_") else ""
        return [f"{self.url}@{point.step}{ema}" for point in self.points]


@dataclass(frozen=True)
class MetricCurve:
    """A metric of a run by step, and the committed checkpoints to choose from."""

    store: Store
    metric: str
    mode: Mode
    points: Sequence[Point]
    """Finite values, each step once."""
    committed: Sequence[Status] = field(repr=False)

    @property
    def steps(self) -> list[int]:
        """Steps that have a committed checkpoint."""
        return sorted({status.id.step for status in self.committed})

    def best(self, top: int) -> Choice:
        """Choose the `top` best checkpoints that verify.

        Raises:
            CheckpointError: no checkpoint with a value verifies.
        """
        if self.metric.startswith(TRAIN):
            values = _means(self.steps, self.points)
        else:
            values = {p.step: p for p in self.points}
        order = ranked({s: values[s].value for s in self.steps if s in values}, self.mode)
        notes: list[str] = []
        found: list[Point] = []
        for step in order:
            if len(found) < top and self._verifies(step, notes):
                found.append(values[step])
        if not found:
            counts = f"{count(len(self.points), 'point')} of {self.metric}, {count(len(order), 'checkpoint')} at one of them"
            message = f"{self.store.url} has no verified checkpoint with a {self.metric} ({counts})"
            raise CheckpointError("; ".join([message, *notes]))
        missing = [step for step in self.steps if step not in values]
        if missing and len(found) < top:
            notes.append(self._unmeasured(missing))
        return Choice(self.store.url, self.metric, tuple(found), tuple(notes))

    def _unmeasured(self, steps: Sequence[int]) -> str:
        """Say that checkpoints of these steps have no value to be chosen by, and what measures them."""
        told = (
            f"{len(steps)} of {count(len(self.steps), 'checkpoint')} passed over: no {self.metric}"
        )
        if self.metric.startswith(TRAIN):
            return f"{told} was logged since the one before"
        points = tuple(Point(step, 0.0, 0.0) for step in steps[-MEASURED:])
        names = " ".join(Choice(self.store.url, self.metric, points).names)
        most = f" (the newest {MEASURED})" if len(steps) > MEASURED else ""
        return f"{told} was validated there; measure them{most}: raymat evaluate {names}"

    def before_plateau(self, window: int | None, threshold: float) -> Choice:
        """Choose the newest checkpoint at or before the start of the last plateau; see `find_plateau`.

        Raises:
            CheckpointError: no checkpoint verifies.
        """
        points = binned(self.points) if self.metric.startswith(TRAIN) else self.points
        plateau = find_plateau(points, window=window, threshold=threshold, mode=self.mode)
        if plateau.start is None:
            reason = f"{self.metric} has no plateau: {plateau.reason}"
            return Choice(self.store.url, self.metric, (), (), reason)
        knee = points[plateau.start]
        notes: list[str] = []
        step = self._newest_before(knee.step, notes)
        if step > knee.step:
            notes.append(f"no checkpoint is left of step {knee.step} or before: this one is later")
        verdict = (
            f"from step {knee.step} on ({knee.examples:.0f} examples) no {plateau.window:.0f} examples improve "
            f"{self.metric} by {threshold:.1%} or more"
        )
        chosen = _nearest(self.points, step)
        return Choice(self.store.url, self.metric, (chosen,), tuple(notes), verdict)

    def _newest_before(self, knee: int, notes: list[str]) -> int:
        """Find the step of the newest checkpoint at or before step `knee` that verifies, or else of the next after it."""
        before = [step for step in reversed(self.steps) if step <= knee]
        after = [step for step in self.steps if step > knee]
        for step in before + after:
            if self._verifies(step, notes):
                return step
        raise CheckpointError(
            "; ".join([f"{self.store.url} has no checkpoint that verifies", *notes])
        )

    def _verifies(self, step: int, notes: list[str]) -> bool:
        """Check whether a checkpoint of that step verifies; add to `notes` why others of it do not."""
        for status in self.committed:
            if status.id.step == step:
                (verdict,) = verify_checkpoints(self.store, [status])
                if verdict.state == "good":
                    return True
                notes.append(f"passed over {status.id}: {verdict.state}: {verdict.reason}")
        return False


def read_curve(store: Store, metric: str | None = None, mode: Mode | None = None) -> MetricCurve:
    """Read a metric's curve from storage; default: the metric and mode by which the run chooses its best checkpoint.

    Raises:
        ConfigError: the run has no such metric. CheckpointError: no checkpoint verifies. StorageError: there is no
        such run, or its storage fails.
    """
    statuses = list_checkpoints(store)
    extra = newest_extra(store, statuses)
    if not extra:
        raise CheckpointError(f"{store.url} has no checkpoint that verifies")
    own, own_mode = metric_of(extra)
    metric = metric or own
    mode = mode or (own_mode if metric == own else "min")
    committed = [status for status in statuses if status.state == "committed"]
    return MetricCurve(store, metric, mode, _read_points(store, extra, metric), committed)


def _read_points(store: Store, extra: Mapping[str, Any], metric: str) -> list[Point]:
    rows = read_metrics(store)
    if metric.startswith(TRAIN):
        points = list(_points_of(rows, "train", metric.removeprefix(TRAIN)))
    else:
        found = {point.step: point for point in _points_of(rows, "valid", metric)}
        examples: dict[int, Any] = {int(row["step"]): row.get("examples") for row in rows}
        config = extra.get("config")
        batch = config.get("batch_size", 1) if isinstance(config, dict) else 1
        for step, value in validated(extra, metric).items():
            found[step] = Point(step, float(examples.get(step, 0) or step * batch), value)
        # Step 0 has no checkpoint.
        points = [found[step] for step in sorted(found) if step > 0]
    if not points:
        train = {TRAIN + n for row in rows if row.get("kind") == "train" for n in _numbers(row)}
        there = ", ".join(sorted({*metrics_in(extra), *train}))
        raise ConfigError(
            f"{store.url} has no {metric} yet: there is {there or 'no validation and no training row'}"
        )
    return points


def _points_of(rows: Iterable[Row], kind: str, name: str) -> Iterator[Point]:
    for row in rows:
        value = _numbers(row).get(name)
        if row.get("kind") == kind and value is not None:
            yield Point(int(row["step"]), float(row.get("examples") or row["step"]), value)


def _numbers(row: Row) -> dict[str, float]:
    """Return what a row measures, by name, whether it stands in the row or below its `metrics`."""
    place = {"step", "examples", "epoch", "time", "count"}
    metrics = row.get("metrics")
    flat = {**row, **(metrics if isinstance(metrics, dict) else {})}
    return {
        name: float(value)
        for name, value in flat.items()
        if name not in place and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _means(steps: Sequence[int], points: Sequence[Point]) -> dict[int, Point]:
    """Return, for each checkpoint's step, the mean of the points since the checkpoint before it."""
    found, before = {}, 0
    for step in steps:
        since = [p for p in points if before < p.step <= step]
        if since:
            (mean,) = binned(since, 1)
            found[step] = Point(step, mean.examples, mean.value)
        before = step
    return found


def _nearest(points: Sequence[Point], step: int) -> Point:
    """Return the point at `step`, or one there with the value of the nearest point."""
    near = min(points, key=lambda point: (abs(point.step - step), point.step))
    share = near.examples / near.step if near.step else 0.0
    return near if near.step == step else Point(step, step * share, near.value)
