"""A run's `run.json`: who the run is, how it was configured, and which dataset it has."""

from __future__ import annotations

import json
import platform
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, TypeAlias

from raymat.checkpoint.manifest import newer_format
from raymat.config.run import RunConfig, to_dict
from raymat.config.run_names import name_problem
from raymat.data.dataset.run_dataset import list_dataset
from raymat.errors import ConfigError, NewerFormatError, StorageError
from raymat.storage.digest import is_sealed, seal
from raymat.storage.fields import Positive, parse_fields, parse_object
from raymat.storage.store import Store
from raymat.train.run.lease.entries import RECORDS, list_entries, path_of, term_of
from raymat.train.run.lease.tenure import Tenure
from raymat.version import __version__

RUN_FILE = "run.json"
RUN_FORMATS = (1, 2, 3)
"""2: with a lineage that is not empty, which a raymat that knows only 1 would ignore. 3: with records in run/."""

_Found: TypeAlias = dict[str, Any] | StorageError | None
"""A file's content, what is wrong with it, or None if it is missing."""


@dataclass(frozen=True)
class _Listing:
    """The dataset: its pictures are in a listing, or made."""

    digest: str
    file: str | None = None
    synthetic: Positive | None = None
    decoding: Positive = 1


@dataclass(frozen=True)
class _Init:
    """The weights that the run begins with."""

    url: str
    digest: str


@dataclass(frozen=True)
class _Content:
    """What is read of it."""

    format: Literal[1, 2, 3]
    run_id: str
    config: dict[str, Any] | None = None
    listing: _Listing | None = None
    past: dict[str, Any] | None = None
    init: _Init | None = None
    created: str = ""


def read_run(store: Store) -> dict[str, Any] | None:
    """Read what the run is; None where there is no such run.

    Of `run.json` and the records in run/ the one of the newest holder of the lease counts.

    Raises:
        NewerFormatError: a newer raymat wrote it. StorageError: it is damaged, or the storage cannot be read.
    """
    found = _believed(store)
    missing = [] if found is None else [f for f in ("config", "listing") if found.get(f) is None]
    if missing:
        raise _damaged(store, RUN_FILE, f"it lacks {missing[0]}")
    return found


def require_portable_name(store: Store, name: str) -> None:
    """Refuse a new run's name that some system cannot hold; a run that is there goes on.

    Raises:
        ConfigError: what is wrong with the name. What `read_run` raises.
    """
    problem = name_problem(name)
    if problem is not None and read_run(store) is None:
        raise ConfigError(problem)


def read_run_id(store: Store) -> str | None:
    """Read the run's id, whatever else `run.json` may lack; None where there is no such run. Raises as `read_run` does."""
    found = _believed(store)
    return None if found is None else str(found["run_id"])


def _believed(store: Store) -> dict[str, Any] | None:
    published, record = _read_copies(store)
    believed = published if record is None else record
    if not isinstance(believed, StorageError):
        return believed
    if record is None or not isinstance(published, dict) or "lease" not in published:
        raise believed
    return published


def check_run_file(store: Store) -> str | None:
    """Return what is wrong with `run.json` or the record that counts; None if nothing is. Raises as `read_run` does."""
    published, record = _read_copies(store)
    for each in (published, record):
        if isinstance(each, StorageError):
            return each.line
    if record is None or published == record:
        return None
    return f"{store.url}/{RUN_FILE} is not what the run's newest driver wrote"


def write_run(store: Store, stored: Mapping[str, Any], tenure: Tenure) -> dict[str, Any]:
    """Make `stored` what the run is from now on, and return it as it is written.

    A driver that lost the lease may sleep before any of these writes, or have one of them arrive late. So what counts is the
    holder's own record: a late one has a smaller name than its successor's. Who sees, after its record is there, that
    it still holds the lease knows that every successor reads that record. `run.json` is a copy, for people and tools.

    Raises:
        LeaseLostError: another driver has the run. StorageError: the storage cannot be written.
    """
    run = dict(stored) | {"format": RUN_FORMATS[-1], "lease": tenure.name}
    data = _encode(run)
    tenure.require()
    store.write(path_of(tenure.name, RECORDS), data)
    tenure.require()
    store.write(RUN_FILE, data)
    tenure.require()
    older = [n for n in list_entries(store, RECORDS) if term_of(n) < term_of(tenure.name)]
    store.delete([path_of(name, RECORDS) for name in older])
    return run


def anchor_run(store: Store, run_id: str, lease: str) -> None:
    """Write and delete from now on only while the run is there: its `run.json`, or the record under the name of this `lease`.

    Raises RunGoneError then.
    """
    store.anchor(run_id, RUN_FILE, path_of(lease, RECORDS))


def mend_run_file(store: Store, tenure: Tenure) -> None:
    """Write `run.json` again if a driver that lost the lease has overwritten it.

    Raises:
        LeaseLostError: another driver has the run. StorageError: the storage cannot be read or written.
    """
    published, record = _read_copies(store)
    if isinstance(record, dict) and published != record:
        tenure.require()
        store.write(RUN_FILE, _encode(record))


def describe_run(config: RunConfig, store: Store) -> dict[str, Any]:
    """List the dataset of a new run, and return its `run.json`."""
    return {
        "run_id": uuid.uuid4().hex,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": to_dict(config),
        "listing": list_dataset(config, store),
        "versions": _versions(),
    }


def _read_copies(store: Store) -> tuple[_Found, _Found]:
    """Read `run.json` and the newest holder's record."""
    while True:
        published = _read(store, RUN_FILE)
        records = list_entries(store, RECORDS)
        if not records:
            return published, None
        record = _read(store, path_of(max(records, key=term_of), RECORDS))
        if record is not None:  # else a newer holder has just removed it
            return published, record


def _read(store: Store, path: str) -> _Found:
    """Read one file; return what is wrong with a damaged one, None if it is missing."""
    data = store.try_read(path)
    if data is None:
        return None
    try:
        stored = parse_object(data)
        if newer_format(stored, RUN_FORMATS[-1]) is not None:
            raise NewerFormatError(
                f"{store.url}/{path} has format {stored['format']}, expected {RUN_FORMATS[-1]}: "
                "resume it with the raymat that wrote it"
            )
        found = parse_fields(_Content, stored)
        if found.format == RUN_FORMATS[-1]:
            if not is_sealed(stored):
                raise ValueError("its digest is wrong")
            del stored["digest"]
        listing = found.listing
        if listing is not None and (listing.file is None) == (listing.synthetic is None):
            raise ValueError("listing: it names no dataset, or two")
        return stored
    except ValueError as error:
        return _damaged(store, path, str(error))


def _damaged(store: Store, path: str, why: str) -> StorageError:
    return StorageError(f"{store.url}/{path} is damaged ({why}): restore it or use another --name")


def _encode(run: Mapping[str, Any]) -> bytes:
    return json.dumps(seal(run), indent=2).encode()


def _versions() -> dict[str, str]:
    found = {"raymat": __version__, "python": platform.python_version()}
    pictures = ("opencv-python-headless", "simplejpeg", "kornia-rs", "pillow")
    for package in ("torch", "ray", "numpy", *pictures):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
