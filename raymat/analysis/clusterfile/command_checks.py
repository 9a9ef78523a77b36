"""What is wrong with the commands of a cluster file, each of which first runs on a machine that is paid."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from raymat.analysis.clusterfile.cluster_file import ClusterFile, NodeType
from raymat.analysis.clusterfile.machine_sizes import size_of
from raymat.analysis.clusterfile.start_commands import STARTS
from raymat.analysis.preflight.findings import Finding

KEYS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *STARTS,
)
SECRET = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\b(?:AWS_SECRET_ACCESS_KEY|RAY_AUTH_TOKEN)=['\"]?[^\s$'\"]"
)
INSTALL = re.compile(r"(\S+)/deploy/node/install\.sh(?:\s+(\S+))?")
NEEDED = ("raymat", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
"""What `install.sh` installs from, beside the folder `deploy`."""
PINS = (
    re.compile(r"\bray(?:\[[\w,]*\])?==([\w.]+)"),
    re.compile(r"(?<![\w.-])ray(?:-ml)?:(\d+\.\d+[\d.]*)"),
    re.compile(r"ray-wheels/(latest)/"),
)
"""How commands and images name a version of Ray."""
CLOUDS = ("aws", "gcp", "azure")
WATCH = re.compile(r"(?:watch\.sh|spot-watch --cloud)(?:[ =]+(\w+))?")


def check_commands(cluster: ClusterFile) -> Iterator[Finding]:
    """Find commands that no shell reads, that name what is not there, or that do what the machine is not for."""
    for place, command in _all(cluster):
        yield from _syntax(place, command)
        yield from _files(cluster, place, command)
        if SECRET.search(command):
            what = (
                "a key is in the file, which each machine gets: a role or a mounted file holds it"
            )
            yield Finding("error", what, place)
    yield from _roles(cluster)
    yield from _watch(cluster)
    yield from _homes(cluster)


def _all(cluster: ClusterFile) -> Iterator[tuple[str, str]]:
    for key in KEYS:
        yield from ((key, str(each)) for each in cluster.config.get(key) or ())
    for node_type in cluster.node_types:
        for key in ("initialization_commands", "worker_setup_commands"):
            for each in node_type.fields.get(key) or ():
                yield f"{node_type.name}.{key}", str(each)


def _syntax(place: str, command: str) -> Iterator[Finding]:
    if (bash := shutil.which("bash")) is None:
        return
    done = subprocess.run([bash, "-n"], input=command, text=True, capture_output=True, timeout=20)
    if done.returncode:
        said = re.sub(r"^.*?: line \d+: ", "", done.stderr.strip().splitlines()[0])
        yield Finding("error", "no shell reads a command", place, said)


def _files(cluster: ClusterFile, place: str, command: str) -> Iterator[Finding]:
    for word in re.findall(r"(?:~|/home/[\w-]+)/[\w./-]+", command):
        local = cluster.local(word)
        if local is not None and not local.exists():
            what = "a command names what is not mounted there, or is not here"
            yield Finding("error", what, place, f"{word}, here {local}")
    for folder in sorted({folder for folder, _ in INSTALL.findall(command)}):
        lacking = [name for name in NEEDED if cluster.local(f"{folder}/{name}") is None]
        if lacking and cluster.local(f"{folder}/deploy/node/install.sh") is not None:
            what = "install.sh would find nothing to install"
            yield Finding("error", what, "file_mounts", f"{', '.join(lacking)} not in {folder}")


def _roles(cluster: ClusterFile) -> Iterator[Finding]:
    for node_type in cluster.node_types:
        for _, role in INSTALL.findall(cluster.set_up(node_type)):
            if role not in ("head", "gpu", "cpu"):
                yield Finding(
                    "error", "install.sh knows head, gpu and cpu alone", node_type.name, role
                )
            elif not node_type.head:
                yield from _role(cluster, node_type, role)


def _role(cluster: ClusterFile, node_type: NodeType, role: str) -> Iterator[Finding]:
    told = (node_type.fields.get("resources") or {}).get("GPU")
    size = size_of(str(node_type.node_config.get("InstanceType", ""))) if cluster.on_ec2 else None
    gpus = size.gpus if size else told
    if (role == "gpu" and gpus == 0) or (role == "gpu" and gpus is None and not cluster.on_ec2):
        what = "a machine without a GPU fails to set up as one with it, and is launched again"
        yield Finding("error", what, node_type.name, advice="worker_setup_commands: install.sh cpu")
    elif role == "cpu" and gpus:
        what = "a machine with a GPU gets a torch without CUDA"
        yield Finding("error", what, node_type.name, advice="install.sh gpu")


def _watch(cluster: ClusterFile) -> Iterator[Finding]:
    cloud = "aws" if cluster.on_ec2 else str(cluster.provider.get("type"))
    commands = "\n".join(map(str, cluster.config.get("worker_start_ray_commands") or ()))
    for named in WATCH.findall(commands):
        if cloud in CLOUDS and named != cloud:
            what = "notices are asked of another cloud: none is heard"
            yield Finding("error", what, "worker_start_ray_commands", named or "none", cloud)


def _homes(cluster: ClusterFile) -> Iterator[Finding]:
    """Find mounts in the home of somebody else, and machines that ask for a token that they do not get."""
    user = str((cluster.config.get("auth") or {}).get("ssh_user") or "ubuntu")
    if cluster.on_ec2 and user != "ubuntu":
        for node_type in cluster.node_types:
            if "ubuntu" in str(node_type.node_config.get("ImageId")):
                what = "Ubuntu's images let in ubuntu alone"
                yield Finding("error", what, f"auth.ssh_user {user}", node_type.name)
    for remote, _ in cluster.mounts:
        home = PurePosixPath(remote).parts[:3]
        if user != "root" and home[:2] == ("/", "home") and home[2:] != (user,):
            yield Finding("error", f"auth.ssh_user {user} may not write there", remote)
    starts = cluster.commands(*STARTS)
    has_token = any(Path(remote).name == "auth_token" for remote, _ in cluster.mounts)
    if "RAY_AUTH_MODE=token" in starts and not has_token and "RAY_AUTH_TOKEN" not in starts:
        what = "Ray asks for a token, and none is mounted: no worker could join"
        yield Finding("error", what, advice="file_mounts: ~/.ray/auth_token")


def check_versions(cluster: ClusterFile, ray: str) -> Iterator[Finding]:
    """Find versions of Ray other than this machine's, which could not speak with it.

    Args:
        ray: the version here.
    """
    for place, text in [*_all(cluster), *_docker(cluster)]:
        for pattern in PINS:
            for there in pattern.findall(text):
                if there != ray:
                    what = f"another Ray than here ({ray}): the two would not understand each other"
                    yield Finding("error", what, place, there)


def _docker(cluster: ClusterFile) -> Iterator[tuple[str, str]]:
    for key, value in (cluster.config.get("docker") or {}).items():
        if str(key).endswith("image"):
            yield f"docker.{key}", str(value)
