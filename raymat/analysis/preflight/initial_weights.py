"""Weights that a run starts from: can they be read, and what of them fits its network."""

from __future__ import annotations

from collections.abc import Iterator

from raymat.analysis.preflight.findings import Finding
from raymat.analysis.preflight.subject import Subject
from raymat.checkpoint.catalog import scan
from raymat.config.run import from_dict
from raymat.errors import StorageError, WeightsError
from raymat.storage.store import Store
from raymat.train.run.run_file import read_run
from raymat.train.run.selected_weights import match_init


def check_weights(subject: Subject) -> Iterator[Finding]:
    """Read the weights of --init, and compare them with the run's network."""
    config = subject.config
    if config.model.init is None:
        yield Finding("note", "none: training starts from random ones (--init)")
        return
    if subject.stores and _goes_on(Store.open(config.storage, config.name), config.model.init):
        yield Finding("note", "--init is not read: the run goes on from its newest checkpoint")
        return
    try:
        report = match_init(config)
    except WeightsError as error:
        yield Finding("error", error.line)
    except StorageError as error:
        yield Finding("unseen", error.line)
    else:
        yield Finding("note", report.summary, data={"matched": len(report.matched)})


def _goes_on(store: Store, init: str) -> bool:
    """Whether a run of these first weights has a checkpoint there."""
    stored = read_run(store)
    if stored is None or from_dict(stored["config"]).model.init != init:
        return False
    return any(status.state == "committed" for status in scan(store))
