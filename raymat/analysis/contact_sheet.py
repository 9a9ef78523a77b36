"""A contact sheet: small pictures in columns with captions, one row per example."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from raymat.data.composite import Composed
from raymat.model.matting import MattingBase

CAPTION_PIXELS = 18


@dataclass(frozen=True)
class Column:
    """One column of the sheet: its caption and images, each uint8 (H, W, 3) RGB."""

    caption: str
    images: list[NDArray[np.uint8]]


def source_and_truth(truth: Composed) -> list[Column]:
    """Return columns of the composited sources and of the true alphas."""
    return [Column("source", images(truth.src)), Column("true alpha", images(truth.pha))]


@torch.no_grad()
def prediction(network: MattingBase, truth: Composed, caption: str) -> Column:
    """Return a column of the alphas that `network` predicts."""
    return Column(caption, images(network(truth.src, truth.bgr)[0]))


def png(columns: list[Column], side: int) -> bytes:
    """Encode the sheet as PNG; every image is shown `side` pixels square."""
    drawn = [
        np.concatenate([caption(column.caption, side), *_resized(column, side)])
        for column in columns
    ]
    picture = np.concatenate(drawn, axis=1)
    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done, "OpenCV cannot encode PNG"
    return encoded.tobytes()


def images(batch: torch.Tensor) -> list[NDArray[np.uint8]]:
    """Convert (n, 3 or 1, h, w) in 0..1, on any device, to n pictures, each uint8 (h, w, 3)."""
    pixels = (batch.float().clamp(0, 1) * 255).round().to(torch.uint8)
    if pixels.shape[1] == 1:
        pixels = pixels.repeat(1, 3, 1, 1)
    return [np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()) for image in pixels]


def _resized(column: Column, side: int) -> list[NDArray[np.uint8]]:
    return [
        cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA).astype(np.uint8)
        for image in column.images
    ]


def caption(text: str, width: int) -> NDArray[np.uint8]:
    """Draw text on a white strip (CAPTION_PIXELS, width, 3); too long text is cut off, and what is not ASCII becomes "?"."""
    strip = np.full((CAPTION_PIXELS, width, 3), 255, np.uint8)
    cv2.putText(
        strip,
        text.encode("ascii", "replace").decode(),
        (4, CAPTION_PIXELS - 5),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.4,
        (0, 0, 0),
        1,
        cv2.LINE_AA,
    )
    return strip
