"""Batch norm over several workers is batch norm of the whole batch in one process."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raymat.distributed.batchnorm_kernels import kernels_on
from raymat.distributed.sync_batchnorm import (
    GlobalBatchNorm2d,
    RunningStatistics,
    StatisticsGroup,
    globalise,
)
from raymat.distributed.world import World
from tests.support import fused_batchnorm
from tests.support.workers import in_workers

CHANNELS = 5


def batch(n: int, side: int, dtype: torch.dtype = torch.float64, mean: float = 3.0) -> Tensor:
    """(n, 5, side, side), each channel with its own mean and deviation."""
    x = torch.randn(
        n, CHANNELS, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype
    )
    spread = torch.arange(1, CHANNELS + 1, dtype=dtype).view(1, -1, 1, 1)
    return x * spread + mean * spread


def norm(dtype: torch.dtype = torch.float64) -> nn.BatchNorm2d:
    """With weights, biases and running statistics unlike the initial ones."""
    module = nn.BatchNorm2d(CHANNELS).to(dtype)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name != "num_batches_tracked":
                tensor.copy_(torch.linspace(0.5, 2, CHANNELS) + len(name) / 10)
    return module


def passed(module: nn.Module, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers of one training pass whose loss is sum(y * weights)."""
    x = x.clone().requires_grad_()
    y = module(x)
    (y * weights).sum().backward()
    assert x.grad is not None
    found = {"y": y.detach(), "x.grad": x.grad}
    found |= {f"{n}.grad": p.grad for n, p in module.named_parameters() if p.grad is not None}
    return found | {n: b.clone() for n, b in module.named_buffers()}


def loss_weights(n: int, side: int, dtype: torch.dtype) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return torch.randn(n, CHANNELS, side, side, generator=g, dtype=dtype)


def pass_share(world: World, shares: list[int], side: int, dtype: torch.dtype, last: bool) -> Any:
    n, start = sum(shares), sum(shares[: world.rank])
    mine = slice(start, start + shares[world.rank])
    x, weights = batch(n, side, dtype)[mine], loss_weights(n, side, dtype)[mine]
    if last:
        x, weights = (t.contiguous(memory_format=torch.channels_last) for t in (x, weights))
    module = globalise(nn.Sequential(norm(dtype)), world, kernels=kernels_on("cpu"))
    return passed(module, x, weights)


def whole(shares: list[int], side: int, dtype: torch.dtype) -> dict[str, Tensor]:
    n = sum(shares)
    return passed(nn.Sequential(norm(dtype)), batch(n, side, dtype), loss_weights(n, side, dtype))


def assembled(results: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Examples of all ranks together, parameters' gradients summed, buffers of rank 0."""
    found = dict(results[0])
    for name in ("y", "x.grad"):
        found[name] = torch.cat([result[name] for result in results])
    for name in ("0.weight.grad", "0.bias.grad"):
        found[name] = torch.stack([result[name] for result in results]).sum(0)
    return found


@pytest.mark.parametrize(
    ("shares", "side", "last"),
    [([2, 2], 6, False), ([3, 1, 0], 4, True), ([1, 1], 1, False), ([0, 2], 1, False)],
)
def test_uneven_and_empty_shares_give_the_numbers_of_one_process(
    shares: list[int], side: int, last: bool
) -> None:
    results = in_workers(len(shares), pass_share, shares, side, torch.float64, last)
    expected, found = whole(shares, side, torch.float64), assembled(results)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12, msg=name)


def pass_fused(world: World, *share: Any) -> Any:
    library = fused_batchnorm.install()
    found = pass_share(world, *share)
    del library
    return found


@pytest.mark.parametrize(
    ("shares", "side", "last"), [([3, 1, 0], 4, True), ([0, 2], 3, False), ([0, 1, 0], 1, False)]
)
def test_the_fused_kernels_of_cuda_are_called_as_they_compute(
    shares: list[int], side: int, last: bool
) -> None:
    results = in_workers(len(shares), pass_fused, shares, side, torch.float64, last)
    plain = in_workers(len(shares), pass_share, shares, side, torch.float64, last)
    expected, found = assembled(plain), assembled(results)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


def test_running_statistics_are_the_same_bits_on_every_worker() -> None:
    results = in_workers(3, pass_share, [2, 1, 0], 4, torch.float32, False)
    for name in ("0.running_mean", "0.running_var", "0.num_batches_tracked"):
        assert all(torch.equal(result[name], results[0][name]) for result in results)


def test_float32_keeps_the_variance_of_channels_with_a_large_mean() -> None:
    # Sums of squares would leave two digits of a variance of 1 beside a mean of 1000.
    results = in_workers(2, variance_beside_a_large_mean)
    assert results[0] == pytest.approx(results[1], abs=0)
    assert results[0] == pytest.approx(1.0, rel=2e-3)


def variance_beside_a_large_mean(world: World) -> float:
    g = torch.Generator().manual_seed(world.rank)
    x = torch.randn(4, CHANNELS, 32, 32, generator=g) + 1000
    module = globalise(nn.BatchNorm2d(CHANNELS, momentum=1.0), world)
    module(x)
    together = [
        torch.randn(4, CHANNELS, 32, 32, generator=torch.Generator().manual_seed(r)) for r in (0, 1)
    ]
    true = (torch.cat(together) + 1000).double().transpose(0, 1).flatten(1).var(1)
    return float((module.get_buffer("running_var").double() / true).mean())


def bf16_pass(world: World) -> tuple[torch.dtype, torch.dtype, bool]:
    module = globalise(norm(torch.float32), world)
    with torch.autocast("cpu", torch.bfloat16):
        x = batch(2, 4, torch.bfloat16).requires_grad_()
        y = module(x)
    y.sum().backward()
    assert x.grad is not None
    weight = module.get_parameter("weight").grad
    assert weight is not None
    return y.dtype, weight.dtype, bool(torch.isfinite(x.grad).all())


def test_half_precision_pictures_keep_float32_statistics() -> None:
    assert in_workers(2, bf16_pass) == [(torch.bfloat16, torch.float32, True)] * 2


@pytest.mark.parametrize("count", [0, 1])
def test_a_lone_value_gives_the_bias_no_gradient_and_leaves_the_statistics(count: int) -> None:
    alone = lone_value(World(), count)
    assert alone == (0.0, 0.0, [0.0, 1.0, 0.0])
    assert in_workers(2, functools.partial(lone_value, count=count)) == [alone, alone]


def lone_value(world: World, count: int) -> tuple[float, float, list[float]]:
    """(output less bias, gradient of the input, largest running statistics); rank 0 has the value."""
    module = norm()
    module.reset_running_stats()
    globalise(module, world)
    x = torch.full((count * (world.rank == 0), CHANNELS, 1, 1), 3.0, dtype=torch.float64)
    y = module(x.requires_grad_())
    y.sum().backward()
    assert x.grad is not None
    off = (y.detach() - module.get_parameter("bias").detach().view(1, -1, 1, 1)).abs().sum()
    statistics = [buffer.max() for _, buffer in module.named_buffers()]
    return round(float(off), 9), round(float(x.grad.abs().sum()), 9), [float(v) for v in statistics]


def test_one_worker_is_plain_batch_norm_to_the_bit() -> None:
    expected = whole([3], 4, torch.float32)
    x, weights = batch(3, 4, torch.float32), loss_weights(3, 4, torch.float32)
    found = passed(globalise(nn.Sequential(norm(torch.float32))), x, weights)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_globalise_keeps_keys_tensors_and_evaluation() -> None:
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), norm(torch.float32))
    before, x = dict(model.state_dict(keep_vars=True)), torch.randn(2, 3, 4, 4)
    expected = model.eval()(x)
    assert globalise(model, World(0, 2)) is model
    assert isinstance(model[1], GlobalBatchNorm2d)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert torch.equal(model.eval()(x), expected)


def test_running_statistics_can_be_taken_back() -> None:
    model = nn.Sequential(
        norm(torch.float32), nn.Conv2d(CHANNELS, CHANNELS, 1), norm(torch.float32)
    )
    keys = list(model.state_dict())
    statistics = RunningStatistics(model)
    first = {n: t.clone() for n, t in model.state_dict().items()}
    saved = statistics.save()
    model(batch(2, 4, torch.float32))
    second = {n: t.clone() for n, t in model.state_dict().items()}
    assert int(second["0.num_batches_tracked"]) == 1
    statistics.undo(saved, torch.tensor(False))
    assert all(torch.equal(t, second[n]) for n, t in model.state_dict().items())
    statistics.undo(saved, torch.tensor(True))
    assert all(torch.equal(t, first[n]) for n, t in model.state_dict().items())
    assert list(model.state_dict()) == keys
    model.load_state_dict(second)
    assert all(torch.equal(t, second[n]) for n, t in model.state_dict().items())


def test_gradients_flow_through_fixed_statistics_while_those_of_others_move() -> None:
    model = globalise(nn.Sequential(norm(), norm()))
    model[1].eval()
    statistics = RunningStatistics(model, [model[1]])
    x = batch(2, 4).requires_grad_()
    found = model[1](x)
    statistics.undo([torch.zeros_like(kept) for kept in statistics.save()], torch.tensor(True))
    found.sum().backward()
    assert x.grad is not None
    assert float(model[0].get_buffer("running_mean").abs().max()) == 0
    assert torch.equal(model[1].get_buffer("running_mean"), norm().get_buffer("running_mean"))


def test_a_network_over_several_workers_can_be_copied() -> None:
    assert in_workers(2, copied) == [True, True]


def copied(world: World) -> bool:
    model = globalise(nn.Sequential(norm()), world, StatisticsGroup())
    RunningStatistics(model)
    return copy.deepcopy(model)[0].group is model[0].group


def test_statistics_updated_together_are_those_updated_layer_by_layer_to_the_bit() -> None:
    for together, apart in in_workers(2, both_updates):
        assert all(torch.equal(together[name], apart[name]) for name in apart)
        assert int(together["0.num_batches_tracked"]) == 2


def both_updates(world: World) -> list[dict[str, Tensor]]:
    found = []
    for together in (True, False):
        model = globalise(nn.Sequential(norm(torch.float32), norm(torch.float32)), world)
        statistics = RunningStatistics(model) if together else None
        for _ in range(2):
            model(batch(2, 4, torch.float32) + world.rank)
            if statistics is not None:
                statistics.update()
        found.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return found


def test_a_copy_of_a_network_updates_its_own_statistics() -> None:
    model = globalise(nn.Sequential(norm()))
    RunningStatistics(model)
    other = copy.deepcopy(model)
    other(batch(2, 4))
    assert [int(m.get_buffer("0.num_batches_tracked")) for m in (model, other)] == [0, 1]
