"""`raymat prepare`: a smaller copy of a dataset, since decoding large pictures is what feeding a GPU costs."""

from __future__ import annotations

import os
import posixpath
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from raymat.analysis.preflight.findings import FINE, FOUND
from raymat.analysis.preflight.subject import threads
from raymat.config.command_line import parse_options
from raymat.config.options import Check, OptionGroup, Spelling, at_least
from raymat.console import ProgressBar, count, size
from raymat.data.dataset.discovery import list_either
from raymat.data.dataset.file_names import NameRules
from raymat.data.feed import in_order
from raymat.data.preparation.copy_job import CopyJob, CopyOutcome, CopyPlace
from raymat.data.preparation.copy_record import CopyHead, CopyRecord
from raymat.data.preparation.picture_copy import Alpha, CopySettings
from raymat.errors import ConfigError
from raymat.json_lines import tell
from raymat.storage.access import Access
from raymat.storage.store import Store
from raymat.storage.urls import redact, root_problem
from raymat.version import __version__

_NAMED = 10
"""Pictures that are named, of those that are left out."""
_SECONDS = 10.0
"""Work that a kill may cost."""

_PERCENT = Check(lambda value: 1 <= value <= 100, "must be from 1 to 100")

CopyAll = Callable[[CopyJob, Sequence[CopyPlace]], Iterator[CopyOutcome]]


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """Make a smaller copy of a dataset, or of a folder of backgrounds, to train on in its place.

    The copy has the same folders and names, upright pictures in sRGB, and is recorded in its prepared.jsonl with digests. The same
    command goes on with a copy that was interrupted. Exit code: 0 if all was copied, 1 if pictures that cannot be read were left
    out or others lie in the copy, 2 if the copy could not be made.
    """

    source: Annotated[str, Spelling("IN", positional=True)]
    """The dataset, with train/ and valid/: each has fgr/ and pha/, or backgrounds. Any fsspec URL."""
    target: Annotated[str, Spelling("OUT", positional=True)]
    """The copy's folder, empty or begun by the same command. Any fsspec URL."""
    longest: Annotated[int, at_least(16)]
    """Longest side of the copy's pictures in pixels; smaller ones are not enlarged."""
    quality: Annotated[int, _PERCENT] = 92
    """Quality of JPEGs, 1 to 100."""
    alpha: Alpha = "png"
    """How alphas are stored: png is exact, jpeg is smaller and quicker to decode, and errs a little (docs/prepare.md)."""
    pair_suffix: str = ""
    """What the names of alphas have besides their foregrounds'; the copy keeps it."""
    skip_unpaired: bool = False
    """Leave out files without a partner."""

    @property
    def settings(self) -> CopySettings:
        """How pictures are copied."""
        return CopySettings(longest=self.longest, quality=self.quality, alpha=self.alpha)


def main(argv: Sequence[str]) -> int:
    """Run `raymat prepare IN OUT OPTIONS` and return the exit code. Raises RaymatError for what the user can mend."""
    options = parse_options(Options, argv, "raymat prepare")
    store = _open_target(options)
    rules = NameRules(pair_suffix=options.pair_suffix, skip_unpaired=options.skip_unpaired)
    job = CopyJob(list_either(options.source, rules), options.settings, store)
    record = CopyRecord(store, _head(job), [job.sources(place) for place in job.places()])
    record.begin()
    with ProgressBar("prepare", noun="pictures") as bar:
        _copy_missing(job, record, _copier(options), bar)
    removed = record.finish()
    return max(_tell(job, record.outcomes(), removed), _tell_strangers(job, record.strangers()))


def _open_target(options: Options) -> Store:
    source, target = map(_whole, (options.source, options.target))
    if f"{target}/".startswith(f"{source}/"):
        raise ConfigError(f"OUT {redact(target)} lies in IN: name a folder beside it")
    if (problem := root_problem(options.target)) is not None:
        raise ConfigError(problem)
    folder, name = posixpath.split(target)
    if not name or folder.endswith(":"):
        shown = redact(target)
        raise ConfigError(f"OUT {shown} is no folder of its own: write {shown.rstrip('/')}/FOLDER")
    return Store.open(folder, name)


def _whole(url: str) -> str:
    """Return a URL without a slash at its end, a local one as its absolute path without links. Raises StorageError."""
    access = Access(url)
    return os.path.realpath(access.path) if access.is_local else url.rstrip("/")


def _head(job: CopyJob) -> CopyHead:
    how = job.settings
    return CopyHead(
        raymat=__version__,
        source=redact(job.listing.dataset_url),
        longest=how.longest,
        quality=how.quality,
        alpha=how.alpha,
    )


def _copy_missing(job: CopyJob, record: CopyRecord, copy_all: CopyAll, bar: ProgressBar) -> None:
    """Copy what is not there yet, and record it every few seconds; also at an interrupt."""
    places = list(job.places())
    missing = [place for place in places if job.sources(place) not in record.done]
    bar.begin(sum(len(job.sources(place)) for place in missing))
    flushed = time.monotonic()
    try:
        for outcome in copy_all(job, missing):
            record.add(outcome)
            bar.add(len(outcome.sources))
            if time.monotonic() - flushed > _SECONDS:
                record.flush()
                flushed = time.monotonic()
    finally:
        record.flush()
        left = sum(job.sources(place) not in record.done for place in missing)
        if left:
            done = f"{len(places) - left:,} of {len(places):,} pairs or backgrounds are copied"
            tell(f"note: {done}, the same command goes on", "warning")


def _copier(options: Options) -> CopyAll:
    """Return what copies: the cluster there is, if all its machines see both folders, else threads of this process."""
    if any(Access(url).is_local for url in (options.source, options.target)):
        return _copy_here
    from raymat.cluster.copy_tasks import copier_on_cluster  # late: Ray takes a second to import

    return copier_on_cluster() or _copy_here


def _copy_here(job: CopyJob, places: Sequence[CopyPlace]) -> Iterator[CopyOutcome]:
    return in_order(job.copy, places, threads())


def _tell_strangers(job: CopyJob, names: Sequence[str]) -> int:
    """Name pictures that are in the copy's folder but not of it, and return the exit code."""
    if not names:
        return FINE
    more = ", ..." if len(names) > _NAMED else ""
    tell(
        f"note: {count(len(names), 'picture')} in {job.store.url} that a run would take and that the copy did not make: "
        f"{', '.join(names[:_NAMED])}{more}: remove what is not meant",
        "warning",
    )
    return FOUND


def _tell(job: CopyJob, outcomes: Sequence[CopyOutcome], removed: int) -> int:
    """Print what was copied, left out and removed, and return the exit code."""
    files = [file for outcome in outcomes for file in outcome.files]
    left_out = [outcome.left_out for outcome in outcomes if outcome.left_out]
    for reason in left_out[:_NAMED]:
        print(f"left out: {reason}")
    if len(left_out) > _NAMED:
        print(f"left out: {len(left_out) - _NAMED:,} more, named in prepared.jsonl")
    before = sum(max(0, row.size) for outcome in outcomes for row in outcome.sources)
    after = sum(file.size for file in files)
    rest = (
        f"; removed: {count(removed, 'picture')} that are no longer part of it" if removed else ""
    )
    if left_out:
        rest += f"; left out: {len(left_out):,} of {len(outcomes):,} pairs or backgrounds"
    print(f"{job.store.url}: {count(len(files), 'picture')}, {size(after)} of {size(before)}{rest}")
    return FOUND if left_out else FINE
