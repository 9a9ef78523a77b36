"""Small real datasets: pictures encoded as people have them, written to any fsspec URL."""

from __future__ import annotations

import io
import time
from typing import Any

import cv2
import fsspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raymat.config.values import Range
from raymat.data.decode import OpenImage, RawImage
from raymat.data.sample_order import SampleOrder

Pixels = NDArray[np.uint8]


def photo(seed: int, width: int = 96, height: int = 64) -> Pixels:
    """A smooth coloured picture (height, width, 3) with some grain."""
    rng = np.random.Generator(np.random.Philox(seed))
    coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return np.clip(smooth + rng.integers(-4, 5, smooth.shape), 0, 255).astype(np.uint8)


def disc(seed: int, width: int = 96, height: int = 64) -> Pixels:
    """An alpha (height, width): a soft disc."""
    rng = np.random.Generator(np.random.Philox(seed))
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    cx, cy, r = rng.uniform(0.3, 0.7, 3) * (width, height, height / 2)
    return np.clip(128 + 40 * (r - np.hypot(x - cx, y - cy)), 0, 255).astype(np.uint8)


def encode(pixels: Pixels, form: str, **options: Any) -> bytes:
    """The bytes of a file of Pillow's `form`: JPEG, PNG or WEBP."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def write(url: str, data: bytes) -> None:
    """Write a file at any URL, with the folders above it."""
    with fsspec.open(url, "wb", auto_mkdir=True) as file:
        file.write(data)


def write_dataset(
    root: str, pairs: int = 5, backgrounds: int = 4, valid: int = 2, forms: str = "mixed"
) -> tuple[str, str]:
    """A dataset below `root`; gives the URLs of pairs and backgrounds. Names sort by index."""
    for split, count, walls in (("train", pairs, backgrounds), ("valid", valid, valid)):
        shift = 0 if split == "train" else 1000
        for i in range(count):
            fgr = encode(photo(shift + i), "JPEG", quality=95)
            pha = disc(shift + i)
            write(f"{root}/data/{split}/fgr/clip{i % 2}/{i:04}.jpg", fgr)
            if i % 2:
                jpeg = encode(pha, "JPEG", quality=95)
                write(f"{root}/data/{split}/pha/clip{i % 2}/{i:04}.JPG", jpeg)
            else:
                write(f"{root}/data/{split}/pha/clip{i % 2}/{i:04}.png", encode(pha, "PNG"))
        for i in range(walls):
            form, suffix = (("JPEG", "jpeg"), ("WEBP", "webp"), ("PNG", "png"))[i % 3]
            picture = encode(photo(shift + 500 + i, 80, 80), form, quality=90)
            write(f"{root}/walls/{split}/{i:04}.{suffix}", picture)
    return f"{root}/data", f"{root}/walls"


class MemorySource:
    """A source of small pictures from memory, which may take `wait` seconds to open, as from far away."""

    def __init__(
        self, pairs: int, valid_pairs: int = 0, fetch_ahead: int = 0, wait: float = 0
    ) -> None:
        self.pairs = self.backgrounds = pairs
        self.valid_pairs = self.valid_backgrounds = valid_pairs
        self.fetch_ahead = fetch_ahead
        self._wait = wait

    def open_pair(self, index: int, valid: bool = False) -> tuple[OpenImage, OpenImage]:
        time.sleep(self._wait)
        seed = 10_000 * valid + index
        return RawImage(photo(seed), f"fgr {seed}"), RawImage(disc(seed), f"pha {seed}")

    def open_background(self, index: int, valid: bool = False) -> OpenImage:
        time.sleep(self._wait)
        seed = 10_000 * valid + index + 5000
        return RawImage(photo(seed), f"bgr {seed}")

    def name_of(self, index: int, valid: bool = False) -> str:
        return f"{'valid' if valid else 'train'} {index}"


def make_order(**changed: object) -> SampleOrder:
    """25 whole batches and one example, of a dataset of 10 pairs."""
    fields = {
        "seed": 42,
        "pairs": 10,
        "backgrounds": 7,
        "batch_size": 4,
        "crop": Range(256, 512),
        "total_examples": 101,
    }
    return SampleOrder(**(fields | changed))  # type: ignore[arg-type]
