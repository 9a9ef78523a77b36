"""The Ray that a run is driven on: joined or started, and what the run asks of it."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import ray

from raymat.cluster.ray_internals import apply_settings
from raymat.config.run import RunConfig
from raymat.errors import ClusterError, ConfigError
from raymat.train.optim.mixed_precision import precision_on

OBJECT_STORE_BYTES = 2 * 2**30


def resolve_auto(
    config: RunConfig, begun: RunConfig | None, resources: dict[str, float]
) -> RunConfig:
    """Replace a device and a precision left to `auto`: by those that the run was begun with, or by what the cluster has.

    Raises:
        ConfigError: a precision that the device does not have, or nothing to decide by.
    """
    device = config.workers.device
    if device == "auto" and begun is not None:
        device = begun.workers.device
    elif device == "auto":
        if not resources.get("CPU") and not resources.get("GPU"):
            raise ConfigError(
                "--device auto: the cluster has no worker node yet to tell by; "
                "say --device cuda or --device cpu"
            )
        device = "cuda" if resources.get("GPU", 0) > 0 else "cpu"
    precision = config.optim.precision or (begun.optim.precision if begun else None)
    precision = precision_on(device, precision)
    if precision == "fp16" and device == "cpu":
        raise ConfigError("--precision fp16 needs a GPU: use bf16 or fp32 on the CPU")
    return dataclasses.replace(
        config,
        workers=dataclasses.replace(config.workers, device=device),
        optim=dataclasses.replace(config.optim, precision=precision),
    )


def worker_resources(config: RunConfig, resources: dict[str, float]) -> dict[str, float]:
    """Return what one worker asks of Ray. On a CPU cluster half of the cores stay for decoding."""
    if config.workers.device == "cuda":
        return {"CPU": 1, "GPU": 1}
    share = resources.get("CPU", 1) / (2 * config.workers.workers.high)
    return {"CPU": max(0.01, min(1.0, math.floor(share * 100) / 100))}


@contextmanager
def running_ray() -> Iterator[bool]:
    """Use this process's Ray, join the cluster there is, or start one on this machine; leave it at the end, if it was joined
    or started here. Gives whether the cluster can grow."""
    apply_settings()
    origin = _start_ray()
    try:
        yield origin != "started"
    finally:
        if origin != "shared":
            ray.shutdown()


def _start_ray() -> Literal["shared", "joined", "started"]:
    if ray.is_initialized():
        return "shared"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if os.environ.get("RAY_ADDRESS") != "local":
        try:
            ray.init(address="auto", **quiet)
            return "joined"
        except ConnectionError:
            if "RAY_ADDRESS" in os.environ:
                raise ClusterError(
                    f"no Ray cluster answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']}: start it, "
                    "or unset RAY_ADDRESS to run on this machine alone"
                ) from None
    ray.init(
        address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet
    )
    return "started"


def check_room(config: RunConfig, resources: dict[str, float], can_grow: bool) -> None:
    """Say at once what Ray would wait for without a word.

    Raises:
        ClusterError: a cluster that cannot grow has no room for the smallest number of workers.
    """
    workers = config.workers.workers.low
    for name, each in worker_resources(config, resources).items():
        need, have = each * workers, resources.get(name, 0)
        if have >= need:
            continue
        short = f"{workers} workers need {need:g} {name}, the cluster has {have:g}"
        if not can_grow:
            raise ClusterError(f"{short}: use fewer --workers or a larger machine")
        print(f"waiting for nodes: {short}", file=sys.stderr, flush=True)
