"""Length: how many steps the run has, and what a step is made of."""

from __future__ import annotations

from collections.abc import Iterator

from raymat.analysis.preflight.findings import Finding
from raymat.analysis.preflight.subject import Subject
from raymat.config.settled import with_pace
from raymat.config.unused_options import unused_options
from raymat.data.dataset.run_dataset import sample_order
from raymat.data.lineage import NO_LINEAGE
from raymat.errors import ConfigError
from raymat.train.run.extension import total_examples
from raymat.train.run.schedule import Schedule


def check_length(subject: Subject) -> Iterator[Finding]:
    """Say how long the run is, in steps, examples and epochs; find what no schedule can be made of, and options without use."""
    config, source = subject.config, subject.source
    yield from (Finding("warning", line) for line in unused_options(config))
    if source is None or not subject.trainable:
        return
    config = with_pace(config, source.pairs)
    total = total_examples(config, source.pairs, NO_LINEAGE)
    try:
        schedule = Schedule.of(config, sample_order(config, source, total))
    except ConfigError as error:
        yield Finding("error", error.line)
        return
    size = config.data.batch_size
    if size > source.pairs:
        yield Finding(
            "note",
            f"--batch-size {size} is more than the {source.pairs:,} pairs: a step has some of them twice",
        )
    steps, epochs = schedule.total_steps, schedule.epoch(schedule.total_steps)
    yield Finding(
        "note",
        f"{steps:,} steps of {size} examples: {total:,} examples, {epochs:.4g} epochs of {schedule.epoch_examples:,}",
        data={"steps": steps, "examples": total, "epochs": epochs},
    )
