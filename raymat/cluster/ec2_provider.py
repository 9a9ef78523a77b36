"""EC2 for `ray up`, with what Ray's own provider lacks: ways out where there is no spot capacity, a closed SSH, a limit."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from ray.autoscaler._private.aws import config as ray_config
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from raymat.analysis.clusterfile.offers import offers, on_demand
from raymat.analysis.clusterfile.ssh_networks import ssh_rule
from raymat.errors import ConfigError

log = logging.getLogger(__name__)

NO_CAPACITY = {
    "InsufficientInstanceCapacity",
    "InsufficientHostCapacity",
    "InsufficientCapacity",
    "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow",
    "UnfulfillableCapacity",
    "Unsupported",  # not in this zone
    "VcpuLimitExceeded",
}
"""EC2's refusals after which another offer may be had. Any other, such as a missing right, would only cost more elsewhere."""

HOUR = 3600.0


class Ec2Provider(AWSNodeProvider):
    """Ray's provider for EC2 that tries a node type's alternatives in turn, and reads three more fields of `provider`.

    alternatives: by node type, a list of changes to its node_config, which are asked for in turn where EC2 has no
    capacity. Ray 2.60 cannot do this with several node types: it takes the one of the highest `priority`, and forgets
    that it could not be had.
    ssh_from: the networks that may reach port 22; Ray's provider opens it to all. It is used when the group is made.
    launches_per_hour: of each node type, at most: a machine whose set-up fails is ended and launched again for ever.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._alternatives: Mapping[str, Any] = provider_config.get("alternatives") or {}
        self._limit = provider_config.get("launches_per_hour")
        self._launches: dict[str, deque[float]] = {}

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Make key, group and subnets ready as Ray does, with the group's port 22 open to `ssh_from` alone."""
        with _ssh_rule(cluster_config["provider"].get("ssh_from") or []):
            done: dict[str, Any] = AWSNodeProvider.bootstrap_config(cluster_config)
            return done

    def create_node(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        """Launch machines: as many of the first offer as there are, the rest of the next.

        Raises:
            NodeLaunchException: no offer can be had, or too many were launched within the hour.
        """
        kind = tags.get(TAG_RAY_USER_NODE_TYPE, tags[TAG_RAY_NODE_KIND])
        self._check_limit(kind, count)
        made: dict[str, Any] = {}
        wanted = offers(node_config, self._alternatives.get(kind) or ())
        for number, offer in enumerate(wanted):
            try:
                made |= super().create_node(offer, tags, count - len(made))
            except NodeLaunchException as error:
                last = number == len(wanted) - 1
                if error.category not in NO_CAPACITY or (last and not made):
                    raise
                log.warning("no %s for %s: %s", _named(offer), kind, error.category)
            if len(made) >= count:
                break
        self._launches.setdefault(kind, deque()).extend([time.monotonic()] * len(made))
        return made

    def _check_limit(self, kind: str, count: int) -> None:
        recent = self._launches.get(kind, deque())
        while recent and recent[0] < time.monotonic() - HOUR:
            recent.popleft()
        if self._limit is not None and len(recent) + count > self._limit:
            raise NodeLaunchException(
                "LaunchesPerHour",
                f"{len(recent)} machines of type {kind} were launched within the hour, and launches_per_hour is "
                f"{self._limit}: see why they do not join (`ray monitor`)",
                None,
            )


def _named(offer: Mapping[str, Any]) -> str:
    return f"{offer.get('InstanceType')} {'on demand' if on_demand(offer) else 'spot'}"


@contextlib.contextmanager
def _ssh_rule(networks: list[str]) -> Iterator[None]:
    """Have Ray make the group's rule for SSH from these networks, where it makes one."""

    def rules() -> list[dict[str, Any]]:
        if not networks:
            raise ConfigError(
                "provider.ssh_from names no address that may reach the head: your own, such as [203.0.113.7/32]"
            )
        return [ssh_rule(networks)]

    theirs = ray_config._create_default_ssh_inbound_rules
    ray_config._create_default_ssh_inbound_rules = rules
    try:
        yield
    finally:
        ray_config._create_default_ssh_inbound_rules = theirs
