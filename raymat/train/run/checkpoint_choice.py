"""The checkpoints that a reference to weights may mean, the best choice first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raymat.checkpoint.catalog import Status, newest_extra, scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.errors import WeightsError
from raymat.storage.store import Store
from raymat.storage.urls import redact
from raymat.train.run.run_file import RUN_FILE
from raymat.train.run.run_url import meant_run
from raymat.train.run.weights_reference import WEIGHT_FILES, Request
from raymat.train.validation.criteria import metric_of, ranked, validated

OnSkip = Callable[[CheckpointId, str], None]
"""Called with each better choice that was passed over (torn, damaged, no longer there) and why; a checkpoint that is not there
has attempt 0."""


def candidates(
    store: Store, request: Request, checkpoint: CheckpointId | None, on_skip: OnSkip
) -> Iterator[Status]:
    """Yield the checkpoints that the request may mean, the best choice first.

    `checkpoint`: the one that its URL names, if it names one. Raises WeightsError where there is nothing.
    """
    statuses = scan(store)
    if not statuses:
        raise _no_run(store, request)
    if request.best:
        yield from _by_validation(store, request, statuses, on_skip)
        return
    found = [
        s
        for s in statuses
        if (checkpoint is None or s.id == checkpoint)
        and (request.step is None or s.id.step == request.step)
    ]
    if not found:
        wanted = str(checkpoint) if checkpoint else f"checkpoint of step {request.step}"
        step = checkpoint.step if checkpoint else request.step
        assert step is not None
        raise WeightsError(f"there is no {wanted} in {store.url}{_nearest(statuses, step)}")
    yield from found


def _no_run(store: Store, request: Request) -> WeightsError:
    if store.try_read(RUN_FILE) is not None:
        return WeightsError(f"{store.url} has no checkpoint yet")
    return WeightsError(
        f"{redact(request.url)} is neither a weights file ({', '.join(WEIGHT_FILES)}) nor a run with a checkpoint"
        f"{meant_run(store)}"
    )


def _nearest(statuses: list[Status], step: int) -> str:
    """Say where else to look, as the end of a message."""
    steps = [s.id.step for s in statuses if s.state == "committed"]
    if not steps:
        return ", nor any other that is committed"
    near = min(steps, key=lambda other: (abs(other - step), other))
    return f": the nearest that is committed is @{near}"


def _by_validation(
    store: Store, request: Request, statuses: list[Status], on_skip: OnSkip
) -> Iterator[Status]:
    """Yield the checkpoints of the run's validations, best first."""
    extra = newest_extra(store, statuses)
    if not extra:
        raise WeightsError(
            f"{store.url} has no checkpoint that verifies, so that nobody knows its best"
        )
    metric, mode = metric_of(extra)
    values = validated(extra, metric)
    if not values:
        raise WeightsError(
            f"{store.url} has no validation with a finite {metric} yet: use its newest checkpoint, {redact(request.url)}"
        )
    there = False
    for step in ranked(values, mode):
        found = [s for s in statuses if s.id.step == step]
        there = there or bool(found)
        if not found:
            told = f"the checkpoint of step {step} ({metric} {values[step]:.6g}) is no longer there"
            on_skip(CheckpointId(step, 0), told)
        yield from found
    if not there:
        best = ranked(values, mode)[0]
        raise WeightsError(
            f"{store.url} has no checkpoint of any step that was validated{_nearest(statuses, best)} (to the best, {best})"
        )
