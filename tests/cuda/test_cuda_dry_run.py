"""What can be tried of the way through CUDA on a machine without a driver; see tests/support/driverless.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raymat.checkpoint.snapshot import SnapshotBuffer
from raymat.config.run import build as build_config
from raymat.config.sections import ModelConfig, OptimConfig, Stage
from raymat.config.settled import precision_on
from raymat.data.batch import MicroBatch
from raymat.data.sample_order import Example
from raymat.distributed.world import World
from raymat.model.matting import build
from raymat.train.loop.ready_batches import CudaLane
from raymat.train.loop.state import ResumeContract, RunState, capture
from raymat.train.loop.train_step import TrainStep
from raymat.train.optim.forward import ForwardPass
from raymat.train.optim.mixed_precision import LossScale
from raymat.train.optim.step_health import NonfiniteStepCounter
from tests.support.driverless import CUDA, NOT_TRIED, devices_of, without_driver

SIDE, EXAMPLES = 64, 4
RATES = {"backbone": 1e-4, "aspp": 5e-4, "decoder": 5e-4, "refiner": 3e-4}
NETWORKS = [
    (stage, backbone) for stage in ("base", "refine") for backbone in ("mobilenetv2", "resnet50")
]
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def batch(step: int = 0, train: bool = True) -> MicroBatch:
    rng = np.random.default_rng(step)
    examples = tuple(Example(EXAMPLES * step + i, i, i) for i in range(EXAMPLES))
    fgr, bgr = (rng.integers(0, 256, (EXAMPLES, SIDE, SIDE, 3), np.uint8) for _ in range(2))
    pha = rng.integers(0, 256, (EXAMPLES, SIDE, SIDE), np.uint8)
    return MicroBatch(step, examples, fgr, pha, bgr, (), train=train)


def way(stage: Stage, precision: Any = "fp16") -> ForwardPass:
    return ForwardPass(
        stage=stage, precision=precision, seed=0, resolution=SIDE, device=CUDA, channels_last=True
    )


def new_step(
    stage: Stage, backbone: Any = "mobilenetv2", precision: Any = "fp16", **optim: Any
) -> TrainStep:
    network = build(stage, ModelConfig(backbone=backbone, refine_sample_pixels=1600), 0)
    return TrainStep(network, way(stage, precision), World(), OptimConfig(**optim))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("precision", ["fp16", "fp32", "fp64"])
def test_pictures_are_composed_on_the_device_from_pinned_memory(
    precision: Any, train: bool
) -> None:
    with without_driver() as seen:
        forward = way("base", precision)
        forward.compose(batch())  # sends the table of noise
        seen.slow_copies.clear()
        composed = forward.compose(batch(0, train))
        dtype = torch.float64 if precision == "fp64" else torch.float32
        assert {(x.device, x.dtype) for x in composed} == {(CUDA, dtype)}
        for picture in (composed.src, composed.bgr):
            assert picture.is_contiguous(memory_format=torch.channels_last)
    assert seen.slow_copies == []


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize(("stage", "backbone"), NETWORKS)
def test_convolutions_compute_in_the_precision_and_losses_in_float32(
    stage: Stage, backbone: Any, precision: Any
) -> None:
    found: set[Any] = set()
    with without_driver():
        forward = way(stage, precision)
        network = forward.place(
            build(stage, ModelConfig(backbone=backbone, refine_sample_pixels=1600), 0)
        ).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(
                    lambda m, inputs, output: found.add((output.device, output.dtype))
                )
        composed = forward.compose(batch())
        loss, outputs = forward(network, composed)
        assert found == {(CUDA, HALF[precision])}
        assert (loss.device, loss.dtype) == (CUDA, torch.float32)
        assert devices_of(outputs) == {CUDA}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(("stage", "backbone"), NETWORKS)
def test_a_step_keeps_all_of_its_state_on_the_device(
    stage: Stage, backbone: Any, precision: Any
) -> None:
    """The gradients are made up, and all else of a step runs: what is summed, clipped, averaged and told."""
    with without_driver() as seen:
        step = new_step(
            stage, backbone, precision, ema_decay=0.99, clip_norm=1.0, weight_decay=0.01
        )
        step(batch(), EXAMPLES, RATES)
        seen.slow_copies.clear()
        result = step(batch(), EXAMPLES, RATES, pictures=True, heard=True)
        assert step.ema is not None
        assert result.pictures is not None
        whole = (
            step.network.state_dict(), step.optimiser.state_dict(), step.ema.tensors(),
            step._gradients.flats, step.scale.value, result.loss_sum, result.pictures,
        )  # fmt: skip
        assert devices_of(whole) == {CUDA}
        kept = {x.dtype for x in step.network.parameters()} | {
            x.dtype for x in step._gradients.flats
        }
        assert kept == {torch.float32}
        for parameter in step.network.parameters():
            assert parameter.grad is not None
            assert parameter.grad.stride() == parameter.stride()
    assert seen.slow_copies == []


def test_a_steps_health_is_copied_to_pinned_memory_and_read_a_step_later() -> None:
    with without_driver() as seen:
        step, watch = new_step("base"), NonfiniteStepCounter(3, CUDA)
        health = step(batch(), EXAMPLES, RATES).health
        assert watch.push(1, range(4), health) == []
        assert seen.calls == ["training records"]
        assert seen.is_pinned(health._values)


@pytest.mark.parametrize(("precision", "used"), [("fp16", True), ("bf16", False), ("fp32", False)])
def test_the_loss_scale_is_on_the_device_and_used_in_fp16_alone(precision: Any, used: bool) -> None:
    with without_driver() as seen:
        scale = LossScale(precision, CUDA)
        before = seen.copies
        scale.update(torch.ones((), dtype=torch.bool, device=CUDA))
        assert scale.used is used
        assert (scale.value.device, scale.value.dtype) == (CUDA, torch.float32)
        assert scale._good_steps.dtype == torch.int32
        assert scale.at_floor().device == CUDA
        assert seen.copies == before
    assert precision_on("cuda") == "fp16"


def test_a_snapshot_is_copied_to_pinned_memory_beside_the_step() -> None:
    config = build_config("base", {"synthetic": 8, "name": "dry", "precision": "fp16"})
    with without_driver() as seen:
        step, buffer = new_step("base"), SnapshotBuffer()
        step.scale.state_dict = lambda: {"scale": 1.0, "good_steps": 0}  # type: ignore[method-assign]
        tensors, _ = capture(step, RunState(), ResumeContract(config, "none"))
        seen.slow_copies.clear()
        seen.calls.clear()
        before = seen.copies
        copies = buffer.copy(tensors, wait=False, lasting=set(tensors))
        assert seen.copies - before == len(tensors)
        assert devices_of(copies) == {torch.device("cpu")}
        assert {n: (t.dtype, t.shape) for n, t in copies.items()} == {
            n: (t.dtype, t.shape) for n, t in tensors.items()
        }
        buffer.wait_for_copy()
        buffer.wait()
    assert seen.slow_copies == []
    assert seen.calls == [
        "beside waits for training",
        "beside records",
        "training waits for an event",
        "the host waits",
    ]


def test_a_batch_made_ready_is_waited_for_by_training_and_kept_until_it_is_done() -> None:
    with without_driver() as seen:
        # A thread has modes of its own: here its work is done in place.
        lane, forward = CudaLane(CUDA), way("base")
        ready = lane.compose(forward.compose, batch())()
        assert ready.pictures is not None
        assert devices_of(ready.pictures) == {CUDA}
    assert seen.calls == [
        "beside records",
        "training waits for an event",
        *["a picture is training's too"] * 4,
    ]


def test_a_wrong_device_is_found() -> None:
    with without_driver(), pytest.raises(RuntimeError, match="to be on the same device"):
        torch.ones(3, device=CUDA) + torch.ones(3)


def test_a_copy_that_the_host_waits_for_is_found() -> None:
    with without_driver() as seen:
        torch.ones(3).to(CUDA)
        torch.ones(3).to(CUDA, non_blocking=True)
        torch.ones(3).pin_memory().to(CUDA)
        torch.ones(3).pin_memory().to(CUDA, non_blocking=True)
    assert seen.slow_copies == ["(3,) to cuda:0"] * 3


def test_the_guide_lists_what_could_not_be_tried() -> None:
    text = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text()
    for what, why in NOT_TRIED.items():
        assert f"| {what} | {why} |" in text
