"""All checks, in their order."""

from __future__ import annotations

import dataclasses

from raymat.analysis.preflight.duplicates import check_duplicates
from raymat.analysis.preflight.findings import Finding, Report, Section
from raymat.analysis.preflight.folders import find_pictures
from raymat.analysis.preflight.initial_weights import check_weights
from raymat.analysis.preflight.picture_files import check_pictures
from raymat.analysis.preflight.run_length import check_length
from raymat.analysis.preflight.storage_room import check_storage
from raymat.analysis.preflight.subject import Check, Subject
from raymat.analysis.preflight.training_device import check_device
from raymat.analysis.run_pictures import open_source
from raymat.data.dataset.source import FolderSource, Source
from raymat.errors import DataError, StorageError
from raymat.storage.retry import RetryPolicy

CHECKS: tuple[tuple[str, Check], ...] = (
    ("pictures", check_pictures),
    ("train/ and valid/", check_duplicates),
    ("length", check_length),
    ("weights", check_weights),
    ("storage", check_storage),
)


def examine(subject: Subject) -> tuple[Subject, Report]:
    """List the subject's pictures and run every check; return it with them, and what was found.

    Raises:
        DataError: the dataset's URL cannot be opened at all.
    """
    config = subject.config
    listing, findings = find_pictures(config)
    source: Source | None = None
    if listing is not None:
        source = FolderSource(listing, RetryPolicy())
    elif config.data.synthetic is not None:
        source = open_source(config.data, config.data.seed, config.data.resolution, None, ())
    subject = dataclasses.replace(subject, listing=listing, source=source)
    folders = Section("folders")
    folders.add(findings)
    checks = list(CHECKS)
    if config.workers.device == "cuda":
        checks.append(("device", check_device))
    return subject, Report((folders, *(_section(title, check, subject) for title, check in checks)))


def _section(title: str, check: Check, subject: Subject) -> Section:
    section = Section(title)
    try:
        section.add(check(subject))
    except (DataError, StorageError) as error:
        section.add([Finding("unseen", error.line)])
    return section
