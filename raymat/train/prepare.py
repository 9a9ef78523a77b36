"""What must be settled before a run's first step: who it is, what it reads, in which order.

A new run gets a `run.json` (configuration, versions, when it was made) and the listing of its
dataset, both kept in storage. A resumed run reads them back, so that it lists nothing, and is
refused if its configuration would break the promise.
"""

from __future__ import annotations

import json
import logging
import platform
import time
import uuid
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import raymat
from raymat.checkpoint.store import Store
from raymat.config import RunConfig, from_dict, refuse_changes, to_dict
from raymat.data.batch import Geometry
from raymat.data.order import SampleOrder
from raymat.data.source import SourceSpec, build_listing
from raymat.errors import DataError, StorageError

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
RUN_FORMAT = 1


@dataclass(frozen=True)
class PreparedRun:
    """A run that can start or go on."""

    config: RunConfig
    run_id: str
    source: SourceSpec
    listing_digest: str
    order: SampleOrder
    geometry: Geometry
    resumed: bool


def prepare(config: RunConfig, store: Store) -> PreparedRun:
    """Open the run in `store`, or make it.

    Args:
        config: the run's configuration with `workers.device` and `optim.precision` settled.
        store: the run's folder.

    Raises:
        ConfigError: a resumed run was asked to change what its promise rests on, or the validation
            set is too small. DataError: the dataset cannot be used. StorageError: the storage
            cannot be read or written.
    """
    stored = read_run(store)
    if stored is None:
        stored = _create(config, store)
        resumed = False
    else:
        refuse_changes(from_dict(stored["config"]), config, store.url)
        resumed = True
    source = _source(config, store, stored["listing"])
    opened = source.open()
    if config.log.valid_examples and not opened.valid_pairs:
        raise DataError(
            f"no validation pairs in {config.data.dataset}: add valid/, or use --valid-examples 0"
        )
    order = SampleOrder(
        seed=config.data.seed,
        pairs=opened.pairs,
        backgrounds=opened.backgrounds,
        batch_size=config.data.batch_size,
        crop=config.data.crop,
        total_examples=total_examples(config, opened.pairs),
        valid_pairs=opened.valid_pairs,
        valid_backgrounds=opened.valid_backgrounds,
        valid_examples=min(config.log.valid_examples, opened.valid_pairs),
    )
    geometry = Geometry(
        stage=config.stage,
        resolution=config.data.resolution,
        scaled_decode=config.data.scaled_decode,
    )
    digest = stored["listing"]["digest"]
    return PreparedRun(config, stored["run_id"], source, digest, order, geometry, resumed)


def total_examples(config: RunConfig, pairs: int) -> int:
    """How many examples the run trains on: whole steps, or virtual epochs of `--epoch-examples`
    (default: the dataset)."""
    if config.length.steps is not None:
        return config.length.steps * config.data.batch_size
    assert config.length.epochs is not None
    return max(1, round(config.length.epochs * (config.length.epoch_examples or pairs)))


def read_run(store: Store) -> dict[str, Any] | None:
    """The run's `run.json`, or None where there is no such run.

    Raises:
        StorageError: the file is there but is not a run's.
    """
    data = store.try_read(RUN_FILE)
    if data is None:
        return None
    try:
        stored = json.loads(data)
        if stored["format"] != RUN_FORMAT:
            raise StorageError(
                f"{store.url}/{RUN_FILE} has format {stored['format']}, expected {RUN_FORMAT}: "
                "resume it with the raymat that wrote it"
            )
        return dict(stored)
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{store.url}/{RUN_FILE} is damaged ({error}): restore it or use another --name"
        ) from error


def _create(config: RunConfig, store: Store) -> dict[str, Any]:
    run_id = uuid.uuid4().hex
    listing = _make_listing(config, store)
    stored = {
        "format": RUN_FORMAT,
        "run_id": run_id,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": to_dict(config),
        "listing": listing,
        "versions": _versions(),
    }
    store.write(RUN_FILE, json.dumps(stored, indent=2).encode())
    return stored


def _make_listing(config: RunConfig, store: Store) -> dict[str, Any]:
    data = config.data
    if data.synthetic is not None:
        return {"synthetic": data.synthetic, "digest": f"synthetic-{data.synthetic}"}
    assert data.dataset is not None and data.backgrounds is not None
    listing = build_listing(
        data.dataset, data.backgrounds, need_valid=config.log.valid_examples > 0
    )
    name = f"listing-{listing.digest[:16]}.bin"
    store.write(name, listing.to_bytes())
    return {"file": name, "digest": listing.digest}


def _source(config: RunConfig, store: Store, listing: dict[str, Any]) -> SourceSpec:
    if "synthetic" in listing:
        return SourceSpec.synthetic(
            count=listing["synthetic"],
            seed=config.data.seed,
            size=config.data.resolution,
            valid_count=config.log.valid_examples,
        )
    return SourceSpec.listed(f"{store.url}/{listing['file']}", listing["digest"])


def _versions() -> dict[str, str]:
    found = {"raymat": raymat.__version__, "python": platform.python_version()}
    for package in ("torch", "ray", "numpy", "opencv-python-headless", "simplejpeg", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
