"""`raymat select`: the checkpoints of a run that are best by a metric, or the one before its curve flattens."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from raymat.analysis.plateau import THRESHOLD, Point, binned, find_plateau
from raymat.checkpoint.catalog import Status, newest_extra
from raymat.cli.runs import list_checkpoints, open_run
from raymat.cli.verify import check
from raymat.config.run import Mode
from raymat.console import Url, columns, count, parse_options
from raymat.errors import CheckpointError, ConfigError
from raymat.storage.store import Store
from raymat.train.observability.logger import Row
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.validation.criteria import metric_of, metrics_in, ranked, validated

FOUND, NOTHING = 0, 1
TRAIN = "train_"
"""Before the names of what training rows hold, as in train_loss."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Name the checkpoints of a run that are best by a metric of its validations, best first.

    With --before-plateau: the one to fine-tune from, the newest at or before the point where the curve
    flattens. The curve is the metric's best value so far, smoothed by a median of three; it is flat
    from the first point from which on, up to its end, no --window of examples improves it by more than
    --threshold of itself. A curve that still improves has no such point.

    Only committed checkpoints of which every digest is right are named. Exit code: 0, or 1 if there is
    no plateau, or 2 for an error.
    """

    url: Url
    """STORAGE/NAME of a run, any fsspec URL."""
    metric: str | None = None
    """A metric of the validations (loss, sad, ..., or ema_loss, ... of the averaged weights), or train_loss:
    the mean over the training rows since the checkpoint before. Default: the run's own --best-metric."""
    mode: Literal["min", "max"] | None = None
    """Which is better, the lowest or the highest. Default: as the run has it; min."""
    top: int = 1
    """So many, best first."""
    before_plateau: bool = False
    """The one before the curve flattens instead of the best."""
    window: int | None = None
    """Of --before-plateau, in examples. Default: a fifth of the curve."""
    threshold: float = THRESHOLD
    """Of --before-plateau: a part of the metric's value."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print nothing but URL@STEP, one a line, as --init and `raymat average` take it."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ConfigError(f"--top must be at least 1, got {self.top}")
        if self.window is not None and self.window < 1:
            raise ConfigError(f"--window must be at least 1, got {self.window}")
        if not 0 < self.threshold < 1:
            raise ConfigError(f"--threshold must be between 0 and 1, got {self.threshold}")
        if self.before_plateau and self.top != 1:
            raise ConfigError("--top and --before-plateau exclude each other")


@dataclass(frozen=True)
class Choice:
    """What was chosen, best first; `notes` say what was passed over, `verdict` the rule's outcome."""

    url: str
    metric: str
    points: tuple[Point, ...]
    notes: tuple[str, ...] = ()
    verdict: str = ""

    @property
    def names(self) -> list[str]:
        """The chosen checkpoints as `raymat.train.run.weights_reference` reads them."""
        ema = "@ema" if self.metric.startswith("ema_") else ""
        return [f"{self.url}@{point.step}{ema}" for point in self.points]

    def text(self) -> str:
        """For a terminal: a table, and what the rule says."""
        rows = [("checkpoint", "examples", self.metric)]
        for name, point in zip(self.names, self.points, strict=True):
            rows.append((name, f"{point.examples:.0f}", f"{point.value:.6g}"))
        return "\n".join([columns(rows)] + ([self.verdict] if self.verdict else []))


def main(argv: Sequence[str]) -> int:
    """`raymat select URL`; returns the exit code. Raises RaymatError if nothing can be chosen."""
    options = parse_options(Options, argv, "raymat select")
    choice = select(options)
    for note in choice.notes:
        print(f"note: {note}", file=sys.stderr)
    if not choice.points:
        print(f"raymat: {choice.verdict}", file=sys.stderr)
        return NOTHING
    print("\n".join(choice.names) if options.quiet else choice.text())
    return FOUND


def select(options: Options, storage: Mapping[str, Any] | None = None) -> Choice:
    """Choose. `storage`: options as for `Store.open`.

    Raises:
        ConfigError: there is no such metric. CheckpointError: no checkpoint of it verifies. StorageError: there is no such
        run, or its storage fails.
    """
    store = open_run(options.url, storage)
    statuses = list_checkpoints(store)
    extra = newest_extra(store, statuses)
    if not extra:
        raise CheckpointError(f"{store.url} has no checkpoint that verifies")
    own, own_mode = metric_of(extra)
    metric = options.metric or own
    mode = options.mode or (own_mode if metric == own else "min")
    committed = [status for status in statuses if status.state == "committed"]
    curve = _curve(store, extra, metric)
    if options.before_plateau:
        return _before_plateau(store, committed, curve, metric, mode, options)
    return _best(store, committed, curve, metric, mode, options.top)


def _best(
    store: Store,
    committed: Sequence[Status],
    curve: Sequence[Point],
    metric: str,
    mode: Mode,
    top: int,
) -> Choice:
    steps = sorted({status.id.step for status in committed})
    values = _at(steps, curve) if metric.startswith(TRAIN) else {p.step: p for p in curve}
    order = ranked({step: values[step].value for step in steps if step in values}, mode)
    notes: list[str] = []
    found: list[Point] = []
    for step in order:
        if len(found) < top and _verified(store, committed, step, notes):
            found.append(values[step])
    if not found:
        told = f"{count(len(curve), 'point')} of {metric}, {count(len(order), 'checkpoint')} at one of them"
        raise CheckpointError(
            "; ".join([f"{store.url} has no verified checkpoint with a {metric} ({told})", *notes])
        )
    return Choice(store.url, metric, tuple(found), tuple(notes))


def _before_plateau(
    store: Store,
    committed: Sequence[Status],
    curve: Sequence[Point],
    metric: str,
    mode: Mode,
    options: Options,
) -> Choice:
    points = binned(curve) if metric.startswith(TRAIN) else list(curve)
    plateau = find_plateau(points, window=options.window, threshold=options.threshold, mode=mode)
    if plateau.start is None:
        return Choice(store.url, metric, (), (), f"{metric} has no plateau: {plateau.reason}")
    knee = points[plateau.start]
    steps = sorted({status.id.step for status in committed})
    before = [step for step in reversed(steps) if step <= knee.step]
    after = [step for step in steps if step > knee.step]
    notes: list[str] = []
    for step in before + after:
        if _verified(store, committed, step, notes):
            break
    else:
        raise CheckpointError("; ".join([f"{store.url} has no checkpoint that verifies", *notes]))
    if step > knee.step:
        notes.append(f"no checkpoint is left of step {knee.step} or before: this one is later")
    verdict = (
        f"from step {knee.step} on ({knee.examples:.0f} examples) no {plateau.window:.0f} examples improve {metric} by "
        f"{options.threshold:.1%} or more"
    )
    chosen = _nearest(curve, step)
    return Choice(store.url, metric, (chosen,), tuple(notes), verdict)


def _verified(store: Store, committed: Sequence[Status], step: int, notes: list[str]) -> bool:
    """Whether a checkpoint of that step verifies; why others of it do not goes to `notes`."""
    for status in committed:
        if status.id.step == step:
            (verdict,) = check(store, [status])
            if verdict.state == "good":
                return True
            notes.append(f"passed over {status.id}: {verdict.state}: {verdict.reason}")
    return False


# The curve.


def _curve(store: Store, extra: Mapping[str, Any], metric: str) -> list[Point]:
    """The metric's finite values by step, each step once; a ConfigError where there are none."""
    rows = read_metrics(store)
    if metric.startswith(TRAIN):
        points = list(_of_rows(rows, "train", metric.removeprefix(TRAIN)))
    else:
        found = {point.step: point for point in _of_rows(rows, "valid", metric)}
        examples: dict[int, Any] = {int(row["step"]): row.get("examples") for row in rows}
        batch = (extra.get("config") or {}).get("batch_size", 1)
        for step, value in validated(extra, metric).items():
            found[step] = Point(step, float(examples.get(step, 0) or step * batch), value)
        # Of the first weights there is no checkpoint.
        points = [found[step] for step in sorted(found) if step > 0]
    if not points:
        there = sorted({*metrics_in(extra), *(TRAIN + n for n in _names(rows, "train"))})
        raise ConfigError(
            f"{store.url} has no {metric} yet: there is {', '.join(there) or 'no validation and no training row'}"
        )
    return points


def _of_rows(rows: Iterable[Row], kind: str, name: str) -> Iterator[Point]:
    for row in rows:
        value = _numbers(row).get(name)
        if row.get("kind") == kind and value is not None:
            yield Point(int(row["step"]), float(row.get("examples") or row["step"]), value)


def _names(rows: Iterable[Row], kind: str) -> set[str]:
    return {name for row in rows if row.get("kind") == kind for name in _numbers(row)}


def _numbers(row: Row) -> dict[str, float]:
    """What a row measures, by name: beside its place, or below `metrics`."""
    place = {"step", "examples", "epoch", "time", "count"}
    metrics = row.get("metrics")
    flat = {**row, **(metrics if isinstance(metrics, dict) else {})}
    return {
        name: float(value)
        for name, value in flat.items()
        if name not in place and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _at(steps: Sequence[int], curve: Sequence[Point]) -> dict[int, Point]:
    """For each checkpoint's step the mean of the points since the checkpoint before."""
    found, before = {}, 0
    for step in steps:
        since = [p for p in curve if before < p.step <= step]
        if since:
            (mean,) = binned(since, 1)
            found[step] = Point(step, mean.examples, mean.value)
        before = step
    return found


def _nearest(curve: Sequence[Point], step: int) -> Point:
    """The point of `curve` at that step, or a point there with the value of the nearest one."""
    near = min(curve, key=lambda point: (abs(point.step - step), point.step))
    share = near.examples / near.step if near.step else 0.0
    return near if near.step == step else Point(step, step * share, near.value)
