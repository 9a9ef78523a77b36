"""A configuration's training and validation pictures for tools, outside of a run and its storage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from raymat.config.run import RunConfig
from raymat.data.batch import Geometry
from raymat.data.composite import Composed
from raymat.data.feed import LocalFeed
from raymat.data.sample_order import SampleOrder
from raymat.data.source import FolderSource, Source, SourceSpec, build_listing
from raymat.model.matting import MattingBase
from raymat.train.optim.forward import compose
from raymat.train.validation.evaluator import Evaluator, Values, mean_values


@dataclass(frozen=True)
class Pictures:
    """What a run with this configuration trains on and validates with, in its order."""

    config: RunConfig
    source: Source

    @classmethod
    def of(cls, config: RunConfig) -> Pictures:
        """List the configuration's dataset, or make it.

        Raises:
            DataError: it cannot be used.
        """
        data, valid = config.data, config.log.valid_examples
        if data.synthetic is not None:
            spec = SourceSpec.synthetic(data.synthetic, data.seed, data.resolution, valid)
            return cls(config, spec.open())
        assert data.dataset is not None and data.backgrounds is not None
        listing = build_listing(data.dataset, data.backgrounds, need_valid=valid > 0)
        return cls(config, FolderSource(listing))

    def train(self, examples: int, device: torch.device) -> Iterator[Composed]:
        """The first `examples` training examples, rounded up to whole batches, as the network is shown them."""
        size = self.config.data.batch_size
        steps = -(-examples // size)
        for batch in self._feed(steps * size).train(0, steps):
            yield compose(
                batch,
                seed=self.config.data.seed,
                resolution=self.config.data.resolution,
                device=device,
                dtype=torch.float32,
                channels_last=False,
            )

    def measure(self, network: MattingBase, metric: str, device: torch.device) -> float:
        """The mean of "loss" or of a metric of `alpha_metrics` over the validation examples; NaN where one is not finite."""
        data = self.config.data
        examiner = Evaluator(
            network,
            stage=self.config.stage,
            precision="fp32",
            seed=data.seed,
            resolution=data.resolution,
            device=device,
            channels_last=False,
            metrics=() if metric == "loss" else (metric,),
        )
        values: dict[int, Values] = {}
        for batch in self._feed(1).valid():
            values |= examiner(batch)
        mean = mean_values(values)[metric]
        return math.nan if mean is None else mean

    def _feed(self, total: int) -> LocalFeed:
        data, source = self.config.data, self.source
        order = SampleOrder(
            seed=data.seed,
            pairs=source.pairs,
            backgrounds=source.backgrounds,
            batch_size=data.batch_size,
            crop=data.crop,
            total_examples=total,
            valid_pairs=source.valid_pairs,
            valid_backgrounds=source.valid_backgrounds,
            valid_examples=min(self.config.log.valid_examples, source.valid_pairs),
        )
        geometry = Geometry(
            stage=self.config.stage,
            resolution=data.resolution,
            scaled_decode=data.scaled_decode,
        )
        return LocalFeed(source, order, geometry)
