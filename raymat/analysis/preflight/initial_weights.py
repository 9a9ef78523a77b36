"""Weights that a run starts from: can they be read, and what of them fits its network."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from raymat.analysis.preflight.findings import Finding
from raymat.analysis.preflight.subject import Subject
from raymat.errors import StorageError, WeightsError
from raymat.model.matting import construct
from raymat.model.pretrained import match
from raymat.storage.urls import redact
from raymat.train.run.selected_weights import read_weights


def check_weights(subject: Subject) -> Iterator[Finding]:
    """Read the weights of --init, and compare them with the run's network."""
    config = subject.config
    if config.model.init is None:
        yield Finding("note", "none: training starts from random ones (--init)")
        return
    with torch.device("meta"):
        own = construct(config.stage, config.model).state_dict()
    try:
        found = read_weights(config.model.init)
        report = match(own, found.weights, redact(config.model.init))
    except WeightsError as error:
        yield Finding("error", error.line)
    except StorageError as error:
        yield Finding("unseen", error.line)
    else:
        yield Finding("note", report.summary, data={"matched": len(report.matched)})
