"""A run's `run.json`: who the run is, how it was configured, and which dataset it has."""

from __future__ import annotations

import json
import platform
import time
import uuid
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from raymat.config.run import RunConfig, to_dict
from raymat.data.dataset.run_dataset import list_dataset
from raymat.errors import NewerFormatError, StorageError
from raymat.storage.store import Store
from raymat.version import __version__

RUN_FILE = "run.json"
RUN_FORMATS = (1, 2)
"""2: with a lineage that is not empty, which a raymat that knows only 1 would ignore."""


def read_run(store: Store) -> dict[str, Any] | None:
    """Read the run's `run.json`; None where there is no such run.

    Raises:
        NewerFormatError: a newer raymat wrote it. StorageError: the file is there but is not a run's.
    """
    data = store.try_read(RUN_FILE)
    if data is None:
        return None
    try:
        stored = json.loads(data)
        if stored["format"] not in RUN_FORMATS:
            newer = type(stored["format"]) is int and stored["format"] > RUN_FORMATS[-1]
            raise (NewerFormatError if newer else StorageError)(
                f"{store.url}/{RUN_FILE} has format {stored['format']}, expected {RUN_FORMATS[-1]}: "
                "resume it with the raymat that wrote it"
            )
        return dict(stored)
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{store.url}/{RUN_FILE} is damaged ({error}): restore it or use another --name"
        ) from error


def create_run(config: RunConfig, store: Store) -> dict[str, Any]:
    """List the dataset of a new run, and write and return its `run.json`."""
    run_id = uuid.uuid4().hex
    listing = list_dataset(config, store)
    stored = {
        "format": RUN_FORMATS[0],
        "run_id": run_id,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": to_dict(config),
        "listing": listing,
        "versions": _versions(),
    }
    store.write(RUN_FILE, json.dumps(stored, indent=2).encode())
    return stored


def _versions() -> dict[str, str]:
    found = {"raymat": __version__, "python": platform.python_version()}
    for package in ("torch", "ray", "numpy", "opencv-python-headless", "simplejpeg", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
