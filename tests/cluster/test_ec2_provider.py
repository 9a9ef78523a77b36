"""Laws of raymat's provider for EC2, before a server that refuses: ways out without capacity, closed SSH, a limit to launches."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ray.autoscaler._private.aws import config as ray_config
from ray.autoscaler._private.aws.utils import resource_cache
from ray.autoscaler._private.providers import _get_node_provider_cls
from ray.autoscaler.node_launch_exception import NodeLaunchException

from raymat.analysis.clusterfile.ssh_networks import ssh_rule
from raymat.cluster.ec2_provider import NO_CAPACITY, Ec2Provider, _ssh_rule
from raymat.errors import ConfigError
from tests.support.fake_aws import FakeAws, aws  # noqa: F401
from tests.support.paths import ROOT

CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
GPU = CLUSTER["available_node_types"]["gpu"]["node_config"] | {"SubnetIds": ["subnet-1"]}
SPOT, LARGER, DEMAND = ("g5.4xlarge", "spot"), ("g5.8xlarge", "spot"), ("g5.4xlarge", "demand")
FULL = "InsufficientInstanceCapacity"


def provider(**fields: Any) -> Any:
    resource_cache.cache_clear()  # of clients, which know the server of the test before
    return Ec2Provider(CLUSTER["provider"] | fields, "raymat")


def launch(made: Any, count: int = 1) -> int:
    """By the method that Ray's autoscaler calls."""
    tags = {"ray-node-type": "worker", "ray-user-node-type": "gpu"}
    return len(made.create_node_with_resources_and_labels(GPU, tags, count, {}, {}))


def offers_of(account: FakeAws) -> list[tuple[str, str]]:
    """What was asked for, each offer once: Ray asks for one five times."""
    return list(dict.fromkeys(account.launches()))


def test_cluster_yaml_names_it() -> None:
    assert _get_node_provider_cls(CLUSTER["provider"]) is Ec2Provider


def test_spot_is_asked_for_first_and_alone_where_there_is_capacity(aws: FakeAws) -> None:  # noqa: F811
    assert launch(provider(), 3) == 3
    assert aws.launches() == [SPOT]


def test_without_capacity_the_next_offer_is_taken_and_in_the_end_one_on_demand(
    aws: FakeAws,  # noqa: F811
) -> None:
    aws.refused = {SPOT: FULL}
    assert launch(provider()) == 1
    assert offers_of(aws) == [SPOT, LARGER]
    aws.asked.clear()
    aws.refused = {SPOT: FULL, LARGER: "MaxSpotInstanceCountExceeded"}
    assert launch(provider()) == 1
    assert offers_of(aws) == [SPOT, LARGER, DEMAND]


def test_what_one_offer_lacks_the_next_one_gives(aws: FakeAws) -> None:  # noqa: F811
    aws.batch = 1
    assert launch(provider(), 3) == 3
    assert aws.launches() == [SPOT, LARGER, DEMAND]


def test_without_any_capacity_the_last_refusal_is_told(aws: FakeAws) -> None:  # noqa: F811
    aws.refused = dict.fromkeys((SPOT, LARGER, DEMAND), FULL)
    with pytest.raises(NodeLaunchException, match=FULL):
        launch(provider())


def test_a_missing_right_is_no_reason_to_pay_more(aws: FakeAws) -> None:  # noqa: F811
    aws.refused = {SPOT: "UnauthorizedOperation"}
    with pytest.raises(NodeLaunchException, match="UnauthorizedOperation"):
        launch(provider())
    assert offers_of(aws) == [SPOT]
    assert "UnauthorizedOperation" not in NO_CAPACITY


def test_machines_that_never_join_are_not_launched_for_ever(aws: FakeAws) -> None:  # noqa: F811
    made = provider(launches_per_hour=3)
    assert launch(made, 2) == 2
    assert launch(made) == 1
    with pytest.raises(NodeLaunchException, match="launches_per_hour is 3"):
        launch(made)
    assert len(aws.launches()) == 2
    for times in made._launches.values():
        times[0] -= 3601
    assert launch(made) == 1


def test_each_address_is_let_in_by_the_list_of_its_version_and_with_its_mask() -> None:
    assert ssh_rule(["203.0.113.7", "203.0.113.9/24", "2001:db8::1"]) == {
        "FromPort": 22,
        "ToPort": 22,
        "IpProtocol": "tcp",
        "IpRanges": [{"CidrIp": "203.0.113.7/32"}, {"CidrIp": "203.0.113.0/24"}],
        "Ipv6Ranges": [{"CidrIpv6": "2001:db8::1/128"}],
    }


def test_ssh_is_open_to_the_named_networks_alone() -> None:
    with _ssh_rule(["203.0.113.7/32"]):
        made = ray_config._create_default_inbound_rules({"sg-1"})
    assert made == [
        {
            "FromPort": -1,
            "ToPort": -1,
            "IpProtocol": "-1",
            "UserIdGroupPairs": [{"GroupId": "sg-1"}],
        },
        {
            "FromPort": 22,
            "ToPort": 22,
            "IpProtocol": "tcp",
            "IpRanges": [{"CidrIp": "203.0.113.7/32"}],
        },
    ]
    # Ray's own rule, for its own provider.
    assert ray_config._create_default_ssh_inbound_rules()[0]["IpRanges"] == [
        {"CidrIp": "0.0.0.0/0"}
    ]


def test_without_a_network_no_group_is_made() -> None:
    with _ssh_rule([]), pytest.raises(ConfigError, match="ssh_from names no address"):
        ray_config._create_default_inbound_rules({"sg-1"})


def test_ray_alone_would_ask_for_the_same_spot_type_again_and_again() -> None:
    """Why there is a provider at all: a launch that EC2 refuses leaves no trace in what Ray's autoscaler chooses by."""
    from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import (
        CloudResourceMonitor,
    )
    from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

    monitor = CloudResourceMonitor()
    failed = InstanceUpdateEvent(
        instance_type="spot", new_instance_status=Instance.ALLOCATION_FAILED
    )
    monitor.notify([failed])
    assert monitor.get_recoverable_resource_availabilities() == {}
    late = InstanceUpdateEvent(
        instance_type="spot", new_instance_status=Instance.ALLOCATION_TIMEOUT
    )
    monitor.notify([late])
    assert monitor.get_recoverable_resource_availabilities() == {"spot": 0.0}
