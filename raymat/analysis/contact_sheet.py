"""A picture of what a trained network makes of validation examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from raymat.checkpoint.catalog import newest
from raymat.config.run import RunConfig
from raymat.data.batch import MicroBatch
from raymat.data.composite import Composed, composite
from raymat.errors import CheckpointError
from raymat.model.matting import MattingBase, build
from raymat.storage.store import Store

CAPTION_PIXELS = 18


@dataclass(frozen=True)
class Column:
    """One column of the picture: its caption and images, each uint8 (H, W, 3) RGB."""

    caption: str
    images: list[NDArray[np.uint8]]


def trained_model(store: Store, config: RunConfig) -> MattingBase:
    """The network with the weights of the run's newest verified checkpoint, in eval mode, float32.

    Raises:
        CheckpointError: the run has no committed checkpoint.
    """
    found = newest(store)
    if found is None:
        raise CheckpointError(f"{store.url} has no committed checkpoint")
    weights = {
        name.removeprefix("model/"): tensor
        for name, tensor in found[1].tensors.items()
        if name.startswith("model/")
    }
    model = build(config.stage, config.model, config.data.seed)
    model.load_state_dict(weights)
    return model.float().eval()


def source_and_truth(batch: MicroBatch) -> tuple[Column, Column]:
    """The composited sources and the true alphas of a validation batch."""
    composed = _composed(batch)
    return (
        Column("source", images(composed.src)),
        Column("true alpha", images(composed.pha)),
    )


def prediction(batch: MicroBatch, model: MattingBase, caption: str) -> Column:
    """The alphas that `model` predicts for a validation batch."""
    composed = _composed(batch)
    with torch.no_grad():
        pha = model(composed.src, composed.bgr)[0]
    return Column(caption, images(pha))


def write_picture(path: str, columns: list[Column], side: int) -> None:
    """Write a PNG with one row per example; every image is shown `side` pixels square."""
    Path(path).write_bytes(png(columns, side))


def png(columns: list[Column], side: int) -> bytes:
    """A PNG with one row per example; every image is shown `side` pixels square."""
    drawn = [
        np.concatenate([caption(column.caption, side), *_resized(column, side)])
        for column in columns
    ]
    picture = np.concatenate(drawn, axis=1)
    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done, "OpenCV cannot encode PNG"
    return encoded.tobytes()


def _composed(batch: MicroBatch) -> Composed:
    fgr, pha, bgr = (torch.from_numpy(np.array(a)) for a in (batch.fgr, batch.pha, batch.bgr))
    return composite(fgr, pha, bgr, augmentation=None)


def images(batch: torch.Tensor) -> list[NDArray[np.uint8]]:
    """(n, 3 or 1, h, w) in 0..1, on any device, as n pictures, each uint8 (h, w, 3)."""
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
    """Text on a strip (CAPTION_PIXELS, width, 3) of white; what does not fit is cut off, and what is not ASCII a "?"."""
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
