"""Pictures of a prediction: composite, alpha, foreground, error and refined patches, as pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageColor
from torch import Tensor

from raymat.data.decode import Pixels
from raymat.errors import ConfigError
from raymat.inference.matter import Prediction

OutputType = Literal["com", "pha", "fgr", "err", "ref"]
OUTPUT_TYPES: tuple[OutputType, ...] = get_args(OutputType)
GREEN = "#78ff9b"
"""Behind the composite where a file cannot hold alpha: as in the reference."""

Picture = NDArray[Any]
"""uint8 RGB (h, w, 3), RGBA (h, w, 4) with straight alpha, or grey (h, w), which may be uint16."""


@dataclass(frozen=True, eq=False)
class Backdrop:
    """What stands behind a composite: a colour, or a picture that fills it and is cut at the longer side."""

    pixels: Pixels
    """(h, w, 3), of a colour (1, 1, 3)."""

    def sized(self, height: int, width: int) -> Pixels:
        """Return it in this size, or as one pixel."""
        high, wide = self.pixels.shape[:2]
        if (high, wide) in ((1, 1), (height, width)):
            return self.pixels
        scale = max(height / high, width / wide)
        size = (max(width, round(wide * scale)), max(height, round(high * scale)))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        large = np.asarray(cv2.resize(self.pixels, size, interpolation=how), np.uint8)
        top, left = (size[1] - height) // 2, (size[0] - width) // 2
        return large[top : top + height, left : left + width]


def colour_of(text: str) -> Backdrop | None:
    """Return the backdrop of a colour's name or #rrggbb; None if it is none. Raises ConfigError for one with transparency."""
    try:
        found = ImageColor.getrgb(text)
    except ValueError:
        return None
    colour, alpha = found[:3], (*found, 255)[3]
    if alpha != 255:
        opaque = "#" + bytes(colour).hex()
        raise ConfigError(
            f"--composite {text}: what stands behind com is opaque: use {opaque}, or leave it out for com with alpha"
        )
    return Backdrop(np.array([[colour]], np.uint8))


class Renderer:
    """Maker of the pictures that were asked for.

    `backdrop`: behind `com`; None: `com` has alpha. `alpha_bits`: of `pha`, 8 or 16.
    """

    def __init__(
        self, types: Sequence[OutputType], backdrop: Backdrop | None, alpha_bits: int = 8
    ) -> None:
        self.types = tuple(types)
        self._backdrop = backdrop
        self._alpha_bits = alpha_bits

    @torch.inference_mode()
    def __call__(self, found: Prediction) -> dict[OutputType, Picture]:
        """Return each picture by its type."""
        return {kind: self._picture(kind, found) for kind in self.types}

    def check(self, refines: bool) -> None:
        """Raise ConfigError if a type is asked for that this network has not."""
        if "ref" in self.types and not refines:
            raise ConfigError("--output-type ref: only a refine network refines patches")

    def _picture(self, kind: OutputType, found: Prediction) -> Picture:
        single: Mapping[str, Tensor | None] = {"err": found.err, "ref": found.ref}
        if kind == "pha":
            return _pixels(found.pha, self._alpha_bits)[..., 0]
        if kind == "fgr":
            return _pixels(found.fgr * (found.pha > 0))
        if kind == "com":
            return self._composite(found)
        picture = single[kind]
        assert picture is not None
        return _pixels(picture)[..., 0]

    def _composite(self, found: Prediction) -> Picture:
        fgr, pha = found.fgr, found.pha
        if self._backdrop is None:
            return _pixels(torch.cat([fgr * (pha > 0), pha]))
        behind = self._backdrop.sized(*pha.shape[1:])
        back = torch.from_numpy(np.ascontiguousarray(behind)).to(fgr).div(255).permute(2, 0, 1)
        return _pixels(fgr * pha + back * (1 - pha))


def _pixels(picture: Tensor, bits: int = 8) -> Picture:
    """Return (c, h, w) in 0..1 as pixels (h, w, c)."""
    levels = picture.clamp(0, 1).mul(2**bits - 1).round()
    if bits == 16:
        return levels.to(torch.int32).permute(1, 2, 0).cpu().numpy().astype(np.uint16)
    return np.ascontiguousarray(levels.to(torch.uint8).permute(1, 2, 0).cpu().numpy())
