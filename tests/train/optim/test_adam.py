"""Clipping, weight decay and frozen parts: what they change, and what they leave alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raymat.distributed.world import World
from raymat.errors import ConfigError
from raymat.train.loop.state import ResumeContract, RunState, capture, install
from raymat.train.loop.train_step import TrainStep
from tests.support import runs
from tests.support.small import new_step

RATES = {"backbone": 1e-3, "aspp": 2e-3, "decoder": 3e-3}
CONFIG = runs.tiny("memory://", "optimiser", batch_size=2, crop=32, valid_examples=0)


@pytest.fixture(scope="module")
def batches() -> list[Any]:
    return list(runs.Feed(CONFIG, World(), {}).train(0, 4))


def gradients(step: TrainStep) -> dict[str, Tensor]:
    """As the optimiser will use them: without the loss scale."""
    parameters = step.network.named_parameters()
    return {n: p.grad / step.scale.value for n, p in parameters if p.grad is not None}


def seen(step: TrainStep, batch: Any) -> tuple[dict[str, Tensor], float]:
    """The gradients that the optimiser is given in a step, and the norm that the step tells."""
    found: dict[str, Tensor] = {}

    def look() -> None:
        found.update({n: g.clone() for n, g in gradients(step).items()})

    health = step(batch, 2, RATES, before_update=look).health.read()
    assert not health.skipped
    return found, health.norm


def norm_of(found: dict[str, Tensor]) -> float:
    return sum(float(g.double().square().sum()) for g in found.values()) ** 0.5


@pytest.mark.parametrize("precision", ["fp64", "fp16"])
def test_a_larger_gradient_is_shrunk_to_the_norm_whatever_the_loss_scale(
    batches: list[Any], precision: Any
) -> None:
    plain, norm = seen(new_step(precision), batches[0])
    assert norm == pytest.approx(norm_of(plain), rel=1e-5)
    assert norm > 0.25
    clipped, told = seen(new_step(precision, clip_norm=0.25), batches[0])
    assert told == norm, "the norm before it is clipped"
    assert norm_of(clipped) == pytest.approx(0.25, rel=1e-6)
    for name, gradient in plain.items():
        torch.testing.assert_close(clipped[name], gradient * (0.25 / norm), rtol=1e-5, atol=1e-9)


def test_a_smaller_gradient_keeps_every_bit(batches: list[Any]) -> None:
    plain, norm = seen(new_step("fp32"), batches[0])
    kept, _ = seen(new_step("fp32", clip_norm=2 * norm), batches[0])
    assert all(torch.equal(gradient, plain[name]) for name, gradient in kept.items())


def test_a_clipped_step_that_is_not_finite_is_skipped(batches: list[Any]) -> None:
    step = new_step("fp32", clip_norm=1.0, weight_decay=0.5)
    before = copy.deepcopy(step.network.state_dict())
    hook = step.network.decoder.register_forward_hook(lambda m, i, o: o * float("inf"))
    assert step(batches[0], 2, RATES).health.read().skipped
    hook.remove()
    assert all(torch.equal(t, before[n]) for n, t in step.network.state_dict().items())


def test_weight_decay_is_adamws_and_spares_norms_and_biases(batches: list[Any]) -> None:
    step = new_step(weight_decay=0.1)
    parameters = dict(copy.deepcopy(step.network).named_parameters())
    spared = {n for n in parameters if n.endswith("bias") or n in ("backbone.bn.weight", "aspp.1.weight")}  # fmt: skip
    assert len(spared) == 5
    other = torch.optim.AdamW(
        [
            {"params": [p], "lr": RATES[n.split(".")[0]], "weight_decay": 0.0 if n in spared else 0.1}
            for n, p in parameters.items()
        ],
        foreach=False,
    )  # fmt: skip
    for batch in batches:
        step(batch, 2, RATES)
        for name, gradient in gradients(step).items():
            parameters[name].grad = gradient.clone()
        other.step()
        for name, parameter in step.network.named_parameters():
            torch.testing.assert_close(parameters[name], parameter, rtol=1e-12, atol=1e-14)
    plain = new_step()
    plain(batches[0], 2, RATES)
    assert not torch.equal(plain.network.decoder.conv4.weight, step.network.decoder.conv4.weight)


def changed(step: TrainStep, before: dict[str, Tensor]) -> set[str]:
    tensors, _ = capture(step, RunState(), ResumeContract(CONFIG, "synthetic"))
    return {name for name, tensor in tensors.items() if not torch.equal(tensor, before[name])}


def test_a_frozen_part_keeps_weights_moments_and_statistics(batches: list[Any]) -> None:
    step = new_step(freeze="backbone,aspp.1", weight_decay=0.1, clip_norm=0.1)
    before = copy.deepcopy(capture(step, RunState(), ResumeContract(CONFIG, "synthetic"))[0])
    for batch in batches:
        step(batch, 2, RATES)
    trained = ("aspp.0.weight", "decoder.conv4.weight", "decoder.conv4.bias")
    moments = ("step", "exp_avg", "exp_avg_sq")
    assert changed(step, before) == {f"model/{n}" for n in trained} | {
        f"optimizer/{moment}/{n}" for moment in moments for n in trained
    }


def test_a_frozen_run_has_all_the_tensors_of_another_and_goes_on_to_the_bit(
    batches: list[Any],
) -> None:
    promise = ResumeContract(CONFIG, "synthetic")
    first, second = new_step(freeze="aspp"), new_step(freeze="aspp")
    for batch in batches[:2]:
        first(batch, 2, RATES)
    tensors, extra = copy.deepcopy(capture(first, RunState(), promise))
    assert tensors.keys() == capture(new_step(), RunState(), promise)[0].keys()
    install(second, tensors, extra)
    for step in (first, second):
        for batch in batches[2:]:
            step(batch, 2, RATES)
    assert changed(first, capture(second, RunState(), promise)[0]) == set()


def test_a_frozen_part_works_as_in_evaluation(batches: list[Any]) -> None:
    modes: list[bool] = []

    def look(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: modes.append(module.training)

    step = new_step(freeze="aspp")
    for module in (step.network.aspp, step.network.aspp[3], step.network.backbone):
        assert isinstance(module, nn.Module)
        module.register_forward_hook(look(""))
    step.evaluators(())[""](batches[0])
    assert set(modes) == {False}
    modes.clear()
    step(batches[0], 2, RATES)
    # In the order of the forward pass: backbone, dropout of the ASPP, ASPP.
    assert modes == [True, False, False]


def test_what_cannot_be_frozen_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"--freeze backbone\.layer9: the network has no such part; it has backbone, aspp, decoder"
    ):  # fmt: skip
        new_step(freeze="backbone.layer9")
    with pytest.raises(ConfigError, match="--freeze leaves nothing to train"):
        new_step(freeze="backbone,aspp,decoder")
