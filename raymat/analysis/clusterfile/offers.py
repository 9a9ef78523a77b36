"""What a node type may be: its own request, then its alternatives, which are asked for in turn."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any


def offers(
    node_config: Mapping[str, Any], alternatives: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], ...]:
    """Return the requests for a node type, the preferred one first.

    Args:
        alternatives: fields that differ from `node_config`; one that is null is left out of the request. Thus
            `InstanceMarketOptions: null` turns a spot request into one on demand.
    """
    first = copy.deepcopy(dict(node_config))
    return (first, *(_merged(first, each) for each in alternatives))


def on_demand(request: Mapping[str, Any]) -> bool:
    """Tell whether a request is for a machine that no cloud takes back."""
    market = request.get("InstanceMarketOptions") or {}
    return market.get("MarketType") not in ("spot", "capacity-block")


def spot_options(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a request says of its spot machine, empty if nothing."""
    return (request.get("InstanceMarketOptions") or {}).get("SpotOptions") or {}


def _merged(first: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    together = copy.deepcopy({**first, **changes})
    return {name: value for name, value in together.items() if value is not None}
