"""Dataset of a run as `run.json` describes it: synthetic pictures, or the listing that is kept with the run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from raymat.config.run import RunConfig
from raymat.config.sections import DataConfig
from raymat.config.values import Range
from raymat.data.batch import Geometry
from raymat.data.dataset.discovery import build_listing
from raymat.data.dataset.file_names import NameRules
from raymat.data.dataset.growth import Added, grow, move
from raymat.data.dataset.listing import Listing
from raymat.data.dataset.source import Source, SourceSpec, load_listing
from raymat.data.decoding.header import DECODING
from raymat.data.lineage import NO_LINEAGE, Lineage
from raymat.data.sample_order import SampleOrder
from raymat.errors import ConfigError, DataError, NewerFormatError
from raymat.storage.store import Store


def list_dataset(config: RunConfig, store: Store) -> dict[str, Any]:
    """List the dataset and keep the listing in `store`; return the description for `run.json`."""
    if config.data.synthetic is not None:
        return _made(config.data.synthetic)
    return _keep(list_pictures(config), store, DECODING)


def list_pictures(
    config: RunConfig,
    *,
    need_train: bool = True,
    need_valid: bool | None = None,
    decoding: int = DECODING,
) -> Listing:
    """List the dataset, as `build_listing` does; `need_valid`: default: whether the run validates. Raises DataError."""
    data = config.data
    assert data.dataset is not None and data.backgrounds is not None
    if need_valid is None:
        need_valid = config.log.valid_examples > 0
    return build_listing(
        data.dataset,
        data.backgrounds,
        need_train=need_train,
        need_valid=need_valid,
        rules=rules_of(data, decoding),
    )


def rules_of(data: DataConfig, decoding: int = DECODING) -> NameRules:
    """Return which files are pictures of the dataset, and how they are paired."""
    return NameRules(decoding, data.pair_suffix, data.skip_unpaired)


def source_of(config: RunConfig, store: Store, listing: dict[str, Any]) -> SourceSpec:
    """Return the source of the dataset that `run.json` describes as `listing`."""
    if "synthetic" in listing:
        return SourceSpec.synthetic(
            count=listing["synthetic"],
            seed=config.data.seed,
            size=config.data.resolution,
            valid_count=config.log.valid_examples,
        )
    url = f"{store.location}/{listing['file']}"
    return SourceSpec.listed(url, listing["digest"], _decoding(listing))


def _decoding(listing: dict[str, Any]) -> int:
    """Return how the run's pictures are read. Raises NewerFormatError."""
    found = int(listing.get("decoding", 1))
    if found > DECODING:
        raise NewerFormatError(
            f"the run's pictures are read as of version {found}, this raymat knows {DECODING}: use the one that began it"
        )
    return found


def mend_listing(config: RunConfig, store: Store, listing: dict[str, Any]) -> bool:
    """List the dataset again if the listing that is kept cannot be used; return whether that was so.

    Raises:
        DataError: the listing cannot be used, and the dataset is not the one that it described. StorageError.
    """
    try:
        source_of(config, store, listing).open()
    except DataError as error:
        if config.data.dataset is None:
            raise
        try:
            found = list_pictures(config, decoding=_decoding(listing))
        except DataError:
            raise error from None
        if found.digest != listing["digest"]:
            raise
        store.write(listing["file"], found.to_bytes())
        return True
    return False


def sample_order(
    config: RunConfig, source: Source, total_examples: int, lineage: Lineage = NO_LINEAGE
) -> SampleOrder:
    """Return the order in which a run of `total_examples` trains on the dataset, and validates with it."""
    data = config.data
    return SampleOrder(
        seed=data.seed,
        pairs=source.pairs,
        backgrounds=source.backgrounds,
        batch_size=data.batch_size,
        crop=data.crop,
        total_examples=total_examples,
        valid_pairs=source.valid_pairs,
        valid_backgrounds=source.valid_backgrounds,
        valid_examples=min(config.log.valid_examples, source.valid_pairs),
        lineage=lineage,
        accumulate=config.optim.accumulate,
    )


def validation_order(source: Source, seed: int, count: int) -> SampleOrder:
    """Return an order of `count` validation examples, one a batch, as a run with `seed` validates; it has no training set."""
    return SampleOrder(
        seed=seed,
        pairs=1,
        backgrounds=1,
        batch_size=1,
        crop=Range(4, 4),
        total_examples=1,
        valid_pairs=source.valid_pairs,
        valid_backgrounds=source.valid_backgrounds,
        valid_examples=count,
    )


def geometry_of(config: RunConfig) -> Geometry:
    """Return the shapes of the run's batches."""
    data = config.data
    return Geometry(
        stage=config.stage, resolution=data.resolution, scaled_decode=data.scaled_decode
    )


def move_dataset(
    config: RunConfig, store: Store, listing: dict[str, Any]
) -> tuple[dict[str, Any], int]:
    """List the dataset in its new place; return its description for `run.json`, and the number of its files.

    Its rows stay as the run knows them, in a file of its own: another driver may still read the present one.

    Raises:
        DataError: it cannot be listed, or has not the files of `listing`; names the first difference.
    """
    old = load_listing(f"{store.location}/{listing['file']}", listing["digest"])
    moved = move(old, list_pictures(config, decoding=_decoding(listing)))
    place = hashlib.sha256(f"{moved.dataset_url}\n{moved.backgrounds_url}".encode()).hexdigest()
    name = f"listing-{moved.digest[:16]}-{place[:8]}.bin"
    store.write(name, moved.to_bytes())
    return listing | {"file": name}, moved.files


@dataclass(frozen=True)
class Grown:
    """Dataset that was listed again: its description for `run.json`, and what was added."""

    listing: dict[str, Any]
    added: tuple[Added, ...]

    @property
    def valid_changed(self) -> bool:
        """Whether the validation set has grown."""
        return any(added.count for added in self.added if added.kind.startswith("validation"))


def grow_dataset(config: RunConfig, store: Store, listing: dict[str, Any]) -> Grown:
    """List the dataset again, and keep the listing in `store` under a name of its own.

    Raises:
        ConfigError: it is of another kind. DataError: files are missing or changed, or it cannot be listed.
    """
    count, made = config.data.synthetic, listing.get("synthetic")
    if (count is None) != (made is None):
        raise ConfigError(
            "--grow-dataset adds files to files, or synthetic pictures to synthetic pictures: "
            "a run cannot change from one to the other"
        )
    if count is not None and made is not None:
        if count < made:
            raise DataError(f"--synthetic was {made}, is {count}: a run's dataset can only grow")
        added = tuple(Added(kind, made, count - made) for kind in ("pairs", "backgrounds"))
        return Grown(_made(count), added)
    old = load_listing(f"{store.location}/{listing['file']}", listing["digest"])
    growth = grow(old, list_pictures(config, decoding=_decoding(listing)))
    return Grown(_keep(growth.listing, store, _decoding(listing)), growth.added)


def _made(count: int) -> dict[str, Any]:
    return {"synthetic": count, "digest": f"synthetic-{count}"}


def _keep(listing: Listing, store: Store, decoding: int) -> dict[str, Any]:
    name = f"listing-{listing.digest[:16]}.bin"
    store.write(name, listing.to_bytes())
    return {"file": name, "digest": listing.digest, "decoding": decoding}
