"""A run's metrics for Prometheus, through Ray's own (docs/metrics.md).

All are gauges, set by one process, the driver, to what the run is. So no worker that dies takes its share of a sum with it or
counts a step twice, and a driver that follows another goes on with the run's numbers. A step that is done again after a restart
is not a further step: the gauge falls back, as the run does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray.util.metrics import Gauge

from raymat.cluster.blackboard import Line
from raymat.config.run import RunConfig
from raymat.train.observability.progress import Progress

PREFIX = "ray_"
"""What Ray puts before the names of a program's own metrics."""
LABELS = ("run", "stage")


@dataclass(frozen=True)
class RunMetric:
    """One metric, and where it comes from."""

    name: str
    """As Ray is told it, with its unit."""
    meaning: str
    value: Callable[[Progress], float | None]
    """Returns None while it is not known."""


METRICS = (
    RunMetric("raymat_step", "completed steps", lambda p: p.step),
    RunMetric("raymat_planned_steps", "steps of the whole run", lambda p: p.total_steps),
    RunMetric("raymat_examples_left", "examples up to the run's end", lambda p: p.examples_left),
    RunMetric("raymat_loss", "training loss of the newest row, if it is finite", lambda p: p.loss),
    RunMetric("raymat_valid_loss", "loss of the newest validation", lambda p: p.valid_loss),
    RunMetric(
        "raymat_step_seconds",
        "duration of a step, its wait for data included: mean since the row before",
        lambda p: p.step_seconds,
    ),
    RunMetric(
        "raymat_examples_per_second",
        "of all workers together, validations and saves included",
        lambda p: p.examples_per_second,
    ),
    RunMetric(
        "raymat_data_wait_ratio",
        "share of the steps' time, 0 to 1, for which the worker that waited longest waited for data",
        lambda p: p.data_wait,
    ),
    RunMetric("raymat_commit_step", "step of the newest commit", lambda p: p.commit_step),
    RunMetric(
        "raymat_commit_timestamp_seconds",
        "when the newest commit was made or, after a restart, restored, in Unix seconds: time() minus this is its age",
        lambda p: p.commit_time,
    ),
    RunMetric(
        "raymat_save_stall_seconds",
        "for how long training stood still for the newest commit",
        lambda p: p.save_stall,
    ),
    RunMetric(
        "raymat_restarts",
        "attempts of the run before this one, of all its drivers",
        lambda p: p.attempt - 1,
    ),
    RunMetric(
        "raymat_replaced_examples",
        "examples that were trained with a substitute for a picture that cannot be read",
        lambda p: p.replaced,
    ),
    RunMetric(
        "raymat_goodput_ratio",
        "share of all workers' time, 0 to 1, that was training which counts",
        lambda p: p.goodput,
    ),
    RunMetric("raymat_workers", "workers that train", lambda p: p.world),
)


class MetricsExporter:
    """Hands a run's metrics to Ray, whose agent on this machine serves them to Prometheus."""

    def __init__(self, config: RunConfig) -> None:
        """Make the gauges. No label grows while a run trains: attempts, ranks and steps are none."""
        labels = dict(zip(LABELS, (config.name, config.stage), strict=True))
        self._gauges = [(metric, _gauge(metric, labels)) for metric in METRICS]
        self._shown: Progress | None = None

    def look(self, progress: Progress, lines: Sequence[Line]) -> None:
        """Show `progress`, unless it is what is shown: workers tell another with each training row and each commit."""
        if progress == self._shown:
            return
        self._shown = progress
        for metric, gauge in self._gauges:
            value = metric.value(progress)
            if value is not None:
                gauge.set(value)


def _gauge(metric: RunMetric, labels: dict[str, str]) -> Gauge:
    gauge = Gauge(metric.name, description=metric.meaning, tag_keys=LABELS)
    return gauge.set_default_tags(labels)
