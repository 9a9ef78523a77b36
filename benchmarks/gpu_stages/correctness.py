"""Stages that ask whether a device computes what the CPU does, and the same again after a restart."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gpu_stages.kit import BACKBONES, RATES, made_batch, made_step, seconds_of, synchronize

from raymat.checkpoint.snapshot import Snapshot, SnapshotBuffer
from raymat.config.run import build
from raymat.data.compositing.fused_batch import fused_obstacle
from raymat.distributed.batchnorm_kernels import PLAIN, kernels_on
from raymat.distributed.kernel_trial import LARGEST_DIFFERENCE, largest_difference, require_right
from raymat.train.loop.state import ResumeContract, RunState, capture, install
from raymat.train.optim.mixed_precision import LossScale

LIMITS = {"base": (1e-4, 2e-2), "refine": (1e-2, math.inf), "half": (5e-2, math.inf)}
"""How far the loss, and the norm of all gradients, may be from the CPU's in float64, as shares. Where it is infinite the norm is
only told: on noise, half precision is coarse, and a refiner chooses other patches after the smallest difference."""


def networks(device: torch.device, side: int) -> dict[str, Any]:
    """Loss and gradients of every network in fp32 and fp16, beside the CPU in float64."""
    found: dict[str, Any] = {}
    half = "fp16" if device.type == "cuda" else "bf16"
    for stage in ("base", "refine"):
        for backbone in BACKBONES:
            more = {"refine_sample_pixels": 1600} if stage == "refine" else {}
            truth = _loss(
                made_step(stage, torch.device("cpu"), "fp64", backbone=backbone, side=side, **more),
                side,
            )
            for precision, limits in (("fp32", LIMITS[stage]), (half, LIMITS["half"])):
                step = made_step(stage, device, precision, backbone=backbone, side=side, **more)
                off = [abs(x / y - 1) for x, y in zip(_loss(step, side), truth, strict=True)]
                found[f"{stage} {backbone} {precision}"] = [float(f"{value:.2g}") for value in off]
                assert all(x < limit for x, limit in zip(off, limits, strict=True)), (found, limits)
    return found


def _loss(step: Any, side: int) -> tuple[float, float]:
    health = step(made_batch(0, side), 4, RATES).health.read()
    return health.loss, health.norm


def compositing(device: torch.device, side: int) -> dict[str, Any]:
    """Augmented and composited pictures beside the CPU's, and a digest of them as levels of 255: by each way of the device's."""
    here, there = (
        made_step("base", where, "fp32", side=side).forward
        for where in (device, torch.device("cpu"))
    )
    found: dict[str, Any] = {"no_fused_kernels": fused_obstacle(device)}
    for way in dict.fromkeys(("together", here.way)):
        off, digest = 0.0, hashlib.sha256()
        for number in range(8):
            batch = made_batch(number, side)
            composed, truth = here.compose(batch, way), there.compose(batch)
            alone = here.compose(replace(batch, chunks=(1,) * 4).by_chunk()[number % 4], way)
            for name in ("src", "bgr", "pha", "fgr"):
                one, other = getattr(composed, name), getattr(truth, name)
                assert torch.equal(getattr(alone, name)[0], one[number % 4]), (way, number, name)
                off = max(off, float((one.cpu() - other).abs().max()))
                levels = (one.cpu() * 255).round().to(torch.uint8).numpy()
                digest.update(np.ascontiguousarray(levels).tobytes())
        assert off < 2e-3, (way, off)
        found[way] = {
            "largest_difference_of_1": float(f"{off:.2g}"),
            "sha256": digest.hexdigest()[:16],
        } | seconds_of(lambda n, w=way: here.compose(made_batch(n, side), w), device, 2, 10)  # type: ignore[misc]
    return found


def batch_norm(device: torch.device, side: int) -> dict[str, Any]:
    """The device's own kernels for batch norm over workers, beside torch's operations on the CPU in float64."""
    kernels = kernels_on(device.type)
    found = {
        str(dtype): float(f"{largest_difference(kernels, device, dtype):.2g}")
        for dtype in LARGEST_DIFFERENCE
        if kernels is not PLAIN or dtype in (torch.float32, torch.float64)
    }
    for dtype in LARGEST_DIFFERENCE:
        if str(dtype) in found:
            require_right(kernels, device, dtype)
    return {"kernels": "fused" if kernels is not PLAIN else "plain", "largest_difference": found}


def scaler(device: torch.device, side: int) -> dict[str, Any]:
    """The loss scale beside torch's own, through steps of which some are not finite."""
    if device.type != "cuda":
        return {"left_out": "torch's is of CUDA"}
    ours, theirs = LossScale("fp16", device), torch.amp.GradScaler("cuda", init_scale=65536.0)
    weight = torch.nn.Parameter(torch.ones(4, device=device))
    optimiser = torch.optim.SGD([weight], lr=0.0)
    for number in range(2100):
        bad = number in (3, 4, 700)
        weight.grad = torch.full_like(weight, math.inf if bad else 1.0)
        theirs.scale(torch.ones((), device=device))
        theirs.step(optimiser)
        theirs.update()
        ours.update(torch.tensor(bad, device=device))
        assert float(ours.value) == theirs.get_scale(), number
    return {"steps": 2100, "scale": float(ours.value)}


def resume(device: torch.device, side: int) -> dict[str, Any]:
    """Eight steps, beside four, a restored state, and four more: with deterministic kernels, and without."""
    found: dict[str, Any] = {}
    for deterministic in (True, False):
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        for stage in ("base", "refine"):
            more = {"refine_sample_pixels": 1600} if stage == "refine" else {}
            precision = "fp16" if device.type == "cuda" else "fp32"
            options = {"synthetic": 8, "name": "r", "resolution": side, "crop": side, "threads": 1}
            config = build(stage, options | {"precision": precision})
            whole, again = (
                made_step(stage, device, precision, side=side, **more) for _ in range(2)
            )
            for number in range(4):
                whole(made_batch(number, side), 4, RATES)
            state = Snapshot.take(4, *capture(whole, RunState(), ResumeContract(config, "none")))
            install(again, state.tensors, state.extra)
            for number in range(4, 8):
                whole(made_batch(number, side), 4, RATES)
                again(made_batch(number, side), 4, RATES)
            pairs = zip(
                whole.network.state_dict().values(),
                again.network.state_dict().values(),
                strict=True,
            )
            unequal = sum(not torch.equal(one, other) for one, other in pairs)
            found[f"{stage} {'deterministic' if deterministic else 'as it is'}"] = (
                f"{unequal} tensors differ"
            )
            assert not (deterministic and unequal), stage
    torch.use_deterministic_algorithms(False)
    return found


def saves(device: torch.device, side: int) -> dict[str, Any]:
    """Snapshots that are copied beside the steps, provoked: what is read back is the state of their step."""
    step, buffer = made_step("base", device, "fp32", side=side), SnapshotBuffer()
    contract = ResumeContract(build("base", {"synthetic": 8, "name": "s"}), "none")
    rounds = 20
    for number in range(rounds):
        step(made_batch(number, side), 4, RATES)
        tensors, extra = capture(step, RunState(), contract)
        truth = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        snapshot = Snapshot.take(number, tensors, extra, buffer)
        # At once, on the step's stream: a copy that is not ordered before it would read these.
        with torch.no_grad():
            for tensor in tensors.values():
                tensor.add_(1)
        synchronize(device)
        for name, tensor in snapshot.tensors.items():
            assert torch.equal(tensor, truth[name].cpu()), (number, name)
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(truth[name])
    return {"rounds": rounds, "tensors": len(truth)}
