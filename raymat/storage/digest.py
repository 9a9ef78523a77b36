"""File digests, written as "algorithm:hex" so that the algorithm can change.

Shards of checkpoints, gigabytes every few minutes, have BLAKE3: it cannot be forged either, the package releases the GIL, and a
core computes 5.5 GB/s of it, 1.1 of SHA-256 with the CPU's own instructions and less on the many machines without them.
(xxh3, 11 GB/s, would give up that no one can make another file of the same digest.) Everything small has SHA-256, which needs no
package to check.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from blake3 import blake3

Buffer = bytes | bytearray | memoryview

ALGORITHM = "sha256"
"""Algorithm of new digests but those of shards; every one in `HEX_LENGTHS` can be read."""
SHARD_ALGORITHM = "blake3"

HEX_LENGTHS = {"blake3": 64, "sha256": 64, "blake2b": 128}


def digest(buffers: Iterable[Buffer], algorithm: str = ALGORITHM) -> str:
    """Return the digest of the concatenated buffers, as "algorithm:hex"."""
    state = _new(algorithm)
    for buffer in buffers:
        state.update(buffer)
    return f"{algorithm}:{state.hexdigest()}"


def matches(expected: str, buffers: Iterable[Buffer]) -> bool:
    """Return whether the concatenated buffers have the digest `expected` (which `is_digest`)."""
    return hmac.compare_digest(expected, digest(buffers, expected.partition(":")[0]))


def canonical(content: Mapping[str, Any]) -> bytes:
    """Return the one form of a JSON object that digests are of: sorted keys, no spaces, ASCII."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` with its own digest as `digest`."""
    return {**content, "digest": digest([canonical(content)])}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Return whether `content` is as `seal` returned it."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    try:
        return content.get("digest") == digest([canonical(rest)])
    except RecursionError:  # parsing took a little less of the stack
        return False


def is_digest(text: object) -> bool:
    """Return whether `text` is a digest of a known algorithm, in canonical form."""
    if not isinstance(text, str):
        return False
    algorithm, _, value = text.partition(":")
    length = HEX_LENGTHS.get(algorithm)
    return length is not None and re.fullmatch(rf"[0-9a-f]{{{length}}}", value) is not None


def _new(algorithm: str) -> Any:
    return blake3() if algorithm == "blake3" else hashlib.new(algorithm, usedforsecurity=False)
