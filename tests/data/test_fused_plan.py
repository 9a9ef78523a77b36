"""What the fused kernels are told to do, and how often they are launched: planned without Triton and without a card."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from raymat.data.compositing.fused_batch import FusedBatch
from raymat.data.compositing.fused_plan import FusedPlan
from raymat.data.compositing.host_numbers import HostNumbers
from raymat.data.compositing.photometric_draws import Affine, Jitter, Noise, Photometric, Shadow

ORDER = ("brightness", "contrast", "saturation", "hue")
SAME = Jitter(ORDER, 1, 1, 1, 0)
NOTHING = Photometric(None, False, SAME, None, False, SAME, None, None, None, None)
EVERYTHING = Photometric(
    2, True, SAME, 3, True, SAME, Shadow(0.25, Affine(0, (0.5, 0)), 21), Noise(0.01, 0.02, 0),
    SAME, Affine(0, (0, 0.25)),
)  # fmt: skip
SIZE = (8, 16)
NONE = -1.0


def planned(*parameters: Photometric, scale: float = 1.0) -> FusedPlan:
    numbers = HostNumbers()
    plan = FusedPlan(parameters, SIZE, scale, numbers)
    numbers.send(torch.zeros(1))
    return plan


def rows(table: Any) -> list[list[float]]:
    return table.on_device().view(table.rows, -1).tolist()


def launched(*parameters: Photometric) -> list[tuple[str, tuple[int, int]]]:
    """The kernels that a batch of a picture each launches, with their grids."""
    found: list[tuple[str, tuple[int, int]]] = []

    def record(name: str, grid: tuple[int, int], *operands: Any, **constants: Any) -> None:
        found.append((name, grid))

    n = len(parameters)
    pixels = tuple(torch.zeros((n, *SIZE, *more), dtype=torch.uint8) for more in ((3,), (), (3,)))
    FusedBatch(parameters, SIZE, 1.0, record).compose(pixels, (0, range(n)))  # type: ignore[arg-type]
    return found


def test_an_examples_row_holds_its_jitters_and_the_places_of_what_it_has() -> None:
    turned = Jitter(("hue", "saturation", "contrast", "brightness"), 1.25, 0.75, 1.5, 0.25)
    example = replace(
        NOTHING, bgr_jitter=turned, bgr_blur=1, noise=Noise(0.5, 0.25, 0), captured_jitter=turned
    )
    _, row = rows(planned(EVERYTHING, example).table)
    assert row[:10] == [0, 1, 2, 3, 1, 1, 1, 0, -2, 2]
    # A quarter of a turn is 1.5 sixths; green is 2 away from red, blue -2.
    assert row[10:20] == row[20:30] == [3, 2, 1, 0, 1.25, 0.75, 1.5, 1.5, -0.5, -2.5]
    # Captured; the second noise and its deviations; no foreground plane, a background after 4 + 3 planes; no shadow, not moved.
    assert row[30:] == [1, 1, 0.5, 0.25, NONE, 7, NONE, NONE]


def test_an_example_without_augmentation_has_no_places() -> None:
    (row,) = rows(planned(NOTHING).table)
    assert row[20:] == [0] * 10 + [0, NONE, 0, 0, NONE, NONE, NONE, NONE]


def test_blurred_pictures_become_planes_and_radii_scale() -> None:
    plan = planned(NOTHING, EVERYTHING, replace(NOTHING, bgr_sharpen=True, bgr_blur=0), scale=0.5)
    assert plan.planes == 10
    assert rows(plan.detailed) == [[1, 0, 1], [1, 4, 0], [2, 7, 0]]
    radii = [1.0] * 4 + [1.5] * 3
    assert rows(plan.blurs.across) == [[k, k, r] for k, r in enumerate(radii)]
    # All ten are sharpened, also the one whose blur has no radius: by the blur of half a pixel.
    assert rows(plan.sharpens.down) == [[k, k, 0.5] for k in range(10)]


def test_shadows_and_moves_are_told_where_a_pixel_comes_from() -> None:
    plan = planned(NOTHING, EVERYTHING)
    # Half of 16 pixels to the right: what is seen at x comes from x - 8. The alpha is the fourth plane.
    assert rows(plan.casts) == [[1, 3, 0.25, 1, 0, -8, 0, 1, 0]]
    assert rows(plan.moves) == [[1, 1, 0, 0, 0, 1, -2]]
    assert rows(plan.softens.across) == [[0, 0, 10]]


def test_a_batch_with_every_augmentation_takes_twelve_launches() -> None:
    assert launched(EVERYTHING, EVERYTHING) == [
        ("to_planes", (1, 4)),
        ("blur", (1, 14)),
        ("blur", (1, 14)),
        ("blur", (1, 14)),
        ("blur", (1, 14)),
        ("luma_sums", (1, 4)),
        ("luma_means", (4, 1)),
        ("cast_shadows", (1, 2)),
        ("blur", (1, 2)),
        ("blur", (1, 2)),
        ("compose", (1, 2)),
        ("move_captured", (1, 2)),
    ]


def test_what_no_example_has_is_not_launched() -> None:
    assert [name for name, _ in launched(NOTHING)] == ["luma_sums", "luma_means", "compose"]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_source_and_background_come_in_the_networks_memory_format(
    memory_format: torch.memory_format,
) -> None:
    def nothing(*operands: Any, **constants: Any) -> None:
        pass

    pixels = [torch.zeros((2, *SIZE, *more), dtype=torch.uint8) for more in ((3,), (), (3,))]
    batch = FusedBatch([NOTHING] * 2, SIZE, 1.0, nothing)
    found = batch.compose(tuple(pixels), (0, range(2)), memory_format)  # type: ignore[arg-type]
    assert [tuple(x.shape) for x in found] == [(2, 3, 8, 16)] * 3 + [(2, 1, 8, 16)]
    for x in (found.src, found.bgr):
        assert x.is_contiguous(memory_format=memory_format)
    assert found.fgr.is_contiguous()
