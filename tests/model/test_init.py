from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from raymat.config.sections import ModelConfig
from raymat.model.matting import PARTS, MattingBase, MattingRefine, build

SMALL = ModelConfig(backbone="mobilenetv2")


@pytest.fixture(scope="module")
def model() -> MattingBase:
    return build("refine", SMALL, 7)


def same(a: nn.Module, b: nn.Module) -> list[bool]:
    other = b.state_dict()
    return [torch.equal(t, other[k]) for k, t in a.state_dict().items() if k in other]


@pytest.mark.slow
def test_equal_seeds_build_equal_networks(model: MattingBase) -> None:
    assert all(same(model, build("refine", SMALL, 7)))


def test_another_seed_changes_every_weight_that_is_drawn(model: MattingBase) -> None:
    other = build("refine", SMALL, 8)
    drawn = {n: p for n, p in model.named_parameters() if p.dim() == 4 or ".conv4." in n}
    others = dict(other.named_parameters())
    assert not any(torch.equal(p, others[n]) for n, p in drawn.items())


def test_base_and_refine_of_one_seed_share_the_base(model: MattingBase) -> None:
    base = build("base", SMALL, 7)
    assert len(same(base, model)) == len(base.state_dict())
    assert all(same(base, model))


def test_no_global_generator_is_read_or_moved() -> None:
    torch.manual_seed(1)
    first, state = build("base", SMALL, 3), torch.get_rng_state()
    torch.manual_seed(2)
    assert all(same(first, build("base", SMALL, 3)))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_every_tensor_is_set_and_finite(model: MattingBase) -> None:
    for name, tensor in model.state_dict().items():
        assert tensor.device.type == "cpu", name
        assert bool(tensor.isfinite().all()), name
        if name.endswith("running_var"):
            assert bool((tensor == 1).all())
        elif tensor.dim() == 1 and "running_mean" in name:
            assert not tensor.any()
        elif name.endswith(".num_batches_tracked"):
            assert tensor == 0
        elif tensor.dim() == 1 and "conv4" not in name:
            assert bool((tensor == (1 if name.endswith("weight") else 0)).all()), name


def test_backbone_convolutions_are_normal_by_fan_out(model: MattingBase) -> None:
    weight = model.get_parameter("backbone.features.17.conv.0.0.weight")  # 960 x 160 x 1 x 1
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 960), rel=0.02)
    assert weight.mean().abs() < 1e-3
    assert weight.abs().max() > 3.5 * weight.std()


def test_other_convolutions_are_uniform_by_fan_in(model: MattingBase) -> None:
    for name, fan_in in (("aspp.convs.1.0", 320 * 9), ("decoder.conv4", 54 * 9)):
        bound = 1 / math.sqrt(fan_in)
        weight = model.get_parameter(f"{name}.weight")
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    bias = model.get_parameter("decoder.conv4.bias").detach()
    bias = torch.cat([bias[1:4], bias[5:]])  # all but alpha and error
    assert 0.8 / math.sqrt(54 * 9) < bias.abs().max() <= 1 / math.sqrt(54 * 9)


def test_what_is_clamped_starts_in_the_middle_of_its_range() -> None:
    model = build("refine", ModelConfig(backbone="mobilenetv2"), 3)
    assert model.get_parameter("decoder.conv4.bias")[[0, 4]].tolist() == [0.5, 0.5]
    assert model.get_parameter("refiner.conv4.bias")[0].item() == 0.5


def test_the_configuration_reaches_the_network() -> None:
    config = ModelConfig(
        backbone="mobilenetv2",
        backbone_scale=0.5,
        refine_mode="thresholding",
        refine_sample_pixels=123,
        refine_threshold=0.7,
        refine_kernel_size=1,
    )
    model = build("refine", config, 0)
    assert isinstance(model, MattingRefine)
    refiner = model.refiner
    assert (model.backbone_scale, refiner.mode, refiner.sample_pixels) == (0.5, "thresholding", 123)
    assert (refiner.threshold, refiner.kernel_size) == (0.7, 1)
    assert refiner.prevent_oversampling


def test_every_parameter_belongs_to_one_part(model: MattingBase) -> None:
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == set(PARTS)
