"""The nodes that workers can run on now, and how many fit there."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from raymat.cluster.ray_internals import draining_nodes, raylet_address, responds


def usable_nodes(check: bool) -> dict[str, Mapping[str, Any]]:
    """Return the alive nodes (items of `ray.nodes()`, by id) that are not being drained.

    `check`: only those that respond now. A frozen node counts as alive for some seconds.

    Ray's coordinator is not asked: it hands out places on nodes that are being drained, and on nodes that died within
    the last 20 s.
    """
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    usable = {name: alive[name] for name in alive.keys() - draining_nodes().keys()}
    return {name: usable[name] for name in responding_nodes(usable)} if check else usable


def places_on(has: Mapping[str, float], each: Mapping[str, float], share: float = 1.0) -> int:
    """Return how many workers that need `each` (not empty) fit in a `share` (0..1) of what a node `has`."""
    return min(
        int((has.get(name, 0.0) * share + 1e-6) / need) for name, need in each.items() if need > 0
    )


def responding_nodes(nodes: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the ids of those nodes that respond now, and of this process's own node, which is not asked."""
    here = {ray.get_runtime_context().get_node_id()} & nodes.keys()
    asked = [name for name in nodes if name not in here]
    if not asked:
        return here
    with ThreadPoolExecutor(max_workers=min(32, len(asked))) as pool:
        up = pool.map(lambda name: responds(raylet_address(nodes[name])), asked)
        return here | {name for name, there in zip(asked, up, strict=True) if there}


def metrics_url() -> str | None:
    """Return where the node of this process serves its metrics to Prometheus; None if it does not say."""
    mine = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == mine and node.get("MetricsExportPort"):
            return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return None
