"""The cluster file of the hosts: cluster.yaml with other machines, and all else of it that does not ask AWS."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.hosts.machine import KEY, Machine
from tests.hosts.sealed import HOME
from tests.support.paths import ROOT

STORE_BYTES = 300_000_000
"""Of each host's object store."""
CPUS = 4
"""Of each worker: room for two ranks, and as much again to decode with."""
PLACES = {"/nvme": "/tmp/nvme", "/home/ubuntu": HOME}
"""Folders of AWS's machines, and what the hosts have in their place."""
DISK = "mkdir -p /tmp/nvme/spill /tmp/nvme/nearby"


def cluster_of(head: Machine, workers: Sequence[Machine]) -> dict[str, Any]:
    """Return the cluster file as a dictionary."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    for aws in ("available_node_types", "head_node_type", "max_workers"):
        del config[aws]
    addresses = [worker.address for worker in workers]
    config["provider"] = {"type": "local", "head_ip": head.address, "worker_ips": addresses}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(KEY)}
    config["file_mounts"] = {_here(place): what for place, what in config["file_mounts"].items()}
    # In place of install.sh, for which there is no package index here.
    setup = (
        f"ln -sfn {sys.prefix} ~/env && chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token && {DISK}"
    )
    config["head_setup_commands"] = config["worker_setup_commands"] = [setup]
    for role in ("head", "worker"):
        commands = config[f"{role}_start_ray_commands"]
        config[f"{role}_start_ray_commands"] = [_fitting(command, role) for command in commands]
    return config


def _fitting(command: str, role: str) -> str:
    """Return a command of cluster.yaml for a host of this machine."""
    command = re.sub(
        r"--object-store-memory=\d+", f"--object-store-memory={STORE_BYTES}", _here(command)
    )
    if role == "worker":
        command = command.replace("ray start ", f"ray start --num-cpus={CPUS} ")
    # Hosts share few cores, and a worker that once failed to start would not be started again.
    return command.replace("ray start ", "RAY_raylet_start_wait_time_s=600 ray start ")


def _here(text: str) -> str:
    for theirs, here in PLACES.items():
        text = text.replace(theirs, here)
    return text


def write_cluster_file(path: Path, head: Machine, workers: Sequence[Machine]) -> None:
    """Write it for `ray up`."""
    path.write_text(yaml.safe_dump(cluster_of(head, workers), sort_keys=False), encoding="utf-8")
