"""The training and validation pictures of a run's configuration, opened outside of a run."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from raymat.config.run import RunConfig
from raymat.config.sections import RECIPES, DataConfig
from raymat.data.composite import Composed
from raymat.data.dataset.discovery import build_listing
from raymat.data.dataset.run_dataset import geometry_of, rules_of, sample_order, source_of
from raymat.data.dataset.source import FolderSource, Source, SourceSpec
from raymat.data.feed import LocalFeed
from raymat.model.matting import MattingBase
from raymat.train.optim.forward import ForwardPass
from raymat.train.run.run_file import read_run
from raymat.train.run.run_url import open_url
from raymat.train.run.selected_weights import Selected
from raymat.train.validation.evaluator import Evaluator, Values, mean_values

Split = Literal["valid", "train"]


def open_source(
    data: DataConfig, seed: int, resolution: int, valid_count: int | None, splits: Collection[Split]
) -> Source:
    """List the splits of a dataset that no run has listed, or make it.

    `valid_count`: procedural pairs to validate with; None: as many as to train on.

    Raises:
        DataError: it cannot be used.
    """
    if data.synthetic is not None:
        return SourceSpec.synthetic(data.synthetic, seed, resolution, valid_count).open()
    assert data.dataset is not None and data.backgrounds is not None
    train, valid = "train" in splits, "valid" in splits
    listing = build_listing(
        data.dataset,
        data.backgrounds,
        need_train=train,
        need_valid=valid,
        rules=rules_of(data),
    )
    return FolderSource(listing)


def kept_source(selected: Selected) -> Source | None:
    """Open the dataset of a run by the listing in its storage; None if its run.json is gone.

    Raises:
        DataError: the listing cannot be used. StorageError: storage cannot be read.
    """
    assert selected.config is not None
    assert selected.run_url is not None
    store, _ = open_url(selected.run_url)
    stored = read_run(store)
    return None if stored is None else source_of(selected.config, store, stored["listing"]).open()


@dataclass(frozen=True)
class RunPictures:
    """The pictures that a run with this configuration trains on and validates with, in its order."""

    config: RunConfig
    source: Source

    @classmethod
    def of(cls, config: RunConfig) -> RunPictures:
        """List the configuration's dataset, or make it.

        Raises:
            DataError: it cannot be used.
        """
        valid = config.log.valid_examples
        splits: list[Split] = ["train", "valid"] if valid else ["train"]
        data = config.data
        return cls(config, open_source(data, data.seed, data.resolution, valid, splits))

    def train(self, examples: int, device: torch.device) -> Iterator[Composed]:
        """Yield the first `examples` training examples, rounded up to whole batches, composed for a network."""
        size = self.config.data.batch_size
        steps = -(-examples // size)
        for batch in self._feed(steps * size).train(0, steps):
            yield self._forward(device).compose(batch)

    def measure(self, network: MattingBase, metric: str, device: torch.device) -> float:
        """Return the mean of "loss" or a metric of `alpha_metrics` over the validation examples; NaN if one is not finite."""
        metrics = () if metric == "loss" else (metric,)
        evaluator = Evaluator(network, self._forward(device), metrics)
        values: dict[int, Values] = {}
        for batch in self._feed(1).valid():
            values |= evaluator(batch)
        mean = mean_values(values)[metric]
        return math.nan if mean is None else mean

    def _forward(self, device: torch.device) -> ForwardPass:
        return ForwardPass(
            stage=self.config.stage,
            precision="fp32",
            seed=self.config.data.seed,
            resolution=self.config.data.resolution,
            device=device,
            recipe=self.config.data.recipe or RECIPES[-1],
        )

    def _feed(self, total: int) -> LocalFeed:
        order = sample_order(self.config, self.source, total)
        return LocalFeed(self.source, order, geometry_of(self.config))
