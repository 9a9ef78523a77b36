"""Dropout with a seed for each example, so that no mask depends on the process."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raymat.model.ops import memory_format_of


class SeededDropout(nn.Dropout):
    """Dropout layer that draws each example's mask from that example's own seed.

    An example loses the same features on every worker, at every place of the batch and after every restart. A mask
    depends on the seed, on the shape (C, H, W) and on
    the kind of device (CPU and CUDA generators differ), neither on the precision nor on the memory
    format. `p = 0` turns it off, as in nn.Dropout.
    """

    seeds: tuple[int, ...] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Drop features of (n, C, H, W); in training with p > 0, n seeds must have been set."""
        if not self.training or self.p == 0:
            return input
        return input * self._masks(input)

    def _masks(self, input: Tensor) -> Tensor:
        """Draw the factors of `input`: 0 with probability p, else 1 / (1 - p); alike to it."""
        if self.seeds is None:
            raise RuntimeError(
                "training with dropout needs a seed for each example: "
                "call raymat.model.matting.set_dropout_seeds(model, seeds) before the forward pass"
            )
        if len(self.seeds) != len(input):
            raise RuntimeError(
                f"{len(self.seeds)} dropout seeds were set for {len(input)} examples: "
                "set one seed for each"
            )
        if not self.seeds:
            return torch.ones_like(input)
        uniforms = torch.stack([self._uniform(seed, input) for seed in self.seeds])
        kept = (uniforms >= self.p).to(input.dtype)
        return kept.contiguous(memory_format=memory_format_of(input)) / (1 - self.p)

    @staticmethod
    def _uniform(seed: int, input: Tensor) -> Tensor:
        """Draw one example's uniform numbers, (C, H, W); float32, so that all precisions drop alike."""
        generator = torch.Generator(device=input.device).manual_seed(seed)
        return torch.rand(
            input.shape[1:], generator=generator, device=input.device, dtype=torch.float32
        )


def set_dropout_seeds(model: nn.Module, seeds: Tensor | None) -> None:
    """Give every dropout of `model` the seeds of the next batches' examples.

    `seeds`: int64 (n,), each 0..2**63-1, in the order of the batch; best on the CPU (reading them
    from a GPU waits for it). They stay set until they are set again; None takes them away.
    """
    values = None if seeds is None else tuple(int(seed) for seed in seeds.tolist())
    for module in model.modules():
        if isinstance(module, SeededDropout):
            module.seeds = values
