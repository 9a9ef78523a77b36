"""A step of several chunks: the mathematics of one loop, for any number of workers, in less memory, through kills."""

from __future__ import annotations

import copy
import gc
import os
import signal
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raymat.config.run import RunConfig
from raymat.data.batch import MicroBatch
from raymat.distributed.world import World
from raymat.train.loop import startup, trainer
from raymat.train.observability.metrics_log import read_metrics
from tests.support import runs
from tests.support.small import build_small, new_step
from tests.support.workers import WorkerError, in_workers

RATES = {"backbone": 1e-3, "aspp": 1e-3, "decoder": 1e-3}
CRAFT = {"clip_norm": 0.5, "weight_decay": 0.05, "freeze": "backbone", "ema_decay": 0.999}


def config_of(accumulate: int, **options: Any) -> RunConfig:
    options = {"batch_size": 6, "crop": 32, "valid_examples": 0} | options
    return runs.tiny("memory://", "chunks", accumulate=accumulate, **options)


def batch_of(accumulate: int) -> MicroBatch:
    (batch,) = runs.Feed(config_of(accumulate), World(), {}).train(0, 1)
    return batch


@pytest.mark.slow
def test_chunks_are_one_loop_over_the_parts_of_the_batch_in_their_order() -> None:
    step, whole = new_step(), batch_of(1)
    network = copy.deepcopy(step.network).train()
    assert whole.numbers == (0, 1, 2, 3, 4, 5)
    total = 0.0
    for numbers in (
        [0, 1],
        [2, 3],
        [4, 5],
    ):  # two examples a chunk; statistics of each by themselves
        part = MicroBatch(
            0, tuple(whole.examples[n] for n in numbers), whole.fgr[numbers], whole.pha[numbers],
            whole.bgr[numbers], (), True,
        )  # fmt: skip
        composed = step.forward.compose(part)
        step._seed_dropout(network, part)
        loss, _ = step.forward(network, composed)
        (loss / 3).backward()
        total += float(loss.detach()) / 3
    found = {}

    def look() -> None:
        named = step.network.named_parameters()
        found.update({n: p.grad.clone() for n, p in named if p.grad is not None})

    result = step(batch_of(3), 6, RATES, before_update=look)
    assert float(result.loss_sum) / 6 == pytest.approx(total, rel=1e-13)
    assert result.health.read().loss == pytest.approx(total, rel=1e-13)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-12, atol=1e-15)
    buffers = dict(step.network.named_buffers())
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-13, atol=0)
    assert buffers["backbone.bn.num_batches_tracked"].item() == 3


def test_the_optimiser_and_the_average_step_once() -> None:
    step = new_step(ema_decay=0.9)
    step(batch_of(3), 6, RATES)
    assert step.optimiser.state_dict()["step/decoder.conv4.bias"].item() == 1
    assert step.ema is not None
    assert step.ema.updates == 1


def test_the_pictures_are_those_of_all_chunks() -> None:
    pictures = new_step()(batch_of(3), 6, RATES, pictures=True).pictures
    assert pictures is not None
    assert pictures["pha"].shape == (6, 1, 32, 32)
    whole = new_step()(batch_of(1), 6, RATES, pictures=True).pictures
    assert whole is not None
    assert torch.equal(pictures["src"], whole["src"])


def test_a_step_that_is_not_finite_in_one_chunk_is_undone_altogether() -> None:
    step, factors = new_step("fp32"), iter([1.0, float("nan"), 1.0])
    before = copy.deepcopy(step.network.state_dict())
    step.network.decoder.register_forward_hook(lambda m, i, o: o * next(factors))
    assert step(batch_of(3), 6, RATES).health.read().skipped
    assert all(torch.equal(t, before[n]) for n, t in step.network.state_dict().items())


class _Held:
    """A tensor that a backward pass needs, counted in bytes as long as it lives."""

    now, peak = 0, 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()  # else a saved output would keep its own graph alive
        size = tensor.numel() * tensor.element_size()
        _Held.now += size
        _Held.peak = max(_Held.peak, _Held.now)
        weakref.finalize(self, self.free, size)

    @staticmethod
    def free(size: int) -> None:
        _Held.now -= size


def peak_bytes(accumulate: int) -> int:
    """The most that is kept for backward passes at any moment of a step."""
    step, batch = new_step(), batch_of(accumulate)
    gc.collect()
    _Held.now = _Held.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(_Held, lambda held: held.tensor):
        step(batch, 6, RATES)
    return _Held.peak


def test_three_chunks_hold_a_third_of_the_activations() -> None:
    assert 0.32 < peak_bytes(3) / peak_bytes(1) < 0.36


def whole_run(world: int, folder: Path) -> RunConfig:
    """fp64; 22 examples in batches of 8, each in 2 chunks of 4: the last step has chunks of 4 and of 2."""
    return runs.tiny(
        folder, f"fp64-{world}", precision="fp64", epochs=1, epoch_examples=22, batch_size=8, accumulate=2,
        checkpoint_interval=100, valid_examples=0, resolution=48, crop=48, **CRAFT | {"freeze": "aspp"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("other", [2, pytest.param(3, marks=pytest.mark.chaos)])
def test_any_number_of_workers_does_the_same_mathematics_in_chunks(
    tmp_path: Path, other: int
) -> None:
    found, states = {}, {}
    for world in (1, other):
        config = whole_run(world, tmp_path)
        in_workers(world, runs.train, config)
        found[world] = read_metrics(runs.store_of(config))
        states[world] = runs.checkpoints(config)[3].tensors
    assert [row["examples"] for row in found[1]] == [8, 16, 22]
    assert [r["digest"] for r in found[other]] == [r["digest"] for r in found[1]]
    losses = [r["loss"] for r in found[other]]
    assert losses == pytest.approx([r["loss"] for r in found[1]], rel=1e-10, abs=0)
    for name in ("model/decoder.conv1.weight", "ema/decoder.bn1.running_var"):
        torch.testing.assert_close(states[other][name], states[1][name], rtol=1e-7, atol=1e-10)


def train_small(world: World, config: RunConfig, kill: int | None) -> trainer.Outcome:
    """Rank 1 is killed in the middle of a step: before its forward pass number `kill` (from 1) in training."""
    done = 0

    def build(*args: Any) -> Any:
        network = build_small(*args)
        network.backbone.register_forward_pre_hook(count)
        return network

    def count(module: nn.Module, inputs: Any) -> None:
        nonlocal done
        done += 1
        if world.rank == 1 and done == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    startup.build = build
    return runs.train(world, config, patient=True)


@pytest.mark.slow
def test_killed_between_two_chunks_a_run_with_everything_goes_on_to_the_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "steps": 6,
        "checkpoint_interval": 3,
        "valid_examples": 0,
        "batch_size": 8,
    }
    options |= CRAFT | {"accumulate": 2}
    undisturbed, killed = (runs.tiny(tmp_path, n, **options) for n in ("undisturbed", "killed"))  # fmt: skip
    in_workers(2, train_small, undisturbed, None)
    with pytest.raises(WorkerError):
        in_workers(2, train_small, killed, 10)  # the second chunk of step 5
    (outcome, _) = in_workers(2, train_small, killed, None)
    assert (outcome.step, outcome.attempt) == (6, 2)
    one, other = runs.checkpoints(undisturbed), runs.checkpoints(killed)
    assert list(one) == list(other) == [3, 6]
    for step in (3, 6):
        assert runs.differences(one[step], other[step]) == []
    assert other[6].extra["ema"] == {"updates": 6}
    moved = [n for n, t in other[6].tensors.items() if not torch.equal(t, other[3].tensors[n])]
    assert "model/decoder.conv4.weight" in moved
    assert not [name for name in moved if "backbone" in name]
