"""The Ray that a run is driven on: joined or started, and what the run asks of it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import ray

from raymat.cluster.driver.object_store import LEAST_BYTES
from raymat.cluster.driver.ray_watch import RayWatch, quiet_terminal
from raymat.cluster.driver.say import say
from raymat.cluster.driver.stop_signals import starting_processes
from raymat.cluster.ray_internals import (
    apply_settings,
    hush_cluster,
    only_what_a_run_needs,
    recorded_head,
    resolve_address,
    responds,
)
from raymat.config.run import RunConfig
from raymat.config.settled import precision_on
from raymat.config.shadows import find_shadow, module_of, refuse_shadows
from raymat.console import count
from raymat.errors import ClusterError, ConfigError, first_line


def resolve_auto(
    config: RunConfig, begun: RunConfig | None, resources: Callable[[], dict[str, float]]
) -> RunConfig:
    """Replace a device and a precision left to `auto`: by those that the run was begun with, or by the cluster's `resources`.

    Raises:
        ConfigError: a precision that the device does not have, or nothing to decide by.
    """
    device = config.workers.device
    if device == "auto" and begun is not None:
        device = begun.workers.device
    elif device == "auto":
        have = resources()
        if not have.get("CPU") and not have.get("GPU"):
            raise ConfigError(
                "--device auto: the cluster has no worker node yet to tell by; "
                "say --device cuda or --device cpu"
            )
        device = "cuda" if have.get("GPU", 0) > 0 else "cpu"
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
def running_ray(
    store_bytes: int = LEAST_BYTES, metrics_port: int | None = None
) -> Iterator[RayWatch]:
    """Use this process's Ray, join the cluster there is, or start one on this machine; leave it at the end, if it was joined
    or started here. Gives the watch over it.

    Args:
        store_bytes: of the object store of a Ray that is started here.
        metrics_port: at which it serves its metrics; None: any free one.
    """
    apply_settings()
    with starting_processes():
        origin = _start_ray(store_bytes, metrics_port)
    watch = RayWatch(own=origin == "started")
    quiet = quiet_terminal(watch) if origin != "shared" else contextlib.nullcontext()
    try:
        with quiet:
            yield watch
    finally:
        if watch.lost:
            watch.end()
        elif origin != "shared":
            ray.shutdown()


def _start_ray(
    store_bytes: int, metrics_port: int | None
) -> Literal["shared", "joined", "started"]:
    if ray.is_initialized():
        return "shared"
    hush_cluster()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with installed_packages_first():
        if address := address_to_join():
            say(f"joining the Ray cluster at {address}")
            ray.init(address=address, **quiet)
            return "joined"
        try:
            with only_what_a_run_needs():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    object_store_memory=store_bytes,
                    _metrics_export_port=metrics_port,
                    **quiet,
                )
        except OSError as error:
            folder = os.environ.get("RAY_TMPDIR", "/tmp")
            raise ClusterError(
                f"Ray cannot start in {folder}: {first_line(error)}; set RAY_TMPDIR to a short path with room"
            ) from error
        except Exception as error:  # as which Ray raises that its processes were not up in time
            raise ClusterError(
                f"Ray cannot start on this machine: {first_line(error)}; give the same command again when the machine "
                "is less busy"
            ) from error
    return "started"


def address_to_join() -> str | None:
    """Return the address of the cluster to train on; None: this machine gets a Ray of its own.

    A cluster is joined where RAY_ADDRESS names it, or where `ray start` was used on this machine. Whatever other Ray
    runs here, another run's above all, would end with its driver, and its cores are taken.

    Raises:
        ClusterError: RAY_ADDRESS is no address, or nothing answers there.
    """
    named = os.environ.get("RAY_ADDRESS", "")
    if named == "local" or named.startswith("ray://"):
        return None if named == "local" else named
    if named in ("", "auto"):
        recorded = recorded_head()
        if recorded is not None and responds(recorded):
            return recorded
        if named == "auto":
            raise ClusterError(
                "RAY_ADDRESS=auto, but no cluster that `ray start` started on this machine answers: start it, name one "
                "as HOST:PORT, or unset RAY_ADDRESS to run on this machine alone"
            )
        if recorded is not None:
            say(
                f"the Ray cluster at {recorded} does not answer any more: starting Ray on this machine"
            )
        return None
    try:
        address = resolve_address(named)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"RAY_ADDRESS={named} is no address ({first_line(error)}): expected HOST:PORT, local or auto"
        ) from None
    if not responds(address):
        raise ClusterError(
            f"no Ray cluster answers at RAY_ADDRESS={named}: start it, "
            "or unset RAY_ADDRESS to run on this machine alone"
        )
    return address


@contextmanager
def installed_packages_first() -> Iterator[None]:
    """Have the cluster's processes that start in the block import this raymat and what it needs, whatever the working directory
    holds.

    Ray puts the driver's working directory first into the import path of its processes. A folder there that is called
    raymat, a clone's above all, or a file like torch.py would take the place of the installed package.

    Raises:
        ConfigError: there is such a file beside this raymat itself, or on PYTHONPATH.
    """
    refuse_shadows(os.environ)  # again, for programs that call raymat
    package = Path(__file__).resolve().parents[2]
    here = Path.cwd()
    clone = here / package.name
    if not clone.exists() or clone.resolve() == package:
        shadow = find_shadow(here)
        if shadow is None:
            yield
            return
        name = module_of(shadow)
        if clone.exists():  # workers import raymat from here
            raise ConfigError(f"{shadow} takes the place of the package {name}: rename it")
        say(f"{shadow} is not the package {name}: workers import nothing from {here}")
    # Of the paths that Ray hands on the working directory comes first: for a moment it is the one that holds this package.
    os.chdir(package.parent)
    try:
        yield
    finally:
        os.chdir(here)


def check_room(config: RunConfig, can_grow: bool) -> None:
    """Say at once what Ray would wait for without a word.

    Raises:
        ClusterError: a cluster that cannot grow has no room for the smallest number of workers.
    """
    total, free = ray.cluster_resources(), ray.available_resources()
    if not can_grow:
        require_room(config, total)
    for name, need in _needs(config, total).items():
        have, left = total.get(name, 0), free.get(name, 0)
        if have < need:
            say(f"waiting for nodes: {_short(config, name, need, have)}")
        elif left < need:
            short = _short(config, name, need, have)
            say(f"waiting for others to finish: {short}, of which {left:g} is free")


def require_room(config: RunConfig, resources: dict[str, float]) -> None:
    """Raise a ClusterError if `resources`, which cannot grow, have no room for the smallest number of workers."""
    if config.workers.device == "cuda" and not resources.get("GPU"):
        raise ClusterError("--device cuda: Ray finds no GPU on this machine, use --device cpu")
    for name, need in _needs(config, resources).items():
        have = resources.get(name, 0)
        if have < need:
            short = _short(config, name, need, have)
            raise ClusterError(f"{short}: use fewer --workers or a larger machine")


def _needs(config: RunConfig, resources: dict[str, float]) -> dict[str, float]:
    """Return what the smallest number of workers takes of each resource."""
    workers = config.workers.workers.low
    return {name: each * workers for name, each in worker_resources(config, resources).items()}


def _short(config: RunConfig, name: str, need: float, have: float) -> str:
    workers = config.workers.workers.low
    verb = "needs" if workers == 1 else "need"
    return f"{count(workers, 'worker')} {verb} {need:g} {name}, the cluster has {have:g}"
