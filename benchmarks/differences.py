"""How far pictures and draws are from the reference's, one deviation at a time: the figures of docs/differences.md.

    python benchmarks/differences.py [--pictures 8] [--batches 20000]

The reference's way is written here plainly in torch, numpy and Pillow, from what is known of it. Pictures are procedural, 512
pixels square, of seed 0. A difference is that of the two ways with the same draws, in levels of 255: mean and maximum over all
pixels that either way fills. Draws are compared by their statistics. One core, about a minute.
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Callable, Iterable
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor, nn

from raymat.data.compositing.photometric_draws import draw_photometric
from raymat.data.decode import EncodedImage, Pixels
from raymat.data.photometric import (
    Affine,
    Jitter,
    affine_warp,
    box_blur,
    jitter_,
    plain_jitter_,
    sharpen,
)
from raymat.data.synthetic.pictures import synthetic_background, synthetic_pair
from raymat.data.warp import crop_map, decode_scale, draw_pair_warp, warp_into
from raymat.model.init import initialise
from raymat.model.matting import MattingBase

SIDE, SEED, BATCH, WIDTH = 512, 0, 8, 80
CROPS = ((384, 320), (260, 300))
"""Height and width."""


def tensor(pixels: Pixels) -> Tensor:
    """(c, h, w) in 0..1."""
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(planes)).double() / 255


def told(what: str, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Print mean and maximum of what differs between the pictures of each pair."""
    apart = torch.cat([(a - b).abs().flatten() * 255 for a, b in pairs])
    print(f"{what:<{WIDTH}}{apart.mean():8.3f}{apart.max():8.1f}")


def fact(what: str, ours: object, theirs: object) -> None:
    """Print a statistic of both ways."""
    print(f"{what:<{WIDTH}}{ours!s:>8}{theirs!s:>8}")


# The reference's way.


def through_frame(pixels: Pixels, number: int, crop: tuple[int, int]) -> Tensor:
    """Turn into the frame of 8 bits, bilinear; shrink that to the crop's longer side, bilinear again; crop its centre."""
    matrix = crop_map(draw_pair_warp(SEED, number, "base", True), (SIDE, SIDE), SIDE, (SIDE, SIDE))
    frame = np.empty_like(pixels)
    warp_into(frame, pixels, matrix)
    return centre(shrunk(tensor(frame), max(crop)), crop)


def shrunk(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x[None], (side, side), mode="bilinear", align_corners=False)[0]


def centre(x: Tensor, crop: tuple[int, int]) -> Tensor:
    top, left = ((have - want) // 2 for have, want in zip(x.shape[-2:], crop, strict=True))
    return x[..., top : top + crop[0], left : left + crop[1]]


def kernel_blur(x: Tensor, kernel: int, mode: str) -> Tensor:
    """Average over `kernel` pixels each way; an even kernel has one more before than after."""
    before = kernel // 2
    padded = F.pad(x[None], (before, kernel - 1 - before) * 2, mode=mode)
    return F.avg_pool2d(padded, kernel, stride=1)[0]


def nearest(x: Tensor, affine: Affine) -> Tensor:
    """Move a picture by whole pixels, and take the nearest."""
    height, width = x.shape[-2:]
    cos, sin = math.cos(math.radians(affine.degrees)), math.sin(math.radians(affine.degrees))
    slant = math.tan(math.radians(affine.shear))
    forward = affine.scale * np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, -slant], [0, 1]])
    shift = [round(t * side) for t, side in zip(affine.translate, (width, height), strict=True)]
    y, x_ = np.mgrid[0:height, 0:width] + 0.5
    places = np.stack([x_ - width / 2 - shift[0], y - height / 2 - shift[1]]).reshape(2, -1)
    found = np.linalg.inv(forward) @ places + np.array([[width / 2], [height / 2]])
    column, row = np.floor(found).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    flat = x.reshape(len(x), -1)[:, np.where(inside, row * width + column, 0)]
    return (flat * torch.from_numpy(inside)).reshape(x.shape)


def pillow_jitter(pixels: Pixels, jitter: Jitter) -> Tensor:
    """torchvision's jitter of a Pillow image: 8 bits after each step, the hue in 256ths of a turn."""
    image = Image.fromarray(pixels)
    enhance: dict[str, Callable[..., ImageEnhance._Enhance]] = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    for step in jitter.order:
        if step == "hue":
            hue, saturation, value = image.convert("HSV").split()
            turned = (np.asarray(hue).astype(int) + int(jitter.hue * 255)) % 256
            hue = Image.fromarray(turned.astype(np.uint8))
            image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
        else:
            image = enhance[step](image).enhance(getattr(jitter, step))
    return tensor(np.asarray(image))


# What is compared.


def interpolation(pairs: list[tuple[Pixels, Pixels]]) -> None:
    for name, part in (("foreground", 0), ("alpha", 1)):
        both = []
        for number, crop in product(range(len(pairs)), CROPS):
            pixels = pairs[number][part]
            out = np.empty((*crop, *pixels.shape[2:]), np.uint8)
            warp = draw_pair_warp(SEED, number, "base", True)
            warp_into(out, pixels, crop_map(warp, (SIDE, SIDE), SIDE, crop))
            both.append((tensor(out), through_frame(pixels, number, crop)))
        told(f"one interpolation for two: {name}", both)


def decoding(count: int) -> None:
    both = []
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(synthetic_pair(SEED, number, 4 * SIDE)[0]).save(file, "JPEG", quality=92)
        picture = EncodedImage(file.getvalue(), "picture.jpg")
        warp = draw_pair_warp(SEED, number, "base", True)
        matrix = crop_map(warp, picture.size, SIDE, (SIDE, SIDE))
        scale, outs = decode_scale(matrix), np.empty((2, SIDE, SIDE, 3), np.uint8)
        warp_into(outs[0], picture.decode(scale), matrix, scale)
        warp_into(outs[1], picture.decode(1), matrix, 1)
        both.append((tensor(outs[0]), tensor(outs[1])))
    told("JPEGs of 2048 decoded smaller (--scaled-decode): foreground", both)


def detail(walls: list[Pixels]) -> None:
    for radius in (1, 3, 5):
        both = []
        for wall, crop in product(walls, CROPS):
            x, side = tensor(wall), max(crop)
            late = box_blur(shrunk(x, side), radius * side / SIDE)
            early = shrunk(kernel_blur(x, 2 * radius + 1, "replicate"), side)
            both.append((late, early))
        told(f"blur after the crop, radius {radius}: background", both)
    both, edges = [], []
    for wall, crop in product(walls, CROPS):
        x, side = tensor(wall), max(crop)
        pillow = tensor(np.asarray(Image.fromarray(wall).filter(ImageFilter.SHARPEN)))
        both.append((sharpen(shrunk(x, side), side / SIDE), shrunk(pillow, side)))
        edge = torch.ones(SIDE, SIDE, dtype=torch.bool)
        edge[1:-1, 1:-1] = False
        edges.append((sharpen(x)[:, edge], pillow[:, edge]))
    told("sharpening after the crop: background", both)
    told("sharpening, the outermost pixels (Pillow leaves them): background", edges)


def shadows(pairs: list[tuple[Pixels, Pixels]]) -> None:
    numbers = [n for n in range(400) if draw_photometric(SEED, n).shadow][: 4 * len(pairs)]
    moved, even, borders, whole = [], [], [], []
    for place, number in enumerate(numbers):
        shadow = draw_photometric(SEED, number).shadow
        assert shadow is not None
        pha = tensor(pairs[place % len(pairs)][1])
        ours = affine_warp(pha, shadow.affine) * shadow.strength
        theirs = nearest(pha, shadow.affine) * shadow.strength
        blurred = box_blur(ours, (shadow.kernel - 1) / 2)
        moved.append((ours, theirs))
        centred = blurred, kernel_blur(ours, shadow.kernel, "replicate")
        if shadow.kernel % 2 == 0:
            even.append(centred)
        borders.append(
            (
                kernel_blur(ours, shadow.kernel, "replicate"),
                kernel_blur(ours, shadow.kernel, "reflect"),
            )
        )
        whole.append((blurred, kernel_blur(theirs, shadow.kernel, "reflect")))
    told("shadow, bilinear for nearest, whole pixels: before its blur", moved)
    told("shadow, even kernels centred", even)
    told("shadow, edges of the blur repeated, not mirrored", borders)
    told("shadow, all three", whole)


def captured(walls: list[Pixels]) -> None:
    drawn = [draw_photometric(SEED, n) for n in range(400)]
    affines = [p.captured_affine for p in drawn if p.captured_affine]
    told(
        "captured background's affine, bilinear for nearest, whole pixels",
        [
            (affine_warp(tensor(w), a), nearest(tensor(w), a))
            for w, a in zip(walls * 4, affines, strict=False)
        ],
    )
    jitters = [p.captured_jitter for p in drawn if p.captured_jitter][: 8 * len(walls)]
    for name, light in (("", 1.0), (" on a tenth of the light", 0.1)):
        cases = [(tensor(w) * light, j) for w, j in zip(walls * 8, jitters, strict=True)]
        for recipe, way in (("1", jitter_), ("2 (theirs)", plain_jitter_)):
            changes = [(way(x.clone(), j), x) for x, j in cases]
            told(f"what the captured jitter changes{name}: recipe {recipe}", changes)


def early_jitter(walls: list[Pixels]) -> None:
    jitters = [draw_photometric(SEED, n).bgr_jitter for n in range(4 * len(walls))]
    both = [
        (jitter_(tensor(w), j), pillow_jitter(w, j))
        for w, j in zip(walls * 4, jitters, strict=True)
    ]
    told("foreground's and background's jitter in floats, not in 8 bits", both)


def draws(batches: int) -> None:
    chances = np.random.Generator(np.random.Philox(0))

    for name, chance, top in (("shadow's strength", 0.3, 0.3), ("noise's deviation", 0.4, 0.03)):
        hit = chances.random((batches, BATCH)) < chance
        each = chances.random((batches, BATCH)) * top
        struck = hit.any(1)
        ours = ((each * hit).sum(1)[struck] / hit.sum(1)[struck]).std()
        what = f"deviation, from batch to batch of {BATCH}, of the mean {name}"
        fact(what, f"{ours:.4f}", f"{each[struck, 0].std():.4f}")
    for name, chance in (("shadows", 0.3), ("noise levels", 0.4), ("affines", 0.3)):
        hit = (chances.random((batches, BATCH)) < chance).sum(1)
        fact(
            f"different {name} in a batch of {BATCH}, mean",
            f"{hit.mean():.2f}",
            f"{(hit > 0).mean():.2f}",
        )
    orders = chances.integers(0, 24, (batches, BATCH))
    struck = chances.random((batches, BATCH)) < 0.8
    counts = [len({*row[on].tolist()}) for row, on in zip(orders, struck, strict=True)]
    fact(
        f"different orders of the captured jitter in a batch of {BATCH}, mean",
        f"{np.mean(counts):.2f}",
        f"{struck.any(1).mean():.2f}",
    )
    for name, of in (("number", len), ("mean", np.mean), ("deviation", np.std)):
        ours, theirs = (of(np.arange(256, 512, step)) for step in (4, 1))
        fact(f"sides of a base crop: {name}", f"{ours:.5g}", f"{theirs:.5g}")
    kernels, side = np.arange(20, 40), np.arange(256, 512, 4)
    scale = np.maximum(*np.meshgrid(side, side)) / SIDE
    fact(
        "shadow's kernel in pixels of the crop, mean (ours shrinks with it)",
        f"{(kernels.mean() * scale).mean():.1f}",
        f"{kernels.mean():.1f}",
    )


def clamped_at_start() -> None:
    """Of how many pixels the clamp of alpha lets no gradient through, in the first step of a network from random weights."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    for seed, centred in product(range(8), shares):
        network = MattingBase("mobilenetv2")
        initialise(network, seed)
        if not centred:
            nn.init.uniform_(
                network.decoder.conv4.bias,
                -0.06,
                0.06,
                generator=torch.Generator().manual_seed(seed),
            )
        network.eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        with torch.no_grad():
            pictures = torch.stack(
                [tensor(synthetic_background(seed, n, 128)) for n in range(4)]
            ).float()
            pha = network(pictures, pictures.roll(1, 0))[0]
        shares[centred].append(((pha == 0) | (pha == 1)).float().mean().item())
    ours, theirs = (f"{np.mean(shares[c]):.1%}" for c in (True, False))
    fact("alpha's pixels that its clamp stops at the start: bias 0.5, bias near 0", ours, theirs)


def main() -> None:
    """Compare, and print a line for each deviation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--batches", type=int, default=20_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    pairs = [synthetic_pair(SEED, n, SIDE) for n in range(given.pictures)]
    walls = [synthetic_background(SEED, n, SIDE) for n in range(given.pictures)]
    print(f"{'levels of 255':<{WIDTH}}{'mean':>8}{'max':>8}")
    interpolation(pairs)
    decoding(given.pictures)
    detail(walls)
    shadows(pairs)
    captured(walls)
    early_jitter(walls)
    print(f"\n{'statistics':<{WIDTH}}{'ours':>8}{'theirs':>8}")
    draws(given.batches)
    clamped_at_start()


if __name__ == "__main__":
    main()
