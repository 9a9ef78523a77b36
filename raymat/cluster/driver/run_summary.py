"""What a user reads before a run and after it: what will happen, what came of it, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from raymat.analysis.goodput.ledger import make_ledger
from raymat.analysis.goodput.table import goodput_table
from raymat.config.run import RunConfig
from raymat.config.unused_options import unused_options
from raymat.console import columns, count
from raymat.data.dataset.source import Source
from raymat.storage.store import Store
from raymat.storage.urls import redact
from raymat.train.observability.event_kinds import parse_event
from raymat.train.observability.events import read_events
from raymat.train.observability.progress import Progress
from raymat.train.observability.training_events import ImageReplaced
from raymat.train.observability.validation_events import values_line
from raymat.train.run.open_run import OpenedRun
from raymat.train.run.schedule import Schedule
from raymat.train.validation.criteria import Validation, best_of

Rows = list[tuple[str, str]]


def opening(run: OpenedRun, source: Source, metrics: str | None = None) -> str:
    """Format what is about to be trained, and how to watch it, in a few aligned lines. `metrics`: where Prometheus finds them."""
    config, order = run.config, run.order
    schedule = Schedule.of(config, order)
    steps = f"{count(order.total_steps, 'step')} of {config.data.batch_size} examples"
    epochs = round(schedule.total_examples / schedule.epoch_examples, 1)
    unit = "epoch" if epochs == 1 else "epochs"
    passes = f", {epochs:,g} {unit} of {schedule.epoch_examples}" if epochs else ""
    resumed = run.status.step if run.resumed else 0
    begins = f", from step {resumed}" if resumed else ""
    kept = config.checkpoint
    workers = f"{config.workers.workers} on {config.workers.device}"
    init = f"weights of {redact(config.model.init)}" if config.model.init else "new weights"
    weights = "weights of its own" if resumed else init
    rows = [
        *_data(config, source),
        ("network", f"{config.stage}, {config.model.backbone}, {weights}"),
        ("workers", f"{workers}, {config.optim.precision}"),
        ("length", f"{steps}{passes}{begins}"),
        ("saves", f"{_saves(schedule.checkpoint_interval)}; kept: the newest {kept.keep}, the best"),
        *_validation(schedule.valid_interval, config.log.valid_examples),
        ("run", _bare(run.store)),
        ("watch", f"tensorboard --logdir {shlex.quote(_bare(run.store) + '/tensorboard')}"),
        *([("metrics", metrics)] if metrics else []),
        *(("ignored", line) for line in unused_options(config)),
    ]  # fmt: skip
    return columns(rows)


def _saves(interval: int | None) -> str:
    if interval is None:
        return "automatic intervals, and at each epoch's end"
    return f"every {count(interval, 'step')}, and at each epoch's end"


def first_progress(run: OpenedRun) -> Progress:
    """Return what is known of a run's progress before its workers are up."""
    step, order = run.status.step, run.order
    return Progress(
        stage=run.config.stage,
        step=step,
        total_steps=order.total_steps,
        examples_left=order.total_examples,
        examples_per_second=0.0,
        loss=None,
        valid_loss=None,
        commit_step=None,
        commit_time=None,
        world=run.config.workers.workers.high,
        attempt=1,
    )


def closing(config: RunConfig, store: Store, validations: Sequence[Validation]) -> str:
    """Format where a complete run's time went, what has come of it, and commands for what may come next, in aligned lines.

    `validations`: its recorded ones, by step.

    Raises:
        StorageError: the storage cannot be read.
    """
    best = best_of(validations, config.checkpoint.best_metric, config.checkpoint.best_mode)
    where, events = _bare(store), read_events(store)
    weights = shlex.quote(f"{where}@best" if best else where)
    rows = [
        *([("best", _values(best))] if best else []),
        *([("final", _values(validations[-1]))] if validations else []),
        *_replaced(events),
        ("weights", f"{weights}, newest {shlex.quote(where)}" if best else weights),
        *_next(
            f"raymat evaluate {weights}",
            f"raymat export {weights} -o {config.name}.pth",
            f"raymat matte {weights} --source photo.jpg --background empty.jpg -o out.png",
            f"tensorboard --logdir {shlex.quote(where + '/tensorboard')}",
        ),
    ]
    return "\n\n".join(filter(None, (goodput_table(make_ledger(events)), columns(rows))))


def _data(config: RunConfig, source: Source) -> Rows:
    data, held = config.data, f"{source.valid_pairs} to validate on"
    if data.synthetic is not None:
        return [("data", f"{source.pairs} synthetic pairs and backgrounds, {held}")]
    pairs, backgrounds = (
        [redact(url) for url in (urls or "").splitlines()]
        for urls in (data.dataset, data.backgrounds)
    )
    return [
        ("data", f"{count(source.pairs, 'pair')}, {held}: {pairs[0]}"),
        *(("", f"and {url}") for url in pairs[1:]),
        ("", f"{count(source.backgrounds, 'background')}: {backgrounds[0]}"),
        *(("", f"and {url}") for url in backgrounds[1:]),
    ]


def _validation(interval: int, examples: int) -> Rows:
    told = f"every {count(interval, 'step')}, {count(examples, 'example')}" if examples else "none"
    return [("validation", told)]


def _values(validation: Validation) -> str:
    return f"step {validation.step}: {values_line(validation.loss, validation.metrics)}"


def _replaced(events: Sequence[dict[str, Any]]) -> Rows:
    replaced = (e for e in map(parse_event, events) if isinstance(e, ImageReplaced))
    files = {event.path for event in replaced}
    told = f"{count(len(files), 'picture')} that could not be used, for which others stood in"
    return [("replaced", f"{told} (events/)")] if files else []


def _next(*commands: str) -> Iterable[tuple[str, str]]:
    return [("next" if i == 0 else "", command) for i, command in enumerate(commands)]


def _bare(store: Store) -> str:
    """Return the run's URL as commands take it: a path where it is one."""
    return redact(store.url).removeprefix("file://")
