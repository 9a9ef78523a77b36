"""Weights that a run starts from: can they be read, and what of them fits its network."""

from __future__ import annotations

from collections.abc import Iterator

from raymat.analysis.preflight.findings import Finding
from raymat.analysis.preflight.subject import Subject
from raymat.errors import StorageError, WeightsError
from raymat.train.run.selected_weights import match_init


def check_weights(subject: Subject) -> Iterator[Finding]:
    """Read the weights of --init, and compare them with the run's network."""
    config = subject.config
    if config.model.init is None:
        yield Finding("note", "none: training starts from random ones (--init)")
        return
    try:
        report = match_init(config)
    except WeightsError as error:
        yield Finding("error", error.line)
    except StorageError as error:
        yield Finding("unseen", error.line)
    else:
        yield Finding("note", report.summary, data={"matched": len(report.matched)})
