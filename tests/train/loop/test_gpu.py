"""What only a GPU can show of the training step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raymat.checkpoint.snapshot import Snapshot
from raymat.distributed.world import World
from raymat.model.matting import build
from raymat.train.loop.state import ResumeContract, RunState, capture, install
from raymat.train.loop.train_step import TrainStep
from raymat.train.optim.forward import ForwardPass
from raymat.train.optim.step_health import NonfiniteStepCounter
from tests.support import runs

pytestmark = pytest.mark.gpu

RATES = {"backbone": 1e-4, "aspp": 5e-4, "decoder": 5e-4, "refiner": 3e-4}
CONFIG = runs.tiny("memory://", "gpu", crop=32)


def new_step(precision: Any) -> TrainStep:
    return TrainStep(
        build("base", CONFIG.model, 0),
        ForwardPass(
            stage="base",
            precision=precision,
            seed=0,
            resolution=32,
            device=torch.device("cuda", 0),
            channels_last=True,
        ),
        World(),
    )


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_every_precision_learns_and_skips_what_is_not_finite(precision: Any) -> None:
    step, watch = new_step(precision), NonfiniteStepCounter(3, torch.device("cuda", 0))
    (batch,) = runs.Feed(CONFIG, World(), {}).train(0, 1)
    losses = []
    for number in range(1, 31):
        result = step(batch, len(batch.examples), RATES)
        assert watch.push(number, range(4), result.health) == []
        losses.append(float(result.loss_sum) / result.count)
    assert losses[-1] < 0.7 * losses[0]
    hook = step.network.decoder.conv4.register_forward_hook(lambda m, i, o: o * float("nan"))
    found = watch.push(31, range(4), step(batch, 4, RATES).health)
    hook.remove()
    assert [bad.step for bad in found + watch.drain()] == [31]
    assert all(bool(torch.isfinite(t).all()) for t in step.network.state_dict().values())


def test_a_state_read_back_goes_on_to_the_bit_in_deterministic_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        batches = list(runs.Feed(CONFIG, World(), {}).train(0, 4))
        first, second = new_step("fp16"), new_step("fp16")
        for batch in batches[:2]:
            first(batch, 4, RATES)
        saved = Snapshot.take(2, *capture(first, RunState(), ResumeContract(CONFIG, "synthetic")))
        install(second, saved.tensors, saved.extra)
        for batch in batches[2:]:
            first(batch, 4, RATES)
            second(batch, 4, RATES)
        for name, tensor in first.network.state_dict().items():
            assert torch.equal(tensor, second.network.state_dict()[name]), name
    finally:
        torch.use_deterministic_algorithms(False)
