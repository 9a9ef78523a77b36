"""Laws of cluster files as people write them: what has the wrong form is told with its place, without a traceback."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.support.cluster_files import CLUSTER, changed

GPU = "available_node_types.gpu"
TEXT = yaml.safe_dump(CLUSTER)
FIRST = "Ray's schema: look here"


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        # Each was passed over, or ended the check with a traceback; `ray up` would have found it after machines were paid.
        ("provider.regoin", "us-east-1", "error: provider: unknown key 'regoin': did you mean region?"),
        ("provider.module", "raymat.cluster.ec2_provider.EC2Provider",
         "error: provider.module: there is no raymat.cluster.ec2_provider.EC2Provider: did you mean raymat.cluster.ec2_pro"),
        ("provider.module", "mine.Provider", "error: provider.module: there is no mine.Provider"),
        ("head_node_type", "heads", "error: head_node_type is none of available_node_types: head, gpu, decode"),
        ("provider.region", None, "error: provider: region is missing"),
        ("provider.alternativs", {}, "error: provider: unknown key 'alternativs': did you mean alternatives?"),
        ("provider.alternatives.gpu", {"InstanceType": "g5.8xlarge"},
         "error: provider.alternatives.gpu: expected a list, got {'InstanceType': 'g5.8xlarge'}"),
        ("provider.alternatives.gpu", ["g5.8xlarge"],
         "error: provider.alternatives.gpu.0: expected a mapping, got 'g5.8xlarge'"),
        ("provider.ssh_from", "203.0.113.7/32", "error: provider.ssh_from: expected a list, got '203.0.113.7/32'"),
        ("provider.launches_per_hour", 0, "error: provider.launches_per_hour: 0 is less than the minimum of 1"),
        (f"{GPU}.min_workers", "two", f"error: {GPU}.min_workers: expected a whole number, got 'two'"),
        (f"{GPU}.max_workers", -1, f"error: {GPU}.max_workers: -1 is less than the minimum of 0"),
        (f"{GPU}.resources", ["CPU"], f"error: {GPU}.resources: expected a mapping, got ['CPU']"),
        (f"{GPU}.node_config.IamInstanceProfile", "raymat-worker",
         "error: gpu.node_config.IamInstanceProfile: expected a mapping, got 'raymat-worker'"),
        (f"{GPU}.node_config.MetadataOptions", True, "error: gpu.node_config.MetadataOptions: expected a mapping, got True"),
        ("setup_commands", "bash x", "error: setup_commands: expected a list, got 'bash x'"),
        ("max_workers", None, "error: Global max workers should be set."),
        ("docker", {"image": "mine"}, "error: Must provide a container & image name"),
        ("cluster_synced_files", None, "error: Missing 'cluster_synced_files' field in the cluster configuration."),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_one_line_with_its_place(
    path: str, value: Any, line: str, check: Any
) -> None:
    code, lines = check(changed((path, value)), "--offline")
    assert (code, lines[0]) == (1, FIRST)
    assert lines[1].strip().startswith(line)


def test_what_leans_on_the_form_waits_until_it_is_right(check: Any) -> None:
    wrong = changed(("max_workers", "6"), ("provider.ssh_from", "here"))
    assert check(wrong, "--offline")[1][:4] == [
        FIRST,
        "  error: max_workers: expected a whole number, got '6'",
        "  error: provider.ssh_from: expected a list, got 'here'",
        "EC2's requests: not looked at: first correct what is said of the schema",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT.replace("  gpu:\n    max", "  head:\n    max"), ":57: 'head' is given twice"),
        ("a: 1\nb: 2\na: 1\n", ":3: 'a' is given twice"),
        ("a:\n\tb: 1\n", ": not valid YAML: line 2: while scanning for the next token: found character '\\t' that "
         "cannot start any token (indent with spaces)"),
        (f"{TEXT}---\n{TEXT}", "expected a single document in the stream: but found another document"),
        (TEXT.encode("utf-16"), " cannot be read: it is text in UTF-16: save it as UTF-8"),
        (b"\x89PNG\r\n", " cannot be read: byte 0 is no text: save it as UTF-8"),
        (TEXT + "\0", ": not valid YAML: character "),
        ("#" * 1_000_001, " cannot be read: it has more than 1,000,000 bytes, and is no cluster file"),
    ],
)  # fmt: skip
def test_what_is_no_such_text_is_refused_with_its_line(
    text: str | bytes, said: str, check: Any
) -> None:
    assert check(text, "--offline") == (2, [])
    assert said in check.errors()


def test_what_ray_reads_is_read_a_byte_order_mark_and_shared_parts_too(check: Any) -> None:
    config = changed()
    types = config["available_node_types"]
    types["decode"]["node_config"]["MetadataOptions"] = types["gpu"]["node_config"][
        "MetadataOptions"
    ]
    text = yaml.safe_dump(config)
    assert "&id001" in text
    assert check("\ufeff" + text, "--offline")[0] == 0


def test_hosts_of_ones_own_need_no_node_types(check: Any) -> None:
    local = changed(
        ("provider", {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]}),
        ("available_node_types", None),
        ("head_node_type", None),
    )
    assert check(local, "--offline")[0] == 0
