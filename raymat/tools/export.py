"""`raymat export`: a checkpoint's network as a weights file in the published format."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from raymat.checkpoint.backends import LocalBackend
from raymat.checkpoint.faults import classify
from raymat.checkpoint.find import newest
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.shards import list_files, read_checkpoint
from raymat.checkpoint.snapshot import Snapshot
from raymat.checkpoint.store import Store
from raymat.errors import CheckpointError, ConfigError
from raymat.tools.console import Url, count, parse, size
from raymat.tools.runs import list_checkpoints, open_url
from raymat.train.initial import WEIGHT_FILES
from raymat.train.state import MODEL


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write the network of a run's newest verified checkpoint, or of a checkpoint, as a weights file.

    The file is a plain state dict under the published names: it loads with
    torch.load(weights_only=True) and as --init. It appears when it is whole. Exit code: 0, or 2 if
    it could not be written.
    """

    url: Url
    """STORAGE/NAME of a run, or STORAGE/NAME/checkpoints/step-... of a checkpoint, any fsspec URL."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE.pth")]
    """The file to write, in a folder of this machine that exists."""
    force: bool = False
    """Replace the file if it exists."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    url: str
    """Of the run."""
    checkpoint: CheckpointId
    path: str
    before: int
    """Bytes of the checkpoint."""
    after: int
    """Bytes of the file."""
    tensors: int

    @property
    def text(self) -> str:
        """Both sides with their sizes, a line each."""
        return (
            f"{self.url} {self.checkpoint}: {size(self.before)}\n"
            f"{self.path}: {size(self.after)}, {count(self.tensors, 'tensor')}"
        )


def main(argv: Sequence[str]) -> int:
    """`raymat export URL -o FILE.pth`; returns the exit code. Raises RaymatError if it is not written."""
    options = parse(Options, argv, "raymat export")

    def told(checkpoint: CheckpointId, reason: str) -> None:
        print(f"note: passed over: {reason}", file=sys.stderr)

    print(export(options.url, options.output, force=options.force, on_skip=told).text)
    return 0


def export(
    url: str,
    path: str,
    *,
    force: bool = False,
    on_skip: Callable[[CheckpointId, str], None] = lambda checkpoint, reason: None,
    options: Mapping[str, Any] | None = None,
) -> Exported:
    """Write the network's tensors to the file `path`, whole or not at all.

    `force`: replace a file. `on_skip` is told of each newer checkpoint of a run that does not
    verify. `options`: as for `Store.open`. In memory are the checkpoint and twice the network.

    Raises:
        ConfigError: `path` cannot be written to. StorageError: the same for reasons that show when
        it is written, or the checkpoint cannot be read. CheckpointError: none verifies.
    """
    target = _target(path, force)
    store, asked = open_url(url, options)
    checkpoint, snapshot = _read(store, asked, on_skip)
    weights = published(snapshot)
    del snapshot
    if not weights:
        raise CheckpointError(f"{store.url} {checkpoint} holds no network (no tensor {MODEL}...)")
    before = sum(list_files(store, checkpoint).values())
    content = io.BytesIO()
    torch.save(weights, content)
    _target(path, force)  # reading took a while
    _write(target, content.getbuffer())
    return Exported(store.url, checkpoint, path, before, len(content.getbuffer()), len(weights))


def published(snapshot: Snapshot) -> dict[str, Tensor]:
    """The network's state dict in `snapshot`, each tensor with memory of its own.

    A checkpoint's tensors are views of a whole shard, which torch.save would write with each file.
    """
    return {
        name.removeprefix(MODEL): tensor.clone()
        for name, tensor in snapshot.tensors.items()
        if name.startswith(MODEL)
    }


def _read(
    store: Store, asked: CheckpointId | None, on_skip: Callable[[CheckpointId, str], None]
) -> tuple[CheckpointId, Snapshot]:
    """The checkpoint that is asked for, or the newest verified one."""
    list_checkpoints(store, asked)  # says so where there is no such run or checkpoint
    if asked is not None:
        return asked, read_checkpoint(store, asked)
    found = newest(store, on_skip=on_skip)
    if found is None:
        raise CheckpointError(f"there is no checkpoint in {store.url} that verifies")
    return found


def _target(path: str, force: bool) -> str:
    """The absolute path of the file that will be written, links followed; a ConfigError if it cannot be."""
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if not path.endswith(WEIGHT_FILES):
        raise ConfigError(
            f"--output must end in {', '.join(WEIGHT_FILES)}, by which --init knows weights: got {path!r}"
        )
    if not os.path.isdir(folder):
        raise ConfigError(f"cannot write {path}: there is no folder {folder}")
    if os.path.exists(target) and not os.path.isfile(target):
        raise ConfigError(f"cannot write {path}: something that is no file is there")
    if os.path.exists(target) and not force:
        raise ConfigError(f"{path} exists: use another name, or --force to replace it")
    return target


def _write(target: str, content: memoryview) -> None:
    try:
        LocalBackend().write(target, [content])
    except OSError as error:
        raise classify(error, "write").error("write", target) from error
