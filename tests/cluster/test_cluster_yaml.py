"""Laws of cluster.yaml, checked without AWS: Ray accepts it, EC2's own model accepts each node, and it keeps its promises."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.model import Shape
from botocore.validate import ParamValidator

from tests.support.paths import ROOT

TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
CLUSTER: dict[str, Any] = yaml.safe_load(TEXT)
HEAD = CLUSTER["available_node_types"]["head"]
WORKERS = {k: v for k, v in CLUSTER["available_node_types"].items() if k != "head"}
NODES = CLUSTER["available_node_types"]
STARTS = [*CLUSTER["head_start_ray_commands"], *CLUSTER["worker_start_ray_commands"]]


def start_command(commands: list[str]) -> str:
    (command,) = (c for c in commands if "ray start" in c)
    return command


def check_with_ray(cluster: dict[str, Any]) -> None:
    """What `ray up` checks before it asks a cloud for anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(cluster)))


@functools.cache
def run_instances() -> Shape:
    """EC2's model of a RunInstances request, from botocore's own files."""
    ec2 = botocore.session.get_session().get_service_model("ec2")
    return ec2.operation_model("RunInstances").input_shape


def mistakes(node_config: dict[str, Any]) -> str:
    """What EC2's model says against a node: unknown or missing fields, wrong types, and values outside of their lists."""
    request = node_config | {"MinCount": 1, "MaxCount": 1}
    report = ParamValidator().validate(request, run_instances()).generate_report()
    return "\n".join([report, *unlisted(request, run_instances())]).strip()


def unlisted(value: Any, shape: Any) -> Iterator[str]:
    """Values that are not among those that the model lists for their field; botocore itself does not look."""
    if shape.type_name == "structure" and isinstance(value, dict):
        for name in value.keys() & shape.members.keys():
            yield from unlisted(value[name], shape.members[name])
    elif shape.type_name == "list" and isinstance(value, list):
        for item in value:
            yield from unlisted(item, shape.member)
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{value!r} is no {shape.name}"


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
    check_with_ray(CLUSTER)


def test_ray_would_refuse_an_unknown_key() -> None:
    with pytest.raises(Exception, match="setup_comands"):
        check_with_ray(CLUSTER | {"setup_comands": []})


@pytest.mark.parametrize("name", NODES)
def test_ec2_accepts_every_node(name: str) -> None:
    assert mistakes(NODES[name]["node_config"]) == ""


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
    assert words in mistakes(changed(WORKERS["gpu"], path, value))


def test_the_head_is_on_demand_without_a_gpu_and_computes_nothing() -> None:
    assert "InstanceMarketOptions" not in HEAD["node_config"]
    assert not re.match(r"(g|p|inf|trn)\d", HEAD["node_config"]["InstanceType"])
    assert HEAD["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in start_command(CLUSTER["head_start_ray_commands"])
    assert CLUSTER["head_node_type"] == "head"


@pytest.mark.parametrize("name", WORKERS)
def test_workers_are_spot_machines_with_gpus_between_a_minimum_and_a_maximum(name: str) -> None:
    node = WORKERS[name]
    assert node["node_config"]["InstanceMarketOptions"] == {
        "MarketType": "spot",
        "SpotOptions": {
            "SpotInstanceType": "one-time",
            "InstanceInterruptionBehavior": "terminate",
        },
    }
    assert node["resources"]["GPU"] >= 1
    assert 0 <= node["min_workers"] <= node["max_workers"] <= CLUSTER["max_workers"]


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
    assert CLUSTER["initialization_commands"] == []
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert CLUSTER[key]


@pytest.mark.parametrize("command", [c for c in STARTS if "ray start" in c])
def test_every_start_has_token_mode_free_threads_and_a_sized_object_store(command: str) -> None:
    before, _, after = command.partition("ray start")
    assert re.search(r"export .*\bRAY_AUTH_MODE=token\b", before)
    assert "unset OMP_NUM_THREADS" in before
    assert int(re.search(r"--object-store-memory=(\d+)", after)[1]) >= 10**9  # type: ignore[index]
    # Jobs call `python`, which they find where ray was started.
    assert before.startswith("source ~/env/bin/activate;")


def test_the_token_comes_as_a_file_that_only_its_owner_reads() -> None:
    assert CLUSTER["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in c for c in CLUSTER["setup_commands"])


def test_the_head_looks_for_dead_nodes_every_second_from_its_start() -> None:
    before = start_command(CLUSTER["head_start_ray_commands"]).partition("ray start")[0]
    settings = dict(re.findall(r"RAY_health_check_(\w+)=(\d+)", before))
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
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
    }
    assert [p for p in sorted(local) if not (ROOT / p).exists()] == []


def test_every_node_installs_the_project_with_the_tested_versions() -> None:
    for key in ("head_setup_commands", "worker_setup_commands"):
        (install,) = (c for c in CLUSTER[key] if "$HOME/raymat[" in c)
        assert "-c ~/raymat/constraints.txt" in install
    pins = re.findall(r"\btorch==(\S+)", TEXT)
    assert pins == re.findall(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)


def test_workers_with_a_driver_that_does_not_fit_do_not_join() -> None:
    assert any("torch.cuda.is_available()" in c for c in CLUSTER["worker_setup_commands"])
