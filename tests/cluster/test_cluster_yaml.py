"""Laws of cluster.yaml, checked without AWS: Ray accepts it, EC2's own model accepts each node, and it keeps its promises."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymat.analysis.clusterfile.ec2_requests import mistakes
from raymat.analysis.clusterfile.offers import offers, on_demand
from raymat.cluster.ray_autoscaler_internals import schema_mistake
from tests.support.paths import ROOT

TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
CLUSTER: dict[str, Any] = yaml.safe_load(TEXT)
HEAD = CLUSTER["available_node_types"]["head"]
WORKERS = {k: v for k, v in CLUSTER["available_node_types"].items() if k != "head"}
NODES = CLUSTER["available_node_types"]
ALTERNATIVES = CLUSTER["provider"]["alternatives"]
ENV = (ROOT / "deploy/node/env.sh").read_text(encoding="utf-8")
INSTALL = (ROOT / "deploy/node/install.sh").read_text(encoding="utf-8")
STARTS = [*CLUSTER["head_start_ray_commands"], *CLUSTER["worker_start_ray_commands"]]


def start_command(commands: list[str]) -> str:
    (command,) = (c for c in commands if "ray start" in c)
    return command


def changed(node: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The node's configuration with the field at a dotted path set."""
    config: dict[str, Any] = copy.deepcopy(node["node_config"])
    *parents, last = path.split(".")
    inner = config
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return config


def test_ray_accepts_it() -> None:
    assert schema_mistake(CLUSTER) is None


@pytest.mark.parametrize("name", NODES)
def test_ec2_accepts_every_node_and_its_alternatives(name: str) -> None:
    for request in offers(NODES[name]["node_config"], ALTERNATIVES.get(name, ())):
        assert mistakes(request) == []


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("InstanceMarketOption", {}, "InstanceMarketOption"),
        ("InstanceMarketOptions.SpotOptions.InstanceInteruptionBehavior", "terminate", "Interuption"),
        ("MetadataOptions.HttpTokens", "require", "'require' is no HttpTokensState"),
        ("InstanceMarketOptions.MarketType", "spotty", "'spotty' is no MarketType"),
        ("InstanceType", "g5.4xlrge", "'g5.4xlrge' is no InstanceType"),
        ("MetadataOptions.HttpPutResponseHopLimit", "1", "HttpPutResponseHopLimit"),
        ("BlockDeviceMappings", [{"Ebs": {"VolumeSize": "200"}}], "VolumeSize"),
    ],
)  # fmt: skip
def test_a_typo_in_a_node_is_found(path: str, value: Any, words: str) -> None:
    assert words in "\n".join(mistakes(changed(WORKERS["gpu"], path, value)))


def test_the_head_is_on_demand_without_a_gpu_and_computes_nothing() -> None:
    assert "InstanceMarketOptions" not in HEAD["node_config"]
    assert not re.match(r"(g|p|inf|trn)\d", HEAD["node_config"]["InstanceType"])
    assert HEAD["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in start_command(CLUSTER["head_start_ray_commands"])
    assert CLUSTER["head_node_type"] == "head"


@pytest.mark.parametrize("name", WORKERS)
def test_workers_are_spot_machines_between_nothing_and_a_maximum(name: str) -> None:
    node = WORKERS[name]
    assert node["node_config"]["InstanceMarketOptions"] == {
        "MarketType": "spot",
        "SpotOptions": {
            "SpotInstanceType": "one-time",
            "InstanceInterruptionBehavior": "terminate",
        },
    }
    assert node["min_workers"] == 0
    assert 0 < node["max_workers"] <= CLUSTER["max_workers"]


def test_some_have_a_gpu_with_a_way_out_on_demand_and_some_only_decode() -> None:
    assert WORKERS["gpu"]["resources"] == {"CPU": 16, "GPU": 1}
    assert WORKERS["decode"]["resources"] == {"CPU": 32}
    kinds = [
        (request["InstanceType"], on_demand(request))
        for request in offers(WORKERS["gpu"]["node_config"], ALTERNATIVES["gpu"])
    ]
    assert kinds == [("g5.4xlarge", False), ("g5.8xlarge", False), ("g5.4xlarge", True)]


@pytest.mark.parametrize("name", NODES)
def test_a_machine_that_powers_itself_off_is_ended(name: str) -> None:
    assert NODES[name]["node_config"]["InstanceInitiatedShutdownBehavior"] == "terminate"


def test_workers_spill_to_their_own_disks() -> None:
    start = start_command(CLUSTER["worker_start_ray_commands"])
    assert "--object-spilling-directory=/nvme/spill" in start
    assert "mkdir -p /nvme/spill" in INSTALL


@pytest.mark.parametrize("name", NODES)
def test_every_node_names_its_image_its_profile_and_asks_for_imds_tokens(name: str) -> None:
    config = NODES[name]["node_config"]
    assert config["ImageId"].startswith(("ami-", "resolve:ssm:/aws/service/"))
    assert config["MetadataOptions"]["HttpTokens"] == "required"
    assert config["IamInstanceProfile"].keys() <= {"Name", "Arn"}


def test_workers_have_another_profile_than_the_head_which_may_launch_machines() -> None:
    head = HEAD["node_config"]["IamInstanceProfile"]
    assert all(node["node_config"]["IamInstanceProfile"] != head for node in WORKERS.values())


def test_no_secret_is_in_the_file() -> None:
    found = re.findall(
        r"AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}|aws_(?:access|secret)\w*|BEGIN [A-Z ]*PRIVATE KEY|RAY_AUTH_TOKEN\s*=|\b\d{12}\b",
        TEXT,
        re.IGNORECASE,
    )
    assert found == []


def test_every_start_and_stop_is_written_here_and_not_left_to_rays_defaults() -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert len(CLUSTER[key]) == 2
    assert CLUSTER["initialization_commands"] == CLUSTER["setup_commands"] == []
    for key in ("head_setup_commands", "worker_setup_commands"):
        assert CLUSTER[key]


@pytest.mark.parametrize("command", [c for c in STARTS if "ray start" in c])
def test_every_start_has_token_mode_free_threads_and_a_sized_object_store(command: str) -> None:
    before, _, after = command.partition("ray start")
    # Jobs call `python`, which they find where ray was started.
    assert before == "source ~/raymat/deploy/node/env.sh; "
    assert int(re.search(r"--object-store-memory=(\d+)", after)[1]) >= 10**9  # type: ignore[index]


def test_what_every_start_reads_sets_the_token_mode_and_frees_the_threads() -> None:
    done = subprocess.run(
        ["bash", "-c", ". deploy/node/env.sh; env -0"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": "/nowhere", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)
    assert found["RAY_AUTH_MODE"] == "token"
    assert "OMP_NUM_THREADS" not in found


def test_the_token_comes_as_a_file_that_only_its_owner_reads() -> None:
    assert CLUSTER["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in INSTALL


def test_the_head_looks_for_dead_nodes_every_second_from_its_start() -> None:
    settings = dict(re.findall(r"RAY_health_check_(\w+)=(\d+)", ENV))
    assert settings == {
        "initial_delay_ms": "1000",
        "period_ms": "1000",
        "timeout_ms": "2000",
        "failure_threshold": "3",
    }


def test_nodes_are_ended_and_not_kept() -> None:
    assert CLUSTER["provider"]["cache_stopped_nodes"] is False
    assert 0 < CLUSTER["idle_timeout_minutes"] <= 30


def test_the_dashboard_answers_on_the_head_alone() -> None:
    assert "--dashboard-host=127.0.0.1" in start_command(CLUSTER["head_start_ray_commands"])


def test_what_is_mounted_exists_and_is_what_an_install_needs() -> None:
    local = {p for p in CLUSTER["file_mounts"].values() if not p.startswith("~")}
    assert local == {
        "raymat",
        "jobs",
        "deploy/node",
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
    }
    assert [p for p in sorted(local) if not (ROOT / p).exists()] == []


def test_every_node_installs_the_project_with_the_tested_versions() -> None:
    assert CLUSTER["head_setup_commands"] == ["bash ~/raymat/deploy/node/install.sh head"]
    assert CLUSTER["worker_setup_commands"] == ["bash ~/raymat/deploy/node/install.sh gpu"]
    assert WORKERS["decode"]["worker_setup_commands"] == [
        "bash ~/raymat/deploy/node/install.sh cpu"
    ]
    assert 'pip install -q -c "$project/constraints.txt" -e "${project}[$extra]"' in INSTALL
    assert "torch==2." not in TEXT + INSTALL  # the version is that of constraints.txt


def test_workers_with_a_driver_that_does_not_fit_do_not_join() -> None:
    assert "assert torch.cuda.is_available()" in INSTALL
    assert CLUSTER["provider"]["launches_per_hour"] == 20


@pytest.mark.parametrize("script", sorted((ROOT / "deploy").rglob("*.sh")), ids=lambda p: p.name)
def test_shells_can_read_every_script(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


POLICIES = sorted((ROOT / "deploy/aws").glob("*-policy.json"))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
def test_no_policy_allows_more_than_it_names(policy: Path) -> None:
    for statement in json.loads(policy.read_text(encoding="utf-8"))["Statement"]:
        actions = statement["Action"]
        assert not [action for action in actions if action.endswith(":*")], statement["Sid"]
        if statement["Resource"] == "*":
            # Reading, and what EC2 has no names for before it is there: then tags or profiles bind it.
            harmless = all(re.match(r"\w+:(Describe|Get|List)", action) for action in actions)
            assert harmless or "Condition" in statement, statement["Sid"]


def test_workers_may_reach_the_bucket_and_nothing_else() -> None:
    text = (ROOT / "deploy/aws/worker-policy.json").read_text(encoding="utf-8")
    assert {a.partition(":")[0] for s in json.loads(text)["Statement"] for a in s["Action"]} == {
        "s3"
    }
