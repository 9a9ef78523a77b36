"""Laws of the networks as exporters follow them: the same results to the bit, at sizes that the exporter never saw."""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from raymat.config.sections import ModelConfig
from raymat.export.portable import portable
from raymat.model.matting import MattingBase, MattingRefine, build

MODES: list[tuple[Any, dict[str, Any]]] = [
    ("base", {}),
    ("refine", {"refine_mode": "full"}),
    ("refine", {"refine_mode": "sampling", "refine_sample_pixels": 800}),
    ("refine", {"refine_mode": "thresholding", "refine_threshold": 0.5, "backbone_scale": 0.3}),
    ("refine", {"refine_mode": "sampling", "refine_sample_pixels": 640, "refine_kernel_size": 1}),
]
each_mode = pytest.mark.parametrize(("stage", "options"), MODES)
SIZES = [(1, 64, 48), (2, 100, 204), (3, 16, 52), (1, 4, 4)]


def network_of(stage: Any, options: dict[str, Any]) -> MattingBase:
    model = ModelConfig(backbone="mobilenetv2", **options)
    return build(stage, model, seed=3).eval().requires_grad_(False)


def random_pictures(n: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height)
    src, bgr = torch.rand((2, n, 3, height, width), generator=generator)
    return src, bgr


def traced(stage: Any, options: dict[str, Any]) -> Any:
    """An archive of it, loaded anew."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript ages
        return torch.jit.load(io.BytesIO(archive(stage, tuple(options.items()))))


@cache
def archive(stage: Any, options: tuple[tuple[str, Any], ...]) -> bytes:
    content, network = io.BytesIO(), network_of(stage, dict(options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript ages
        example = random_pictures(2, 96, 136)
        torch.jit.save(torch.jit.trace(portable(network), example, check_trace=False), content)
    return content.getvalue()


@pytest.mark.slow
@each_mode
def test_called_or_traced_it_gives_the_network_s_outputs_to_the_bit(
    stage: Any, options: dict[str, Any]
) -> None:
    network = network_of(stage, options)
    script = traced(stage, options)
    for size in SIZES:
        expected = network(*random_pictures(*size))
        for run in (portable(network), script):
            found = run(*random_pictures(*size))
            assert len(found) == len(expected)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), size


def test_the_refiner_chose_some_patches_and_left_others() -> None:
    """Without which equal outputs would say little of the ways of choosing."""
    for stage, options in MODES[2:]:
        ref = network_of(stage, options)(*random_pictures(2, 100, 204))[-1]
        assert 0 < ref.sum() < ref.numel()


@each_mode
def test_an_archive_can_be_moved_to_another_device(stage: Any, options: dict[str, Any]) -> None:
    """No tensor in it is made on the device that it was traced on."""
    assert '"cpu"' not in str(traced(stage, options).inlined_graph)


def test_where_nothing_is_chosen_the_coarse_prediction_stands() -> None:
    options = {"refine_mode": "thresholding", "refine_threshold": 1.0}
    network = network_of("refine", options)
    assert isinstance(network, MattingRefine)
    script = traced("refine", options)
    pictures = random_pictures(1, 64, 48)
    found = script(*pictures)
    assert found[-1].sum() == 0
    assert all(torch.equal(a, b) for a, b in zip(found, network(*pictures), strict=True))


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ([(1, 3, 62, 48), (1, 3, 62, 48)], "positive multiples of 4"),
        ([(1, 3, 64, 48), (1, 3, 64, 52)], "the same shape"),
        ([(1, 4, 64, 48), (1, 4, 64, 48)], "the same shape"),
    ],
)
def test_an_archive_refuses_pictures_of_a_wrong_size(shapes: Any, reason: str) -> None:
    script = traced("refine", {})
    with pytest.raises(Exception, match=reason):
        script(*(torch.zeros(shape) for shape in shapes))
