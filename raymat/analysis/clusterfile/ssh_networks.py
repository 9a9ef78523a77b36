"""The networks that `provider.ssh_from` lets in at port 22, as EC2 wants them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def network(text: str) -> Network:
    """Return a network; an address alone is one of itself, and bits below the mask count for nothing, as EC2 has it.

    Raises:
        ValueError: it is neither.
    """
    return ipaddress.ip_network(text, strict=False)


def ssh_rule(networks: Iterable[str]) -> dict[str, object]:
    """Return the rule of a security group that lets these in, each in the list of its version."""
    all_ = [network(each) for each in networks]
    four = [{"CidrIp": str(each)} for each in all_ if each.version == 4]
    six = [{"CidrIpv6": str(each)} for each in all_ if each.version == 6]
    rule: dict[str, object] = {"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp"}
    return rule | ({"IpRanges": four} if four else {}) | ({"Ipv6Ranges": six} if six else {})
