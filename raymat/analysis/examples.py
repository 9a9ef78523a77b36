"""The examples that networks are measured on, made as a run's validation makes its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raymat.analysis.run_pictures import Split, kept_source, open_source
from raymat.config.run import STAGE_DEFAULTS
from raymat.config.sections import DataConfig
from raymat.data.batch import Geometry, MicroBatch
from raymat.data.dataset.run_dataset import validation_order
from raymat.data.dataset.source import Source
from raymat.data.decode import OpenImage
from raymat.data.feed import LocalFeed
from raymat.data.sample_order import Example
from raymat.errors import ConfigError, DataError
from raymat.storage.urls import shown_urls
from raymat.train.run.selected_weights import Selected

DECODE_THREADS = 2
"""Threads that make pictures while the network computes; each holds at most two examples."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """`count` examples, spread evenly over a split of `source`, with the warps and backgrounds of `seed`."""

    source: Source
    split: Split
    seed: int
    count: int
    geometry: Geometry

    def batches(self) -> Iterator[MicroBatch]:
        """Yield batches of one example each, made ahead in threads. Raises DataError if pictures cannot be had."""
        source = self.source if self.split == "valid" else _TrainingSplit(self.source)
        order = validation_order(source, self.seed, self.count)
        return LocalFeed(source, order, self.geometry, threads=DECODE_THREADS).valid()

    def name_of(self, example: Example) -> str:
        """Return the name of the example's pair, for people."""
        return self.source.name_of(example.pair, valid=self.split == "valid")


@dataclass(frozen=True, kw_only=True)
class ExampleRequest:
    """What to measure on; None: as the run has it."""

    data: DataConfig | None = None
    split: Split = "valid"
    count: int | None = None
    """Default: each pair once."""
    resolution: int | None = None
    seed: int | None = None

    def open(self, selected: Sequence[Selected]) -> tuple[Examples, str]:
        """Open the examples, by default those of the first run in `selected`; returns a name of the dataset, too.

        Raises:
            ConfigError: no dataset is known. DataError: it cannot be used. StorageError: storage cannot be read.
        """
        run = next((one for one in selected if one.config is not None), None)
        config = run.config if run else None
        own = config.data if config else None
        stage = config.stage if config else selected[0].stage
        seed = self.seed if self.seed is not None else (own.seed if own else 0)
        side = own.resolution if own else STAGE_DEFAULTS[stage].get("resolution", 512)
        geometry = Geometry(stage, self.resolution or side, own is None or own.scaled_decode)
        data = self.data or own
        if data is None:
            raise ConfigError(
                f"{selected[0].what} does not say what to evaluate on: give --dataset and --backgrounds, or --synthetic N"
            )
        kept, valid = None, data.synthetic
        if self.data is None and run is not None and config is not None:
            # A run validates on as many procedural pairs as it has validation examples.
            kept = kept_source(run) if data.synthetic is None else None
            valid = config.log.valid_examples
        source = kept or open_source(data, seed, geometry.resolution, valid, (self.split,))
        name = (
            "procedural pictures" if data.synthetic is not None else shown_urls(data.dataset or "")
        )
        return spread(source, self.split, seed, self.count, geometry), name


def spread(
    source: Source, split: Split, seed: int, count: int | None, geometry: Geometry
) -> Examples:
    """Spread `count` examples over the split, or as many as it has pairs if that is less or `count` is None.

    Raises:
        DataError: the split is empty.
    """
    train = split == "train"
    pairs = source.pairs if train else source.valid_pairs
    if not pairs or not (source.backgrounds if train else source.valid_backgrounds):
        raise DataError(f"the dataset has nothing to evaluate on in {split}/: use another --split")
    number = pairs if count is None else min(count, pairs)
    return Examples(source=source, split=split, seed=seed, count=number, geometry=geometry)


class _TrainingSplit:
    """A source that validates on its training pictures."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.pairs = self.valid_pairs = source.pairs
        self.backgrounds = self.valid_backgrounds = source.backgrounds
        self.fetch_ahead = source.fetch_ahead

    def open_pair(self, index: int, valid: bool = False) -> tuple[OpenImage, OpenImage]:
        return self._source.open_pair(index)

    def open_background(self, index: int, valid: bool = False) -> OpenImage:
        return self._source.open_background(index)

    def name_of(self, index: int, valid: bool = False) -> str:
        return self._source.name_of(index)
