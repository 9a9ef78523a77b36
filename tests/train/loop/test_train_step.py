"""The step is a function of its state and its batch, in every precision and memory format."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raymat.checkpoint.snapshot import Snapshot
from raymat.config.run import RunConfig
from raymat.distributed import gradient_buckets
from raymat.distributed.gradient_buckets import GradientSum
from raymat.distributed.world import World
from raymat.errors import CheckpointError
from raymat.model.matting import build
from raymat.train.loop.state import ResumeContract, RunState, capture, install
from raymat.train.loop.train_step import StepResult, TrainStep
from raymat.train.optim.forward import ForwardPass
from raymat.train.optim.mixed_precision import LossScale
from raymat.train.optim.step_health import Health, NonfiniteStepCounter
from tests.support import runs
from tests.support.workers import in_workers

CPU = torch.device("cpu")
RATES = {"backbone": 1e-4, "aspp": 5e-4, "decoder": 5e-4, "refiner": 3e-4}


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return runs.tiny("memory://", "step", batch_size=2, crop=32)


@pytest.fixture(scope="module")
def batches(config: RunConfig) -> list[Any]:
    return list(runs.Feed(config, World(), {}).train(0, 4))


def new_step(config: RunConfig, precision: Any = "fp32", channels_last: bool = False) -> TrainStep:
    torch.set_num_threads(1)
    return TrainStep(
        build("base", config.model, 0),
        ForwardPass(
            stage="base",
            precision=precision,
            seed=0,
            resolution=32,
            device=CPU,
            channels_last=channels_last,
        ),
        World(),
    )


def tensors_of(step: TrainStep) -> dict[str, Tensor]:
    state = step.network.state_dict() | step.optimiser.state_dict()
    return {name: tensor.clone() for name, tensor in state.items()}


def changed(step: TrainStep, before: dict[str, Tensor]) -> list[str]:
    return [n for n, t in tensors_of(step).items() if not torch.equal(t, before[n])]


def take(step: TrainStep, batches: list[Any]) -> list[StepResult]:
    return [step(batch, 2, RATES) for batch in batches]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "channels_last"),
    [("fp32", False), ("fp32", True), ("bf16", False), ("fp64", True)],
)
def test_a_state_read_into_a_fresh_step_goes_on_to_the_bit(
    config: RunConfig, batches: list[Any], precision: Any, channels_last: bool
) -> None:
    promise = ResumeContract(config, "synthetic")
    first = new_step(config, precision, channels_last)
    take(first, batches[:2])
    record = RunState(step=2, bad_steps=1)
    saved = Snapshot.take(2, *capture(first, record, promise))
    second = new_step(config, precision, channels_last)
    assert install(second, saved.tensors, saved.extra) == record
    assert changed(second, tensors_of(first)) == []
    take(first, batches[2:])
    take(second, batches[2:])
    assert changed(second, tensors_of(first)) == []


def test_the_loss_scale_is_part_of_the_state(config: RunConfig) -> None:
    first, second, promise = (
        new_step(config, "fp16"),
        new_step(config, "fp16"),
        ResumeContract(config, "synthetic"),
    )
    first.scale.load_state_dict({"scale": 1024.0, "good_steps": 7})
    install(second, *capture(first, RunState(), promise))
    assert second.scale.state_dict() == {"scale": 1024.0, "good_steps": 7}


def test_the_state_names_every_tensor_and_nothing_of_the_world(config: RunConfig) -> None:
    tensors, extra = capture(new_step(config), RunState(), ResumeContract(config, "synthetic"))
    assert "model/backbone.features.0.0.weight" in tensors
    assert "optimizer/exp_avg/decoder.conv4.bias" in tensors
    assert tensors["optimizer/step/aspp.convs.0.0.weight"].shape == ()
    assert extra["cursor"] == {"version": 1, "next_example": 0}
    assert extra["format"] == 1
    assert extra["listing_digest"] == "synthetic"
    assert extra["config"]["backbone"] == "mobilenetv2"
    assert not {"world", "attempt", "time"} & extra.keys()


def test_a_state_of_another_format_or_network_is_refused(config: RunConfig) -> None:
    step, promise = new_step(config), ResumeContract(config, "synthetic")
    tensors, extra = capture(step, RunState(), promise)
    with pytest.raises(CheckpointError, match="expected a training state of format 1, got 2"):
        install(step, tensors, extra | {"format": 2})
    with pytest.raises(CheckpointError, match="model has an unknown extra"):
        install(step, tensors | {"model/extra": torch.zeros(1)}, extra)
    del tensors["optimizer/step/decoder.conv4.bias"]
    with pytest.raises(CheckpointError, match=r"optimizer state lacks step/decoder\.conv4\.bias"):
        install(step, tensors, extra)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_precision_learns(config: RunConfig, batches: list[Any], precision: Any) -> None:
    step = new_step(config, precision)
    losses = []
    for _ in range(12):
        (result,) = take(step, batches[:1])
        health = result.health.read()
        assert (health.skipped, health.failed) == (False, False)
        losses.append(health.loss)
    assert losses[-1] < 0.7 * losses[0]
    assert {t.dtype for t in step.network.parameters()} == {torch.float32}


def test_a_loss_scale_that_overflows_is_lowered_and_no_failure(
    config: RunConfig, batches: list[Any]
) -> None:
    step = new_step(config, "fp16")
    step.scale.load_state_dict({"scale": 2.0**126, "good_steps": 5})
    before = tensors_of(step)
    (result,) = take(step, batches[:1])
    health = result.health.read()
    assert (health.skipped, health.failed) == (True, False)
    assert 0 < health.loss < 5
    assert changed(step, before) == []
    assert step.scale.state_dict() == {"scale": 2.0**125, "good_steps": 0}


def test_the_loss_scale_grows_after_2000_good_steps_and_stops_at_1() -> None:
    scale, good, bad = LossScale("fp16", CPU), torch.tensor(False), torch.tensor(True)
    for _ in range(1999):
        scale.update(good)
    assert scale.state_dict() == {"scale": 65536.0, "good_steps": 1999}
    scale.update(good)
    assert scale.state_dict() == {"scale": 131072.0, "good_steps": 0}
    for _ in range(17):
        scale.update(bad)
    assert scale.state_dict() == {"scale": 1.0, "good_steps": 0}
    assert bool(scale.at_floor())
    scale.update(bad)
    assert float(scale.value) == 1.0


def test_a_gradient_that_is_not_finite_fails_although_the_loss_is(
    config: RunConfig, batches: list[Any]
) -> None:
    step = new_step(config)
    before = tensors_of(step)
    hook = step.network.decoder.conv4.weight.register_hook(lambda g: g * float("inf"))
    (result,) = take(step, batches[:1])
    health = result.health.read()
    assert 0 < health.loss < 5
    assert not health.norm < float("inf")
    assert (health.skipped, health.failed) == (True, True)
    assert changed(step, before) == []
    hook.remove()
    (result,) = take(step, batches[:1])
    health = result.health.read()
    assert (health.skipped, health.failed, health.heard) == (False, False, False)
    after = changed(step, before)
    assert "backbone.features.0.1.running_mean" in after
    assert len(after) > 800


def test_an_undone_step_is_as_if_it_had_never_been(config: RunConfig, batches: list[Any]) -> None:
    plain, poisoned = new_step(config), new_step(config)
    take(plain, batches[:1])
    hook = poisoned.network.decoder.conv4.register_forward_hook(lambda m, i, o: o * float("nan"))
    take(poisoned, batches[1:2])
    hook.remove()
    take(poisoned, batches[:1])
    assert changed(poisoned, tensors_of(plain)) == []


def test_one_failure_in_a_row_too_many_is_an_error() -> None:
    class Failed:
        def read(self) -> Health:
            return Health(float("nan"), 1.0, True, True, False)

    watch = NonfiniteStepCounter(2, CPU)
    for step in (1, 2):
        (bad,) = watch.push(step, range(step * 8, step * 8 + 8), Failed())  # type: ignore[arg-type]
        assert [bad.first_example, bad.last_example] == [step * 8, step * 8 + 7]
        watch.require_finite()
    watch.push(3, range(24, 32), Failed())  # type: ignore[arg-type]
    with pytest.raises(
        Exception, match=r"in 3 steps in a row, the last: step 1 \(examples 8 to 15\)"
    ):
        watch.require_finite()


def test_each_part_of_the_network_has_its_own_rate(config: RunConfig, batches: list[Any]) -> None:
    step = new_step(config)
    before = {n: t.clone() for n, t in step.network.named_parameters()}
    step(batches[0], 2, {"backbone": 0.0, "aspp": 1e-3, "decoder": 1e-5, "refiner": 0.0})
    moved = {
        n: float((t - before[n]).detach().abs().max()) for n, t in step.network.named_parameters()
    }
    # Adam's first step is the rate times the gradient's sign.
    assert max(v for n, v in moved.items() if n.startswith("backbone")) == 0
    assert moved["aspp.project.0.weight"] == pytest.approx(1e-3, rel=1e-2)
    assert moved["decoder.conv4.weight"] == pytest.approx(1e-5, rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_optimiser_is_adam(config: RunConfig, batches: list[Any], channels_last: bool) -> None:
    step = new_step(config, "fp64", channels_last)
    network = copy.deepcopy(step.network)
    parameters = dict(network.named_parameters())
    other = torch.optim.Adam(
        [
            {"params": [p for n, p in parameters.items() if n.startswith(part)], "lr": rate}
            for part, rate in RATES.items()
        ],
        foreach=False,
    )
    for batch in batches[:3]:
        take(step, [batch])
        for name, parameter in step.network.named_parameters():
            assert parameter.grad is not None
            parameters[name].grad = parameter.grad.clone()
        other.step()
        for name, parameter in step.network.named_parameters():
            torch.testing.assert_close(parameters[name], parameter, rtol=1e-12, atol=1e-14)


def summed(world: World, uses: list[bool]) -> tuple[list[list[float]], int]:
    """Gradients after one pass of a chain of layers, in buckets of one layer; rank r adds r + 1 times x."""
    gradient_buckets.BUCKET_BYTES = 8
    layers = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in uses)
    probe = nn.Parameter(torch.zeros(()))
    sums = GradientSum(layers.parameters(), probe, world.size)
    for _ in range(2):  # the second must not remember the first
        sums.clear()
        sums.expect(last=True)
        x = torch.tensor([1.0, 10.0]) * (world.rank + 1)
        used = [layer(x).sum() for layer, use in zip(layers, uses, strict=True) if use]
        (torch.stack(used).sum() + probe * (world.rank + 1)).backward()
        sums.finish()
    found = [layer.get_parameter("weight").grad for layer in layers]
    values = [grad.flatten().tolist() for grad in found if grad is not None]
    assert probe.grad is not None
    return [*values, [float(probe.grad)]], len(sums.flats)


def test_gradients_are_sums_over_the_workers_and_0_where_nothing_was_used() -> None:
    for found, buckets in in_workers(3, summed, [True, False, True]):
        assert found == [[6.0, 60.0], [0.0, 0.0], [6.0, 60.0], [6.0]]
        assert buckets == 3


def test_gradients_of_several_passes_add_up_whatever_each_of_them_uses() -> None:
    layers = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(3))
    probe = nn.Parameter(torch.zeros(()))
    sums = GradientSum(layers.parameters(), probe, 1)
    sums.clear()
    assert probe.grad is not None
    probe.grad.fill_(5.0)
    for use, last in (([0], False), ([0, 1], False), ([1], True)):
        sums.expect(last=last)
        (torch.stack([layers[i](torch.ones(2)).sum() for i in use]).sum() + probe).backward()
    sums.finish()
    assert [p.grad is not None and p.grad.sum().item() for p in layers.parameters()] == [
        4.0,
        4.0,
        0.0,
    ]
    assert float(probe.grad) == 8.0


def test_gradients_lie_as_their_parameters_do(config: RunConfig) -> None:
    step = new_step(config, channels_last=True)
    for name, parameter in step.network.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride(), name
    # 16 elements for the loss beside the gradients, and each gradient begins at a multiple of 16.
    taken = sum(-(-p.numel() // 16) * 16 for p in step.network.parameters())
    assert sum(flat.numel() for flat in step._gradients.flats) == taken


def test_an_evaluation_changes_nothing(config: RunConfig, batches: list[Any]) -> None:
    step = new_step(config)
    take(step, batches[:1])
    before = tensors_of(step)
    evaluator = step.evaluators(("sad",))[""]
    values = evaluator(batches[1])
    assert list(values) == [2, 3]
    assert evaluator(copy.copy(batches[1])) == values
    assert changed(step, before) == []
