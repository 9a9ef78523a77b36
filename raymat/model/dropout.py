"""Dropout with a seed for each example, so that no mask depends on the process."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raymat.model.ops import memory_format_of


class SeededDropout(nn.Dropout):
    """Dropout layer that draws each example's mask from that example's own seed.

    An example loses the same features on every worker, at every place of the batch and after every restart. A mask
    depends on the seed and on the shape (C, H, W), neither on the precision nor on the memory format; and, unless it is made of
    `host_bits`, on the kind of device: CPU and CUDA generators differ. `p = 0` turns it off, as in nn.Dropout.
    """

    seeds: tuple[int, ...] | None = None
    host_bits = False
    """Whether masks are made of Philox's bits, drawn on the host, one for each feature: then p is 1/2, or 0."""

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
        kept = self._kept_bits(input) if self.host_bits else self._kept_uniforms(input)
        memory = memory_format_of(input)
        return kept.to(input.dtype).contiguous(memory_format=memory) / (1 - self.p)

    def _kept_uniforms(self, input: Tensor) -> Tensor:
        """Draw on the device what is kept, bool (n, C, H, W)."""
        assert self.seeds is not None
        return torch.stack([self._uniform(seed, input) for seed in self.seeds]) >= self.p

    def _kept_bits(self, input: Tensor) -> Tensor:
        """Draw on the host what is kept, bool (n, C, H, W): the same on every device."""
        assert self.seeds is not None
        if self.p != 0.5:
            raise RuntimeError(f"dropout by bits needs a probability of 0.5, got {self.p}")
        count = input[0].numel()
        words = np.stack([_words(seed, -(-count // 64)) for seed in self.seeds])
        packed = torch.from_numpy(words.view(np.uint8))
        if input.device.type == "cuda":
            packed = packed.pin_memory()
        packed = packed.to(input.device, non_blocking=True)
        masks = 2 ** torch.arange(8, dtype=torch.uint8, device=input.device)
        bits = torch.bitwise_and(packed.unsqueeze(2), masks) != 0
        return bits.flatten(1)[:, :count].reshape(input.shape)

    @staticmethod
    def _uniform(seed: int, input: Tensor) -> Tensor:
        """Draw one example's uniform numbers, (C, H, W); float32, so that all precisions drop alike."""
        generator = torch.Generator(device=input.device).manual_seed(seed)
        return torch.rand(
            input.shape[1:], generator=generator, device=input.device, dtype=torch.float32
        )


def _words(seed: int, count: int) -> NDArray[np.uint64]:
    """Draw little-endian words of 64 random bits."""
    return np.random.Philox(key=seed).random_raw(count).astype("<u8", copy=False)


def set_dropout_seeds(model: nn.Module, seeds: Tensor | None, host_bits: bool = False) -> None:
    """Give every dropout of `model` the seeds of the next batches' examples, and say whether masks are `host_bits`.

    `seeds`: int64 (n,), each 0..2**63-1, in the order of the batch; best on the CPU (reading them
    from a GPU waits for it). They stay set until they are set again; None takes them away.
    """
    values = None if seeds is None else tuple(int(seed) for seed in seeds.tolist())
    for module in model.modules():
        if isinstance(module, SeededDropout):
            module.seeds, module.host_bits = values, host_bits
