"""Parameters that the host computes for a whole batch and sends to the device in one copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

OnDevice: TypeAlias = Callable[[], Tensor]
"""Gives the numbers on the device, once they were sent."""


class HostNumbers:
    """Numbers that are added first, sent then, and read as tensors afterwards."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._sent: Tensor | None = None

    def add(self, values: Sequence[float], *shape: int) -> OnDevice:
        """Take `values` along; returns what gives them as a tensor of `shape`, by default (n, 1, 1, 1)."""
        assert self._sent is None, "the numbers were sent"
        begin, end = len(self._values), len(self._values) + len(values)
        self._values += values

        def on_device() -> Tensor:
            assert self._sent is not None, "the numbers were not sent"
            return self._sent[begin:end].view(shape or (-1, 1, 1, 1))

        return on_device

    def send(self, like: Tensor) -> None:
        """Copy them to the device and dtype of `like`."""
        host = torch.tensor(self._values, dtype=torch.float64).to(like.dtype)
        self._sent = sent_to(like.device, host)


def sent_to(device: torch.device, host: Tensor) -> Tensor:
    """Return `host` on `device`; a copy to a GPU is pinned, so that nobody waits for it."""
    pinned = host.pin_memory() if device.type == "cuda" else host
    return pinned.to(device, non_blocking=True)
