"""Layout of runs and checkpoints in storage: folder names and URLs."""

from __future__ import annotations

import re

from raymat.checkpoint.manifest import CheckpointId
from raymat.errors import StorageError
from raymat.storage.urls import redact

CHECKPOINTS = "checkpoints"
"""Folder of a run with a folder for each checkpoint."""


def path_of(checkpoint: CheckpointId, name: str) -> str:
    """Return the path of a checkpoint's file inside the run's folder."""
    return f"{CHECKPOINTS}/{checkpoint}/{name}"


def split_run_url(url: str) -> tuple[str, str, CheckpointId | None]:
    """Split the URL of a run or of a checkpoint into (storage, name, checkpoint or None).

    "s3://b/runs/name" is ("s3://b/runs", "name", None). Raises StorageError for a URL that names no
    run.
    """
    match = re.fullmatch(r"(?P<protocol>[A-Za-z0-9+.]+://)?(?P<path>.*?)/*", url, re.DOTALL)
    protocol, path = (match["protocol"] or "", match["path"]) if match else ("", "")
    parts = path.split("/")
    checkpoint = None
    if len(parts) >= 3 and parts[-2] == CHECKPOINTS:
        checkpoint = CheckpointId.try_parse(parts[-1])
        parts = parts[:-2] if checkpoint is not None else parts
    name, above = parts[-1], parts[:-1]
    bare = bool(protocol) and not above and protocol not in ("memory://", "file://", "local://")
    if name in ("", ".", "..") or bare:
        raise StorageError(
            f"expected the URL of a run (STORAGE/NAME) or of a checkpoint "
            f"(STORAGE/NAME/{CHECKPOINTS}/step-...), got {redact(url)!r}"
        )
    if above == [""]:
        return f"{protocol}/", name, checkpoint
    storage = "/".join(above)
    return (protocol + storage) or ".", name, checkpoint
