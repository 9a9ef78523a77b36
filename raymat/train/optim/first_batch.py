"""The first batch that an attempt composes by fused kernels, compared with what torch's operations make of it.

A card, a driver and a version of Triton's that nobody has tried together compile these kernels anew. Every step of the augmentation
is continuous: where two ways round differently, their pictures differ by as little, times a few units for places in a moved
picture. So there is no pixel for which a larger difference would be right.
"""

from __future__ import annotations

import torch

from raymat.data.batch import MicroBatch
from raymat.data.composite import Composed
from raymat.errors import TrainingError, one_line
from raymat.train.optim.forward import ForwardPass

LARGEST_DIFFERENCE = 0.002
"""Of 1: half a level of 255, and five times what rounding of places can do to moved noise of 2048 pixels a side."""


class CheckedCompositing:
    """Composes training batches as `ForwardPass.compose` does; the first of them both ways where that is by fused kernels."""

    def __init__(self, forward: ForwardPass) -> None:
        self._forward = forward
        self._unchecked = forward.way == "fused"

    def __call__(self, batch: MicroBatch) -> Composed:
        """Return the pictures of `batch`. For the first that has any, the host waits for the device.

        Raises:
            TrainingError: the kernels fail on this card, or make other pictures than torch's operations do.
        """
        if not self._unchecked or not batch.examples:
            return self._forward.compose(batch)
        self._unchecked = False
        try:
            composed = self._forward.compose(batch)
            off = difference(composed, self._forward.compose(batch, "together"))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler's, a driver's
            raise TrainingError(
                f"{self._card}: the fused compositing kernels fail ({one_line(error)}): begin the run anew with --recipe 3, "
                "and please report the card and the versions of torch and Triton"
            ) from error
        if not off <= LARGEST_DIFFERENCE:  # NaN is not, either
            raise TrainingError(
                f"{self._card}: the fused compositing kernels' pictures are {off:.2g} of 1 off those of torch's operations: begin "
                "the run anew with --recipe 3, and please report the card and the versions of torch and Triton"
            )
        if self._forward.device.type == "cuda":
            # The other way's memory is the side stream's, and would be kept for it.
            torch.cuda.empty_cache()
        return composed

    @property
    def _card(self) -> str:
        device = self._forward.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def difference(one: Composed, other: Composed) -> float:
    """Return the largest difference of two batches' pictures, as a share of 1; NaN if there is one. The host waits for it."""
    return float(torch.stack([(a - b).abs().max() for a, b in zip(one, other, strict=True)]).max())
