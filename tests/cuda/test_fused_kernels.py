"""What can be tried of the fused kernels without a card: their values in Triton's interpreter, and that they compile for cards."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raymat.data.composite import Augmentation, Composed, Way, composite
from raymat.data.compositing import fused_batch
from raymat.data.compositing.fused_batch import FusedBatch
from raymat.data.compositing.photometric_draws import Jitter, Noise, Photometric, draw_photometric
from raymat.data.compositing.whole_batch import WholeBatch

pytest.importorskip("triton", reason="Triton comes with torch's CUDA build")

ROOT = Path(__file__).parents[2]
SEED, SIDE = 42, 64
NUMBERS = list(range(60, 68))
"""Examples that undergo every operation between them; 61 has neither shadow nor blur, 66 has all."""
SAME = Jitter(("brightness", "contrast", "saturation", "hue"), 1, 1, 1, 0)


def images(n: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 fgr, pha, bgr of n examples: noise, with flat alphas of 0 and 255 above and below."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    fgr, pha, bgr = draw(n, height, width, 3), draw(n, height, width), draw(n, height, width, 3)
    pha[:, : height // 3], pha[:, -height // 3 :] = 0, 255
    return fgr, pha, bgr


def fused(pixels: tuple[Tensor, ...], numbers: list[int], **options: Any) -> Composed:
    height, width = pixels[1].shape[1:]
    parameters = [draw_photometric(SEED, number) for number in numbers]
    batch = FusedBatch(parameters, (height, width), max(height, width) / SIDE)
    return batch.compose(pixels, (SEED, numbers), **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pictures have several blocks, too, of which the last is not full."""
    monkeypatch.setattr(fused_batch, "BLOCK", 256)


@pytest.mark.parametrize("way", ["together", "one by one"])
@pytest.mark.parametrize(("height", "width"), [(20, 28), (36, 4)])
def test_fused_pictures_are_those_of_the_other_ways_but_for_rounding(
    height: int, width: int, way: Way
) -> None:
    pixels = images(len(NUMBERS), height, width)
    found = fused(pixels, NUMBERS)
    key = Augmentation(SEED, NUMBERS, SIDE, "3")
    for name, one, other in zip(
        Composed._fields, found, composite(*pixels, key, way=way), strict=True
    ):
        # Places in a picture that is moved are rounded: between neighbours of noise that is a few units of the last place more.
        assert (one - other).abs().max() < (1e-5 if name == "bgr" else 1e-6), name


def test_fused_pictures_are_no_further_from_double_precision_than_the_other_way() -> None:
    pixels = images(len(NUMBERS), 20, 28)
    key = Augmentation(SEED, NUMBERS, SIDE, "3")
    exact = composite(*pixels, key, torch.float64)
    for one, other, truth in zip(
        fused(pixels, NUMBERS), composite(*pixels, key, way="together"), exact, strict=True
    ):
        assert (one - truth).abs().max() <= 2 * (other - truth).abs().max()


def test_an_example_is_the_same_to_the_bit_alone_and_in_any_batch() -> None:
    pixels = images(5, 20, 28)
    whole = fused(pixels, NUMBERS[2:7])
    for places in ([0], [1, 2], [4, 3]):
        part = fused(tuple(x[places] for x in pixels), [NUMBERS[2 + i] for i in places])
        for one, other in zip(part, whole, strict=True):
            assert torch.equal(one, other[places])


def test_the_channels_may_lie_last_and_the_pictures_stay_the_same() -> None:
    pixels = images(3, 20, 28)
    numbers = NUMBERS[5:]  # the second is moved, the third is not
    plain = fused(pixels, numbers)
    last = fused(pixels, numbers, memory_format=torch.channels_last)
    for picture in (last.src, last.bgr):
        assert picture.is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(last, plain, strict=True):
        assert torch.equal(one, other)


def test_the_noise_is_the_same_to_the_bit() -> None:
    noisy = [Photometric(None, False, SAME, None, False, SAME, None, Noise(0.03, 0.02, 0), None, None)]  # fmt: skip
    grey = torch.full((1, 20, 28, 3), 128, dtype=torch.uint8)
    pixels = (grey, grey[..., 0], grey)
    found = FusedBatch(noisy, (20, 28), 1.0).compose(pixels, (SEED, [7]))
    other = WholeBatch(noisy, (20, 28), 1.0).compose(pixels, (SEED, [7]), torch.float32)
    assert found.bgr.std() > 0.015
    assert torch.equal(found.bgr, other.bgr)
    # The source is composed first, whose last bit may differ before the noise is added.
    assert (found.src - other.src).abs().max() < 1e-7


def test_pictures_that_are_views_give_the_same() -> None:
    pixels = images(2, 20, 28)
    wide = tuple(torch.cat((x, x), dim=2)[:, :, :28] for x in pixels)
    for one, other in zip(fused(wide, [66, 67]), fused(pixels, [66, 67]), strict=True):
        assert torch.equal(one, other)


def test_no_kernel_adds_up_in_an_order_that_may_change() -> None:
    for name in ("fused_kernels", "fused_colours"):
        source = (ROOT / f"raymat/data/compositing/{name}.py").read_text(encoding="utf-8")
        assert "atomic" not in source


@pytest.mark.slow
def test_every_kernel_compiles_for_cards_from_turing_on_and_spills_nothing(tmp_path: Path) -> None:
    """In a process of its own, which does not interpret them, and with an empty cache."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "benchmarks/kernel_registers.py"],
        cwd=ROOT, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True,
        text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^(\w+).*?  +(\d+) +0 +(\d+) +0 +(\d+) +0$", done.stdout, re.MULTILINE)
    assert {name for name, *_ in rows} == {
        "to_planes", "blur", "luma_sums", "luma_means", "cast_shadows", "compose", "move_captured",
    }  # fmt: skip
