"""What one training sample costs a core, and what a large listing costs.

    python benchmarks/data_path.py [--samples 8]

Beside raymat's path (decode at the scale that the warp allows, one warp to the final crop) stands the straightforward one, sample
by sample in the same process: Pillow decodes all pixels, warps them at the picture's size, crops and mirrors; then it also jitters
the colours as torchvision does with Pillow and converts to float tensors, which raymat leaves to the training device. Blur and
sharpening are done by neither. The floor is entropy decoding alone: JPEGs at 1/8 by libjpeg-turbo, PNGs by the quickest decoder.
From prepared copies (`raymat prepare --longest 1024`) raymat is compared with the straightforward way from the originals; their
bytes, and the time that making them takes, are told. Times are
CPU milliseconds of this process, medians; that both ways show the same pictures is asserted before.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from raymat.config.sections import Stage
from raymat.config.values import Range
from raymat.data.batch import Geometry
from raymat.data.batch_maker import make_train_batch
from raymat.data.dataset.discovery import build_listing, list_either
from raymat.data.dataset.listing import Files, Listing, Split
from raymat.data.dataset.source import FolderSource
from raymat.data.decoding.header import DECODING, read_header
from raymat.data.decoding.quick_png import decode_png
from raymat.data.preparation.copy_job import CopyJob
from raymat.data.preparation.picture_copy import CopySettings
from raymat.data.sample_order import Example, SampleOrder
from raymat.data.warp import Warp, draw_background_warp, draw_pair_warp
from raymat.storage.store import Store

Pixels = NDArray[np.uint8]
SIZES = {"4K": (3840, 2160), "HD": (1920, 1080)}
CASES: list[tuple[str, str, Stage, int]] = [
    ("4K", "png", "base", 512),
    ("4K", "jpg", "base", 512),
    ("4K", "png", "refine", 2048),
    ("4K", "jpg", "refine", 2048),
    ("HD", "png", "base", 512),
]
LONGEST = 1024
"""Of the prepared copies."""


def photo(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """Noise in octaves, as full of detail as a photo: about 2 MB as a 4K JPEG of quality 90."""
    total = np.full((height, width, 3), 128.0, np.float32)
    for octave in range(2, 10):
        cell = 2**octave
        shape = (height // cell + 2, width // cell + 2, 3)
        coarse = rng.normal(0, 2.2 * octave, shape).astype(np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(total, 0, 255).astype(np.uint8)


def keyed(rng: np.random.Generator, width: int, height: int) -> tuple[Pixels, Pixels]:
    """A foreground on flat colour, as from a green screen, and its alpha."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    radius = height * rng.uniform(0.3, 0.45)
    distance = np.hypot(x - width * rng.uniform(0.4, 0.6), y - height * 0.5)
    alpha = np.clip(0.5 + (radius - distance) / 6, 0, 1).astype(np.float32)[..., None]
    mixed = photo(rng, width, height) * alpha + np.array([60, 180, 70], np.float32) * (1 - alpha)
    return mixed.astype(np.uint8), np.round(alpha[..., 0] * 255).astype(np.uint8)


def save(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=90)


def write_dataset(root: Path, size: tuple[int, int], alpha: str, count: int) -> FolderSource:
    """`count` pairs and backgrounds of one size, as a source."""
    rng = np.random.Generator(np.random.Philox(1))
    for i in range(count):
        fgr, pha = keyed(rng, *size)
        save(root / f"data/train/fgr/{i}.jpg", fgr)
        save(root / f"data/train/pha/{i}.{alpha}", pha)
        save(root / f"walls/train/{i}.jpg", photo(rng, *size))
    return FolderSource(build_listing(f"{root}/data", f"{root}/walls", need_valid=False))


def pillow_picture(path: str, mode: str, warp: Warp, resolution: int) -> Pixels:
    """One picture the straightforward way, up to the frame."""
    image = Image.open(io.BytesIO(Path(path).read_bytes())).convert(mode)
    width, height = image.size
    fit = max(resolution / width, resolution / height)
    canvas = (max(width, resolution), max(height, resolution))
    image = ImageOps.expand(
        image, (math.ceil((canvas[0] - width) / 2), math.ceil((canvas[1] - height) / 2))
    )
    image = image.transform(
        image.size, Image.Transform.AFFINE, _inverse(image.size, (width, height), warp, fit),
        Image.Resampling.BILINEAR,
    )  # fmt: skip
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    image = image.crop((left, top, left + resolution, top + resolution))
    return np.asarray(ImageOps.mirror(image) if warp.flip else image)


def _inverse(
    canvas: tuple[int, int], size: tuple[int, int], warp: Warp, fit: float
) -> tuple[float, ...]:
    """Pillow's coefficients, from output to input, about the canvas's centre."""
    a, slant = math.radians(warp.degrees), math.tan(math.radians(warp.shear))
    forward = fit * warp.zoom * np.array(
        [
            [math.cos(a), -math.cos(a) * slant - math.sin(a)],
            [math.sin(a), -math.sin(a) * slant + math.cos(a)],
        ]
    )  # fmt: skip
    linear = np.linalg.inv(forward)
    centre = np.array(canvas) / 2
    shift = np.array([warp.shift_x * fit * size[0], warp.shift_y * fit * size[1]])
    offset = centre - linear @ (centre + shift)
    return (*linear[0], offset[0], *linear[1], offset[1])


def pillow_sample(
    source: FolderSource, example: Example, stage: Stage, resolution: int
) -> list[Pixels]:
    """Foreground, alpha and background."""
    pair = draw_pair_warp(1, example.number, stage, train=True)
    fgr, pha = source.open_pair(example.pair)
    wall = source.open_background(example.background)
    behind = draw_background_warp(1, example.number, True)
    return [
        pillow_picture(fgr.path, "RGB", pair, resolution),
        pillow_picture(pha.path, "L", pair, resolution),
        pillow_picture(wall.path, "RGB", behind, resolution),
    ]


def jitter_and_convert(pictures: list[Pixels]) -> list[torch.Tensor]:
    """ColorJitter(0.15, 0.15, 0.15, 0.05) of the colours, and ToTensor, step by step as torchvision does them."""
    found = []
    for pixels in pictures:
        image = Image.fromarray(pixels)
        if image.mode == "RGB":
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = enhance(image).enhance(1.1)
            hue, saturation, value = image.convert("HSV").split()
            turned = Image.fromarray(np.asarray(hue) + np.uint8(8))
            image = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
        planes = torch.from_numpy(np.array(image)).reshape(*pixels.shape[:2], -1)
        found.append(planes.permute(2, 0, 1).contiguous().to(torch.float32).div(255))
    return found


def decode_entropy(files: list[tuple[bytes, bool]]) -> None:
    """The floor: what no decoder can leave out."""
    for data, grey in files:
        if data[:2] == b"\xff\xd8":
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            sides = {"min_height": -(-height // 8), "min_width": -(-width // 8)}
            simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB", **sides)
        else:
            decode_png(read_header(data, grey, DECODING))


def files_of(source: FolderSource, example: Example) -> list[tuple[bytes, bool]]:
    fgr, pha = source.open_pair(example.pair)
    wall = source.open_background(example.background)
    paths = ((fgr.path, False), (pha.path, True), (wall.path, False))
    return [(Path(path).read_bytes(), grey) for path, grey in paths]


def cpu_ms(call: Callable[..., object], *args: object) -> float:
    start = time.process_time()
    call(*args)
    return (time.process_time() - start) * 1e3


def assert_same_pictures(source: FolderSource, stage: Stage, resolution: int) -> None:
    """At the whole frame and without scaled decoding both ways show the same, but for how they round."""
    order = SampleOrder(1, source.pairs, source.backgrounds, 1, Range(resolution, resolution), 2)
    geometry = Geometry(stage, resolution, scaled_decode=False)
    for step, example in enumerate(order.examples(range(2))):
        batch = make_train_batch(source, order, geometry, step, range(1))
        theirs = pillow_sample(source, example, stage, resolution)
        for ours, other in zip((batch.fgr, batch.pha, batch.bgr), theirs, strict=True):
            error = np.abs(ours[0].astype(int) - other).mean()
            assert error < 2, f"{error:.2f} levels of 255 apart"


def prepared(root: Path, alpha: str) -> FolderSource:
    """A copy of the dataset as `raymat prepare` makes it, with alphas of the same kind."""
    copied, took = [], 0.0
    for name in ("data", "walls"):
        store = Store.open(str(root), f"small-{name}")
        how = CopySettings(longest=LONGEST, quality=92, alpha="png" if alpha == "png" else "jpeg")
        job = CopyJob(list_either(f"{root}/{name}"), how, store)
        start = time.process_time()
        copied += [job.copy(place) for place in job.places()]
        took += time.process_time() - start
    assert not [outcome for outcome in copied if outcome.left_out]
    before = sum(row.size for outcome in copied for row in outcome.sources)
    after = sum(file.size for outcome in copied for file in outcome.files)
    pictures = sum(len(outcome.files) for outcome in copied)
    print(
        f"copies: {1e3 * took / pictures:.0f} ms a picture, {before / pictures / 1e3:,.0f} kB "
        f"become {after / pictures / 1e3:,.0f}"
    )
    urls = (f"{root}/small-data", f"{root}/small-walls")
    return FolderSource(build_listing(*urls, need_valid=False))


def tell_differences(whole: FolderSource, copy: FolderSource, resolution: int) -> None:
    """Show by how much the same examples from the copies differ."""
    order = SampleOrder(1, whole.pairs, whole.backgrounds, 1, Range(resolution // 2, resolution), 4)
    geometry = Geometry("base", resolution)
    found: dict[str, list[float]] = {"foreground": [], "alpha": [], "background": []}
    for step, example in enumerate(order.examples(range(4))):
        stems = [
            [Path(image.path).stem for image in source.open_pair(example.pair)]
            for source in (whole, copy)
        ]
        assert stems[0] == stems[1]
        pictures = [make_train_batch(s, order, geometry, step, range(1)) for s in (whole, copy)]
        planes = [(batch.fgr, batch.pha, batch.bgr) for batch in pictures]
        for name, ours, theirs in zip(found, *planes, strict=True):
            assert ours.shape == theirs.shape
            found[name].append(float(np.abs(ours.astype(int) - theirs).mean()))
            assert found[name][-1] < 6, f"{name}: {found[name][-1]:.2f} levels of 255 apart"
    told = ", ".join(f"{name} {statistics.mean(each):.2f}" for name, each in found.items())
    print(f"samples of the copies differ by (mean of levels of 255): {told}")


Times = dict[str, float]


def measure_case(
    ours: FolderSource, theirs: FolderSource, stage: Stage, resolution: int, samples: int
) -> Times:
    """Medians of all ways, taken in turn."""
    crop = Range(resolution // 2, resolution)
    order = SampleOrder(1, ours.pairs, ours.backgrounds, 1, crop, samples + 1)
    geometry = Geometry(stage, resolution)
    found: dict[str, list[float]] = {name: [] for name in ("raymat", "Pillow", "all", "floor")}
    for step, example in enumerate(order.examples(range(samples + 1))):
        files = files_of(ours, example)
        found["raymat"].append(cpu_ms(make_train_batch, ours, order, geometry, step, range(1)))
        found["floor"].append(cpu_ms(decode_entropy, files))
        pictures: list[Pixels] = []
        plain = cpu_ms(
            lambda: pictures.extend(pillow_sample(theirs, example, stage, resolution))  # noqa: B023
        )
        found["Pillow"].append(plain)
        found["all"].append(plain + cpu_ms(jitter_and_convert, pictures))
    return {name: statistics.median(times[1:]) for name, times in found.items()}


def measure_samples(samples: int) -> None:
    print(f"CPU ms per sample on one core, median of {samples}")
    titles = ("raymat", "Pillow", "ratio", "and jitter", "ratio", "floor", "of it")
    print(f"{'case':<34}" + "".join(f"{title:>11}" for title in titles))
    for name, alpha, stage, resolution in CASES:
        with tempfile.TemporaryDirectory(prefix="raymat-") as folder:
            source = write_dataset(Path(folder), SIZES[name], alpha, count=3)
            assert_same_pictures(source, stage, resolution)
            label = f"{name}, alpha {alpha}, to {resolution}"
            show(label, measure_case(source, source, stage, resolution, samples))
            if (name, resolution) == ("4K", 512):
                small = prepared(Path(folder), alpha)
                tell_differences(source, small, resolution)
                label = f"{name}, alpha {alpha}, prepared, to {resolution}"
                show(label, measure_case(small, source, stage, resolution, samples))


def show(label: str, times: Times) -> None:
    ours = times["raymat"]
    print(
        f"{label:<34}{ours:>11.1f}{times['Pillow']:>11.1f}{times['Pillow'] / ours:>10.1f}x"
        f"{times['all']:>11.1f}{times['all'] / ours:>10.1f}x{times['floor']:>11.1f}"
        f"{100 * ours / times['floor']:>10.0f}%",
        flush=True,
    )


def large_listing(count: int) -> Listing:
    """A listing with names and sizes as VideoMatte240K's, and as many backgrounds."""
    rng = np.random.Generator(np.random.Philox(0))

    def files(folder: str, stems: list[str]) -> Files:
        sizes = rng.integers(100_000, 4_000_000, len(stems))
        return Files(folder, stems, [".jpg"], np.zeros(len(stems), np.uint8), sizes)

    def split(name: str, count: int) -> Split:
        stems = [f"{i // 500:04}/{i % 500:05}" for i in range(count)]
        return Split(files(f"{name}/fgr", stems), files(f"{name}/pha", stems), files(name, stems))

    urls = ("s3://bucket/data", "s3://bucket/walls")
    return Listing.of(*urls, split("train", count), split("valid", 50))


def measure_listing(count: int) -> None:
    listing = large_listing(count)
    data = listing.to_bytes()
    took = statistics.median(cpu_ms(Listing.from_bytes, data) for _ in range(5))
    print(
        f"\nlisting of {count:,} pairs and {count:,} backgrounds: {len(data) / 1e6:.2f} MB, "
        f"loaded and verified in {took:.0f} ms"
    )


def measure_start(count: int) -> None:
    def first_batch(seed: int, number: int) -> float:
        order = SampleOrder(seed, count, count, 8, Range(256, 512), 10**12)
        return cpu_ms(order.examples, range(number, number + 8))

    early, late = (
        statistics.median(first_batch(seed, number) for seed in range(5)) for number in (0, 10**9)
    )
    print(
        f"first 8 examples of {count:,} pairs: {early:.1f} ms from example 0, "
        f"{late:.1f} ms from example 1,000,000,000"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=8)
    samples = parser.parse_args().samples
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    measure_samples(samples)
    measure_listing(240_000)
    measure_start(240_000)


if __name__ == "__main__":
    main()
