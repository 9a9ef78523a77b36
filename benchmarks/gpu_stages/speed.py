"""Stages that measure steps: how long, how much memory, how many launches, and how idle the device is."""

from __future__ import annotations

from typing import Any

import torch
from gpu_stages.kit import RATES, difference, made_batch, made_step, seconds_of, synchronize
from torch.profiler import ProfilerActivity, profile

from raymat.data.batch import MicroBatch
from raymat.train.loop.train_step import TrainStep

SIZES: dict[str, tuple[int, int]] = {"refine": (4, 2048), "base": (8, 512)}
"""Examples and side of a step, by stage."""
SMALL: dict[str, tuple[int, int]] = {"refine": (2, 128), "base": (2, 64)}
"""The same for a try on the CPU."""


def _sizes(device: torch.device) -> dict[str, tuple[int, int]]:
    return SIZES if device.type == "cuda" else SMALL


def steps(device: torch.device, side: int) -> dict[str, Any]:
    """Step times of both stages and two backbones: at one size, at sizes that change, at four sizes in turns."""
    found: dict[str, Any] = {}
    cuda = device.type == "cuda"
    for stage, (examples, largest) in _sizes(device).items():
        for backbone in ("resnet50", "mobilenetv2"):
            more = {"refine_sample_pixels": 80_000 if cuda else 1600} if stage == "refine" else {}
            step = made_step(
                stage, device, "fp16" if cuda else "fp32", backbone=backbone, side=largest, **more
            )
            sizes = _sides(largest)
            batches = {s: made_batch(0, s, examples) for s in sizes}
            orders = {"one size": [largest], "four sizes": sizes[:4], "changing": sizes}
            for name, order in orders.items():
                found[f"{stage} {backbone} {name}"] = _timed(step, [batches[s] for s in order])
    return found


def _timed(step: TrainStep, batches: list[MicroBatch]) -> dict[str, float]:
    device = step.forward.device
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)

    def work(number: int) -> None:
        batch = batches[number % len(batches)]
        step(batch, len(batch.examples), RATES)

    times = seconds_of(work, device, *((4, 12) if cuda else (1, 3)))
    if cuda:
        times["peak_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
    return times


def _sides(largest: int) -> list[int]:
    """Return multiples of 4 from half of the largest on, twelve of them; the first four are evenly spread."""
    half = largest // 2
    return [largest - half * n // 12 // 4 * 4 for n in (0, 3, 6, 9, 1, 2, 4, 5, 7, 8, 10, 11)]


def launches(device: torch.device, side: int) -> dict[str, Any]:
    """Kernels of one profiled step, and the share of its time in which the device did nothing."""
    if device.type != "cuda":
        return {"left_out": "counted by step_launches.py without a GPU"}
    found: dict[str, Any] = {}
    for stage, (examples, largest) in _sizes(device).items():
        step = made_step(stage, device, "fp16", backbone="resnet50", side=largest)
        for number in range(3):
            step(made_batch(number, largest, examples), examples, RATES)
        synchronize(device)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            step(made_batch(3, largest, examples), examples, RATES)
            synchronize(device)
        spans = sorted(
            (e.time_range.start, e.time_range.end)
            for e in profiled.events()
            if e.device_type.name == "CUDA"
        )
        busy, reached = 0.0, spans[0][0]
        for begin, end in spans:
            busy += max(0.0, end - max(begin, reached))
            reached = max(reached, end)
        whole = reached - spans[0][0]
        found[stage] = {
            "launches": len(spans),
            "ms": round(whole / 1e3, 2),
            "idle": round(1 - busy / whole, 3),
        }
    return found


def two_workers(device: torch.device, side: int) -> dict[str, Any]:
    """Two workers on one card over gloo, beside one: the same weights after three steps, up to the order of sums."""
    context = torch.multiprocessing.get_context("spawn")
    told = context.Queue()
    workers = [
        context.Process(target=_work, args=(rank, str(device), side, told)) for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    weights = dict(told.get(timeout=120) for _ in range(2))
    for worker in workers:
        worker.join(60)
    alone = made_step("base", device, "fp32", side=side)
    for number in range(3):
        alone(made_batch(number, side), 4, RATES)
    truth = torch.cat([p.detach().cpu().reshape(-1) for p in alone.network.parameters()])
    assert weights[0] == weights[1]
    off = difference(torch.tensor(weights[0]), truth)
    assert off < 1e-2, off
    return {"difference_to_one_worker": float(f"{off:.2g}")}


def _work(rank: int, device: str, side: int, told: Any) -> None:
    """Train as one of two workers, and tell the weights."""
    import dataclasses
    import os

    import torch.distributed as dist

    from raymat.distributed.world import World

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29655"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    step = made_step("base", torch.device(device), "fp32", side=side, world=World(rank, 2))
    for number in range(3):
        whole = made_batch(number, side)
        own = slice(2 * rank, 2 * rank + 2)
        part = dataclasses.replace(
            whole,
            examples=whole.examples[own],
            fgr=whole.fgr[own],
            pha=whole.pha[own],
            bgr=whole.bgr[own],
        )
        step(part, 4, RATES)
    told.put(
        (
            rank,
            torch.cat([p.detach().cpu().reshape(-1) for p in step.network.parameters()]).tolist(),
        )
    )
    dist.destroy_process_group()
