"""Whether a process of Ray's answers: gRPC's health check, by which Ray's head watches its nodes too.

Ray has no public call for it. No worker is needed: starting one takes longer than a busy machine should be waited for.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel

ANSWER_SECONDS = 3.0
"""What does not answer within this time is taken for frozen."""


def answers(address: str) -> bool:
    """Whether the raylet or the head's GCS at HOST:PORT answers in time: a dead one's port refuses at once, a frozen one
    is silent."""
    channel = init_grpc_channel(address)
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check", request_serializer=bytes, response_deserializer=bytes
    )
    try:
        check(b"", timeout=ANSWER_SECONDS)
    except grpc.RpcError:
        return False
    finally:
        channel.close()
    return True


def draining_nodes() -> dict[str, float | None]:
    """The nodes that are being drained, by id in hex, each with its deadline in Unix seconds (None: none was given)."""
    found = ray._private.state.state.get_draining_nodes()
    return {node: deadline / 1000 if deadline else None for node, deadline in found.items()}


def answering_nodes(nodes: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Those of `nodes` (as Ray describes them, by id) that answer. This process's own node is not asked."""
    here = {ray.get_runtime_context().get_node_id()} & nodes.keys()
    asked = [node for name, node in nodes.items() if name not in here]
    if not asked:
        return here
    with ThreadPoolExecutor(max_workers=min(32, len(asked))) as pool:
        up = pool.map(
            lambda node: answers(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"), asked
        )
        return here | {node["NodeID"] for node, there in zip(asked, up, strict=True) if there}
