"""Storage: can the run be read, written and deleted there, and is there room for its checkpoints."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from raymat.analysis.preflight.findings import Finding
from raymat.analysis.preflight.subject import Subject
from raymat.config.fixed_options import promise_changes
from raymat.config.run import RunConfig, from_dict
from raymat.config.settled import as_begun
from raymat.console import count, size
from raymat.errors import ConfigError, StorageError
from raymat.model.matting import construct
from raymat.storage.backends import LocalBackend
from raymat.storage.store import Store
from raymat.storage.urls import delete_right
from raymat.train.optim.mixed_precision import parameter_dtype
from raymat.train.run.open_run import require_same_run
from raymat.train.run.run_file import read_run, require_portable_name

_CONTENT = b"raymat check\n"


def check_storage(subject: Subject) -> Iterator[Finding]:
    """Write, read, list and delete a small file where the run will be, and compare the free space with what it needs."""
    if not subject.stores:
        yield Finding("skipped", "give --storage and --name")
        return
    config = subject.config
    store = Store.open(config.storage, config.name)
    if store.url.startswith("memory:"):
        yield Finding("error", "memory:// lives in one process", advice="use a folder or a bucket")
        return
    with _left_as_it_was(store):
        try:
            require_portable_name(store, config.name)
            yield from _probe(store)
            yield from _run_there(store, config)
        except (ConfigError, StorageError) as error:
            yield Finding("error", error.line)
        yield from _room(store, subject)


def _probe(store: Store) -> Iterator[Finding]:
    path = f"events/.probe-{uuid.uuid4().hex}"
    store.write(path, _CONTENT)
    try:
        if store.read(path) != _CONTENT or path not in {i.path for i in store.list("events")}:
            yield Finding("error", "what was written is read or listed differently", store.url)
    finally:
        store.delete([path])
    if store.may_delete:
        yield Finding("note", f"{store.url}: written, read, listed and deleted")
    else:
        right = delete_right(store.url)
        yield Finding(
            "warning",
            "this account may not delete: every checkpoint is kept",
            store.url,
            advice=f"give it {right}, or delete by hand",
        )


def _run_there(store: Store, config: RunConfig) -> Iterator[Finding]:
    stored = read_run(store)
    if stored is None:
        return
    begun = from_dict(stored["config"])
    yield Finding(
        "note", f"holds a run of this name, begun {stored.get('created', 'earlier')}: it is resumed"
    )
    asked = as_begun(config, begun)
    try:
        require_same_run(begun, asked, stored, store.url, grow=config.data.grow_dataset)
    except ConfigError as error:
        yield Finding("error", error.line, data=sorted(promise_changes(begun, asked)))


def checkpoint_bytes(config: RunConfig) -> int:
    """Return the size of one of the run's checkpoints: weights, Adam's two moments, the average of the weights."""
    with torch.device("meta"):
        network = construct(config.stage, config.model)
    width = parameter_dtype(config.optim.precision or "fp32").itemsize
    parameters = sum(p.numel() for p in network.parameters())
    tensors = sum(t.numel() for t in network.state_dict().values())
    averages = tensors if config.optim.ema_decay is not None else 0
    return width * (tensors + 2 * parameters + averages)


def _room(store: Store, subject: Subject) -> Iterator[Finding]:
    kept, each = subject.config.checkpoint, checkpoint_bytes(subject.config)
    milestones = _milestones(subject)
    need = (kept.keep + 2 + milestones) * each  # the best, and the one that is being written
    for_good = f", {count(milestones, 'milestone')}" if milestones else ""
    told = f"a checkpoint has {size(each)}; with --keep {kept.keep}{for_good}, the best and one in the making: {size(need)}"
    if not isinstance(store.backend, LocalBackend):
        yield Finding("note", told, data={"checkpoint_bytes": each, "needed_bytes": need})
        return
    free = shutil.disk_usage(_existing(Path(store.root))).free
    data = {"checkpoint_bytes": each, "needed_bytes": need, "free_bytes": free}
    if free < need:
        advice = "make room, use another --storage, or a smaller --keep"
        yield Finding("error", f"{size(free)} free, too little: {told}", advice=advice, data=data)
    else:
        yield Finding("note", f"{told}; {size(free)} free", data=data)


def _milestones(subject: Subject) -> int:
    """Count the checkpoints that stay for good, at most."""
    kept, steps = subject.config.checkpoint, subject.steps
    at_loss = 0 if kept.checkpoint_at_loss is None else len(kept.checkpoint_at_loss.values)
    return at_loss + (0 if steps is None or kept.keep_every is None else steps // kept.keep_every)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


@contextmanager
def _left_as_it_was(store: Store) -> Iterator[None]:
    """Remove the folders that the probe makes on this machine."""
    local = isinstance(store.backend, LocalBackend)
    folder = Path(store.root)
    missing = [p for p in (folder, *folder.parents) if not p.exists()] if local else []
    try:
        yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                os.rmdir(path)
