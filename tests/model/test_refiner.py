from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymat.config.sections import ModelConfig
from raymat.errors import ConfigError
from raymat.model.matting import MattingBase, MattingRefine, build, set_dropout_seeds
from raymat.model.refiner import Patches, Refiner, crop, replace


def rand(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def refine(**options: object) -> MattingRefine:
    """A small network whose coarse error is neither all 0 nor all 1, in eval mode."""
    torch.manual_seed(1)
    model = MattingRefine("mobilenetv2", **options)  # type: ignore[arg-type]
    with torch.no_grad():
        model.decoder.conv4.bias[4] = 0.3
    return model.eval()


def pictures(n: int = 2, height: int = 64, width: int = 96) -> tuple[Tensor, Tensor]:
    return rand(1, n, 3, height, width), rand(2, n, 3, height, width)


def coarse(n: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """pha, fgr, err, hid for a Refiner."""
    channels = (1, 3, 1, 32)
    return [rand(i, n, c, height, width, dtype=dtype) for i, c in enumerate(channels)]


def seeded(refiner: Refiner, dtype: torch.dtype = torch.float32) -> Refiner:
    """Weights and statistics with which no layer is trivial."""
    for i, tensor in enumerate([*refiner.parameters(), *refiner.buffers()]):
        if tensor.is_floating_point():
            tensor.data = rand(100 + i, *tensor.shape) - (0.5 if tensor.dim() == 4 else 0.0)
    return refiner.to(dtype).eval()


# Cutting and replacing


def test_a_crop_has_its_surroundings_and_zeros_beyond_the_edge() -> None:
    x = torch.arange(1.0, 17.0).reshape(1, 1, 4, 4)
    corner = Patches(*(torch.tensor([i]) for i in (0, 0, 1)))
    assert crop(x, corner, 2, 1)[0, 0].tolist() == [
        [0, 0, 0, 0],
        [2, 3, 4, 0],
        [6, 7, 8, 0],
        [10, 11, 12, 0],
    ]


def test_crops_come_from_their_own_example_and_channel() -> None:
    x = rand(0, 3, 5, 8, 12)
    patches = Patches(torch.tensor([0, 2, 2]), torch.tensor([1, 0, 1]), torch.tensor([2, 0, 1]))
    cut = crop(x, patches, 4, 0)
    assert torch.equal(cut[0], x[0, :, 4:8, 8:12])
    assert torch.equal(cut[1], x[2, :, 0:4, 0:4])
    assert torch.equal(cut[2], x[2, :, 4:8, 4:8])


def test_the_gradient_of_crops_counts_how_often_a_pixel_was_cut() -> None:
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    both = Patches(torch.tensor([0, 0]), torch.tensor([0, 0]), torch.tensor([0, 1]))
    crop(x, both, 2, 1).sum().backward()
    assert x.grad is not None
    assert x.grad[0, 0].tolist() == [[1, 2, 2, 1], [1, 2, 2, 1], [1, 2, 2, 1], [0, 0, 0, 0]]


def test_overlapping_gradients_are_summed_in_one_order_whatever_the_threads() -> None:
    # Plain indexing in the place of index_select fails this with two threads.
    some = Patches(*torch.nonzero(rand(0, 1, 256, 256) < 0.05, as_tuple=True))
    weights = rand(3, len(some.row), 36, 8, 8)

    def gradient(threads: int) -> Tensor:
        torch.set_num_threads(threads)
        x = torch.zeros(1, 36, 512, 512).to(memory_format=torch.channels_last).requires_grad_()
        (crop(x, some, 2, 3) * weights).sum().backward()
        assert x.grad is not None
        return x.grad

    first = gradient(1)
    assert all(torch.equal(first, gradient(threads)) for threads in (2, 3, 1))


def test_replacing_touches_the_patch_alone_and_keeps_the_dtype() -> None:
    x = torch.zeros(2, 1, 8, 8)
    one = Patches(torch.tensor([1]), torch.tensor([0]), torch.tensor([1]))
    out = replace(x, torch.ones(1, 1, 4, 4, dtype=torch.float16), one)
    assert out.dtype == torch.float32
    assert out[0].sum() == 0
    assert out[1, 0, :4, 4:].sum() == out.sum() == 16
    assert x.sum() == 0


# Choosing


def test_sampling_chooses_the_largest_errors_of_each_example() -> None:
    err = torch.tensor([[[[0.1, 0.9], [0.5, 0.2]]], [[[0.3, 0.0], [0.1, 0.2]]]])
    ref = Refiner("sampling", sample_pixels=32).select(err)
    assert ref[0, 0].tolist() == [[0, 1], [1, 0]]
    assert ref[1, 0].tolist() == [[1, 0], [0, 1]]


def test_oversampling_is_prevented_where_the_error_is_zero() -> None:
    err = torch.tensor([[[[0.0, 0.9], [0.0, 0.0]]]])
    assert Refiner("sampling", 48).select(err)[0, 0].tolist() == [[0, 1], [0, 0]]
    assert Refiner("sampling", 48, prevent_oversampling=False).select(err).sum() == 3


def test_thresholding_chooses_what_is_over_the_threshold() -> None:
    err = torch.tensor([[[[0.1, 0.5], [0.50001, 1.0]]]])
    ref = Refiner("thresholding", threshold=0.5).select(err)
    assert ref[0, 0].tolist() == [[0, 0], [1, 1]]


def test_asking_for_more_patches_than_there_are_refines_all() -> None:
    model = refine(refine_sample_pixels=10**9, refine_prevent_oversampling=False)
    assert model(*pictures())[5].flatten().tolist() == [1.0] * (2 * 16 * 24)


# The modes


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_refining_every_patch_is_refining_densely(kernel_size: int) -> None:
    src, bgr = rand(5, 2, 3, 32, 48).double(), rand(6, 2, 3, 32, 48).double()
    pha, fgr, err, hid = coarse(2, 8, 12, torch.float64)
    outs = []
    for mode in ("full", "sampling", "thresholding"):
        refiner = seeded(Refiner(mode, 10**6, -1.0, kernel_size, False), torch.float64)
        outs.append(refiner(src, bgr, pha, fgr, err, hid))
    for out in outs[1:]:
        for dense, patched in zip(outs[0], out, strict=True):
            torch.testing.assert_close(dense, patched, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_unrefined_pixels_are_the_upsampled_coarse_prediction(kernel_size: int) -> None:
    refiner = seeded(Refiner("sampling", 16 * 5, kernel_size=kernel_size))
    pha, fgr, err, hid = coarse(2, 8, 12)
    pha_lg, fgr_lg, ref = refiner(*pictures(2, 32, 48), pha, fgr, err, hid)
    chosen = F.interpolate(ref, scale_factor=4.0, mode="nearest")
    assert ref.sum((1, 2, 3)).tolist() == [5, 5]
    for small, large in ((pha, pha_lg), (fgr, fgr_lg)):
        up = F.interpolate(small, (32, 48), mode="bilinear", align_corners=False)
        kept, same = (chosen == 0).expand_as(up), up == large
        assert bool((same == kept).all())


@pytest.mark.parametrize("mode", ["sampling", "thresholding"])
def test_an_example_is_refined_alike_whatever_its_neighbours(mode: str) -> None:
    model = refine(refine_mode=mode, refine_sample_pixels=400, refine_threshold=0.3).double()
    src, bgr = (x.double() for x in pictures(3))
    together = model(src, bgr)
    assert 0 < together[5].mean() < 1
    for i in range(3):
        for whole, single in zip(together, model(src[i : i + 1], bgr[i : i + 1]), strict=True):
            torch.testing.assert_close(whole[i : i + 1], single, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("mode", ["full", "sampling", "thresholding"])
def test_memory_format_does_not_change_the_result(mode: str) -> None:
    model = refine(refine_mode=mode, refine_sample_pixels=400, refine_threshold=0.3).double()
    src, bgr = (x.double() for x in pictures())
    plain = model(src, bgr)
    last = {"memory_format": torch.channels_last}
    model.to(**last)
    for a, b in zip(plain, model(src.to(**last), bgr.to(**last)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_channels_last_goes_through_every_convolution() -> None:
    model = refine(refine_sample_pixels=400).to(memory_format=torch.channels_last)
    plain = []

    def look(module: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> None:
        if not args[0].is_contiguous(memory_format=torch.channels_last):
            plain.append(module)

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)
    model(*(x.to(memory_format=torch.channels_last) for x in pictures()))
    assert plain == []


# Where the reference fails


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("full", torch.bfloat16),
        ("sampling", torch.bfloat16),
        ("thresholding", torch.bfloat16),
        ("sampling", torch.float16),
    ],
)
def test_mixed_precision_refines(mode: str, dtype: torch.dtype) -> None:
    model = refine(refine_mode=mode, refine_sample_pixels=400, refine_threshold=0.3)
    exact = model(*pictures(1, 32, 48))
    with torch.autocast("cpu", dtype=dtype):
        out = model(*pictures(1, 32, 48))
    sum(x.float().mean() for x in out[:5]).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert out[5].sum() > 0
    for full, half in zip(exact[:5], out[:5], strict=True):
        assert (full - half.float()).abs().mean() < 0.02


def test_double_precision_stays_double() -> None:
    out = refine().double()(*(x.double() for x in pictures()))
    assert {x.dtype for x in out} == {torch.float64}


@pytest.mark.parametrize("mode", ["full", "sampling", "thresholding"])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_an_empty_batch_passes_forward_and_backward(mode: str, kernel_size: int) -> None:
    model = refine(refine_mode=mode, refine_kernel_size=kernel_size)
    out = model(*pictures(0))
    assert [tuple(x.shape) for x in out] == [
        (0, 1, 64, 96),
        (0, 3, 64, 96),
        (0, 1, 16, 24),
        (0, 3, 16, 24),
        (0, 1, 16, 24),
        (0, 1, 16, 24),
    ]
    sum(x.sum() for x in out[:5]).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_an_empty_batch_passes_the_base_network() -> None:
    torch.manual_seed(0)
    model = MattingBase("resnet50").eval()
    sum(x.sum() for x in model(*pictures(0, 32, 32))).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_choosing_no_patch_keeps_the_coarse_result_and_a_graph() -> None:
    model = refine(refine_mode="thresholding", refine_threshold=1.0)
    model.refiner.train()  # a training batch norm must not choke on nothing either
    pha, _, pha_sm, _, _, ref_sm = model(*pictures())
    pha.sum().backward()
    assert not ref_sm.any()
    up = F.interpolate(pha_sm, (64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(pha, up.clamp(0, 1))
    for name, parameter in model.refiner.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    assert any(bool(p.grad.any()) for p in model.decoder.parameters() if p.grad is not None)
    for module in model.refiner.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert not module.running_mean.any()


def test_deterministic_mode_is_supported() -> None:
    model = refine(refine_sample_pixels=400).train()
    set_dropout_seeds(model, torch.tensor([1, 2]))
    torch.use_deterministic_algorithms(True)
    try:
        model(*pictures(2, 32, 32))[0].sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


# Sizes and options


@pytest.mark.parametrize("scale", [0.5, 1 / 3, 0.3, 0.25, 0.1])
@pytest.mark.parametrize("mode", ["full", "sampling"])
def test_any_backbone_scale_up_to_a_half_works(scale: float, mode: str) -> None:
    out = refine(backbone_scale=scale, refine_mode=mode)(*pictures(1, 68, 100))
    h, w = int(68 * scale), int(100 * scale)
    assert [tuple(x.shape[2:]) for x in out] == [(68, 100)] * 2 + [(h, w)] * 3 + [(17, 25)]


@pytest.mark.parametrize(("height", "width"), [(66, 96), (64, 97), (0, 64)])
@pytest.mark.parametrize("network", [MattingBase, MattingRefine])
def test_sizes_that_four_does_not_divide_are_named(
    network: type[MattingBase], height: int, width: int
) -> None:
    src, bgr = pictures(1, height, width)
    with pytest.raises(ConfigError, match=f"multiples of 4, got {height} x {width}: crop or pad"):
        network("mobilenetv2")(src, bgr)


def test_source_and_background_of_different_shapes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"\(2, 3, 64, 96\) and \(1, 3, 64, 96\)"):
        refine()(pictures(2)[0], pictures(1)[1])


def test_a_picture_too_small_for_the_scale_is_named() -> None:
    with pytest.raises(ConfigError, match=r"4 x 8 has nothing left at backbone_scale 0\.1"):
        refine(backbone_scale=0.1)(*pictures(1, 4, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone_scale": 0.6}, r"backbone_scale must be in \(0, 0\.5\], got 0\.6"),
        ({"refine_mode": "most"}, "must be one of full, sampling, thresholding, got 'most'"),
        ({"refine_kernel_size": 5}, "must be 1 or 3, got 5"),
        ({"refine_sample_pixels": 0}, "must be at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        MattingRefine("mobilenetv2", **options)  # type: ignore[arg-type]


def test_an_unknown_backbone_or_stage_is_named() -> None:
    with pytest.raises(ConfigError, match="got 'vgg16'"):
        MattingBase("vgg16")
    with pytest.raises(ConfigError, match="must be base or refine, got 'third'"):
        build("third", ModelConfig(backbone="mobilenetv2"), 0)  # type: ignore[arg-type]
