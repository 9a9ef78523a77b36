"""Laws of the commands of cluster files: what no shell reads, Ray refuses or a machine has not is one line before it is paid."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.cluster_files import CLUSTER, changed

SETUP, HEAD, WORKER = (
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
TYPES = "available_node_types"
MOUNTS = CLUSTER["file_mounts"]
STORE = "--object-store-memory=20000000000"


def started(key: str, old: str, new: str) -> tuple[str, list[str]]:
    """One kind of start commands with a part replaced."""
    assert any(old in command for command in CLUSTER[key])
    return key, [command.replace(old, new) for command in CLUSTER[key]]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("initialization_commands", ["echo 'hello"]),
         "error: no shell reads a command: initialization_commands (unexpected EOF while looking for matching `'')"),
        ((SETUP, ["bash ~/raymat/deploy/node/instal.sh gpu"]),
         f"error: a command names what is not mounted there, or is not here: {SETUP} (~/raymat/deploy/node/instal.sh, here "),
        (("file_mounts", {k: v for k, v in MOUNTS.items() if v != "raymat"}),
         "error: 3 x install.sh would find nothing to install: file_mounts (raymat not in ~/raymat)"),
        ((SETUP, ["bash ~/raymat/deploy/node/install.sh gup"]), "error: install.sh knows head, gpu and cpu alone: gpu (gup)"),
        ((SETUP, ["bash ~/raymat/deploy/node/install.sh cpu"]), "error: a machine with a GPU gets a torch without CUDA: gpu"),
        ((f"{TYPES}.decode.worker_setup_commands", None), "error: a machine without a GPU fails to set up as one with it"),
        (("setup_commands", ["export AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI"]), "error: a key is in the file, which each machine"),
        (("setup_commands", ["pip install 'ray[default]==2.40.0'"]), "error: another Ray than here (2.60.0): the two would not"),
        (("docker", {"image": "rayproject/ray:2.9.0", "container_name": "ray"}),
         "error: another Ray than here (2.60.0): the two would not understand each other: docker.image (2.9.0)"),
        (("file_mounts", {k: v for k, v in MOUNTS.items() if "token" not in v}),
         "error: Ray asks for a token, and none is mounted"),
        (("auth.ssh_user", "admin"), "error: 8 x auth.ssh_user admin may not write there: /home/ubuntu/raymat/raymat"),
        (started(WORKER, "watch.sh aws", "watch.sh gcp"),
         f"error: notices are asked of another cloud: none is heard: {WORKER} (gcp)"),
        (started(WORKER, "source ~/raymat/deploy/node/env.sh;", ""),
         f"error: Ray asks for no token: whoever reaches the head runs code on every machine: {WORKER}"),
        (started(WORKER, "--object-spilling-directory", "--object-spiling-directory"),
         "error: `ray start` refuses it: worker_start"),
        (started(WORKER, STORE, "--object-store-memory=20GB"), f"error: `ray start` refuses it: {WORKER} (Invalid value for"),
        (started(WORKER, STORE, "--object-store-memory=20000"),
         f"error: `ray start` refuses it: {WORKER} (--object-store-memory=20"),
        (started(WORKER, STORE, STORE + "0"), "error: 5 x an object store that leaves no memory to training: gpu (200 GB, g5.4xl"),
        (started(WORKER, "--address=$RAY_HEAD_IP:6379", ""),
         "error: workers start without --address: each is a cluster of its own"),
        (started(WORKER, "$RAY_HEAD_IP:6379", "$RAY_HEAD_IP:6380"),
         f"error: workers look for the head at another port: {WORKER} (6380, 6379)"),
        (started(HEAD, "--head ", ""), "error: the head starts without --head: there is no cluster"),
        (started(HEAD, "--autoscaling-config=~/ray_bootstrap_config.yaml", ""), "error: without --autoscaling-config no worker is"),
        (started(HEAD, "--head ", "--head --block "), f"error: with --block `ray up` waits for ever: {HEAD}"),
    ],
)  # fmt: skip
def test_each_command_that_would_fail_on_a_machine_is_one_line(
    change: tuple[str, Any], line: str, check: Any
) -> None:
    code, lines = check(changed(change), "--offline")
    assert len([each for each in lines if each.strip().startswith(line)]) == 1, "\n".join(lines)
    assert code == 1


WHOLE = {"/home/ubuntu/raymat": ".", "/home/ubuntu/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize(
    "change",
    [
        ("file_mounts", WHOLE),
        ("file_mounts", {k.replace("/home/ubuntu", "~"): v for k, v in MOUNTS.items()}),
        ("setup_commands", ["pip install 'ray[default]==2.60.0' && echo \"it's done\"; cat <<< 'x' > ~/notes.txt"]),
        ("docker", {"image": "rayproject/ray:2.60.0-gpu", "container_name": "ray"}),
        ("initialization_commands", ["export AWS_SECRET_ACCESS_KEY=$(cat ~/.key) RAY_AUTH_TOKEN=$TOKEN"]),
        started(WORKER, STORE, "--object-store-memory=$((20 * 10**9)) --num-cpus=$(nproc) --labels=zone=$ZONE"),
        started(WORKER, STORE, """--resources='{"disk": 1}'"""),
    ],
)  # fmt: skip
def test_commands_of_others_pass(change: tuple[str, Any], check: Any) -> None:
    code, lines = check(changed(change), "--offline")
    assert (code, lines[-1]) == (0, "result: fine"), "\n".join(lines)
