"""Whether a process of Ray's answers: gRPC's health check, by which Ray's head watches its nodes too.

Ray has no public call for it. No worker is needed: starting one takes longer than a busy machine should be waited for.
"""

from __future__ import annotations

import grpc
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
