"""Stops a chosen worker at a chosen point of the real code: SIGKILL to itself, at the n-th passing.

`install` wraps raymat's own functions in this process, for good: for processes that are made to be killed. A point's
name is the file or the phase, and how far it is: "manifest/half" is in the middle of writing a manifest's temporary
file, "prune/gone" after one of the files of a needless checkpoint was deleted. Threads pass points too: it is where
the program is that counts, not who is there.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raymat.checkpoint import async_writer, snapshot
from raymat.checkpoint.manifest import parse_manifest_name
from raymat.storage import backends, fsspec_backend, store
from raymat.train.loop import boundary, train_step, trainer
from raymat.train.loop.saving import checkpointing, commits
from raymat.train.observability import tensorboard_log


@dataclass(frozen=True)
class Kill:
    """Which worker is to die, where, and at the how manieth time that it gets there, from 1."""

    point: str
    rank: int = 0
    passing: int = 1
    lingers: float = 0.0
    """Seconds for which its thread is stuck there before; what else goes on in the worker gets further."""


class Journal:
    """What a process notes here survives its death: one JSON line at a time, beside the run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, what: str, **fields: Any) -> None:
        line = json.dumps({"what": what} | fields) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line.encode())
        os.close(file)

    def read(self, what: str) -> list[dict[str, Any]]:
        """The notes of a kind, in order."""
        if not self.path.exists():
            return []
        notes = map(json.loads, self.path.read_text().splitlines())
        return [note for note in notes if note["what"] == what]


class Injector:
    """One process's count of passings, and its death."""

    def __init__(self, rank: int, kill: Kill | None, journal: Journal) -> None:
        self.passed: Counter[str] = Counter()
        self.journal = journal
        self._rank, self._kill = rank, kill
        self._lock = threading.Lock()

    def passes(self, point: str, *, within: float = 0.0) -> None:
        """This process is at `point`. Where it is to die there it does so now, or beside and `within` so many seconds."""
        with self._lock:
            self.passed[point] += 1
            place = (point, self._rank, self.passed[point])
        kill = self._kill
        if kill is None or place != (kill.point, kill.rank, kill.passing):
            return
        self.journal.note("killed", **asdict(kill))
        if within:
            threading.Thread(target=_die, args=(within,), daemon=True).start()
        else:
            _die(kill.lingers)


def _die(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def install(injector: Injector) -> None:
    """Wrap what lies at the points."""
    passes = injector.passes
    _steps(passes)
    _snapshots(passes)
    _records(passes)
    _writes(passes)
    _deletions(passes)
    _places(injector)


Passes = Callable[..., None]


def _around(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Call `wrapper(plain, *args)` wherever `owner.name(*args)` was called."""
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def wrapped(*args: Any, **options: Any) -> Any:
        return wrapper(plain, *args, **options)

    setattr(owner, name, wrapped)


def _between(passes: Passes, owner: Any, name: str, before: str = "", after: str = "") -> None:
    """Points before and after a call."""

    def wrapper(plain: Any, *args: Any, **options: Any) -> Any:
        if before:
            passes(before)
        result = plain(*args, **options)
        if after:
            passes(after)
        return result

    _around(owner, name, wrapper)


def _steps(passes: Passes) -> None:
    _between(passes, train_step.TrainStep, "_apply", "step/backward", "step/updated")


def _snapshots(passes: Passes) -> None:
    buffer = snapshot.SnapshotBuffer
    _between(passes, buffer, "copy", before="snapshot/begun")
    _between(passes, buffer, "_copy_beside", "snapshot/at-once", "snapshot/beside")

    def in_two_halves(plain: Any, self: Any, tensors: dict[str, Any]) -> Any:
        if not threading.current_thread().name.startswith("snapshot"):
            return plain(self, tensors)
        names = sorted(tensors)
        some, others = names[::2], names[1::2]
        found = plain(self, {name: tensors[name] for name in some})
        passes("snapshot/half")
        found += plain(self, {name: tensors[name] for name in others})
        passes("snapshot/whole")
        return found

    _around(buffer, "_copy", in_two_halves)
    _between(passes, buffer, "wait_for_copy", after="snapshot/settled")
    _between(passes, async_writer.AsyncWriter, "save", after="snapshot/queued")


def _records(passes: Passes) -> None:
    """The writer's thread: curves, then the share; and what is noted when it is durable."""
    _between(passes, checkpointing.AsyncSaver, "_flush", "flush/begun", "flush/done")
    _between(passes, async_writer, "write_files", "share/begun", "share/done")
    _between(passes, async_writer._WriterThread, "_note_written", after="share/noted")


class _Current(threading.local):
    """What this thread writes or deletes just now."""

    writing = ""
    deleting = ""


_current = _Current()


@contextmanager
def _doing(what: str, label: str) -> Iterator[None]:
    before = getattr(_current, what)
    setattr(_current, what, label)
    try:
        yield
    finally:
        setattr(_current, what, before)


def _kind(path: str) -> str:
    """What a file of a run is, by its path in it."""
    folder, _, name = path.rpartition("/")
    if folder.startswith("checkpoints/"):
        return name.partition("-")[0].partition(".")[0]
    return folder or name


def _writes(passes: Passes) -> None:
    def write(plain: Any, self: Any, path: str, data: Any) -> None:
        kind = _kind(path)
        passes(f"{kind}/asked")
        with _doing("writing", kind):
            plain(self, path, data)
        passes(f"{kind}/visible")

    _around(store.Store, "write", write)

    def create(plain: Any, path: str, kept: str | None) -> Any:
        file = plain(path, kept)
        passes(f"{_current.writing}/created")
        return _Halves(file, passes)

    _around(backends, "_create", create)
    backends.os = _System(passes)  # type: ignore[assignment]

    def put(plain: Any, self: Any, path: str, chunks: Any) -> None:
        passes(f"{_current.writing}/sent", within=0.005)
        plain(self, path, chunks)

    _around(fsspec_backend.FsspecBackend, "write", put)


class _Halves:
    """A file that is written in twice as many pieces, with a point in the middle of each."""

    def __init__(self, file: Any, passes: Passes) -> None:
        self._file, self._passes = file, passes

    def write(self, data: Any) -> None:
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._passes(f"{_current.writing}/half")
        self._file.write(data[half:])

    def __enter__(self) -> _Halves:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _System:
    """The module os, as raymat's local backend sees it."""

    def __init__(self, passes: Passes) -> None:
        self._passes = passes

    def fsync(self, file: int) -> None:
        whole = stat.S_ISREG(os.fstat(file).st_mode)
        if whole:
            self._passes(f"{_current.writing}/unsynced")
        os.fsync(file)

    def replace(self, temporary: str, path: str) -> None:
        self._passes(f"{_current.writing}/synced")
        os.replace(temporary, path)
        self._passes(f"{_current.writing}/renamed")

    def unlink(self, path: str) -> None:
        os.unlink(path)
        if _current.deleting:
            self._passes(f"{_current.deleting}/gone")

    def rmdir(self, path: str) -> None:
        os.rmdir(path)
        if _current.deleting:
            self._passes(f"{_current.deleting}/folder-gone")

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def _deletions(passes: Passes) -> None:
    """What deletes: the clearing away of needless checkpoints, and of curves that will come again."""

    def labelled(label: str) -> Callable[..., Any]:
        def wrapper(plain: Any, *args: Any, **options: Any) -> Any:
            passes(f"{label}/begun")
            with _doing("deleting", label):
                result = plain(*args, **options)
            passes(f"{label}/done")
            return result

        return wrapper

    _around(commits, "prune", labelled("prune"))
    _around(tensorboard_log.TensorBoardLog, "resumed", labelled("replay"))

    def delete(plain: Any, self: Any, paths: list[str]) -> None:
        label = _current.deleting or "abandoned"  # what dead attempts left torn
        if label == "prune" and all(parse_manifest_name(p.rpartition("/")[2]) for p in paths):
            label = "prune-manifests"
        passes(f"{label}/asked")
        with _doing("deleting", label):
            plain(self, paths)
        passes(f"{label}/deleted")

    _around(store.Store, "delete", delete)


def _places(injector: Injector) -> None:
    """Where a run goes on and what it knows to be committed: points, and notes of both."""
    passes, journal = injector.passes, injector.journal

    def restored(plain: Any, attempt: Any, *args: Any) -> Any:
        passes("restore/begun")
        start = plain(attempt, *args)
        name = None if start.checkpoint is None else str(start.checkpoint)
        rank, number = attempt.group.world.rank, attempt.number
        journal.note("restored", checkpoint=name, rank=rank, attempt=number)
        passes("restore/done")
        return start

    _around(trainer, "start_from_newest", restored)
    _between(passes, store.Store, "read_into", before="restore/reading")

    def committed(plain: Any, self: Any, found: list[Any]) -> None:
        for saved in found:
            passes("commit/known")
            journal.note("committed", checkpoint=str(saved.checkpoint))
        plain(self, found)
        if found:
            passes("commit/told")

    _around(boundary.Boundary, "_committed", committed)
    _between(passes, trainer.Trainer, "_end", before="end/begun")


def train_worker_to_kill(config: dict[str, Any]) -> None:
    """Ray Train's training function, in the place of raymat's own: which of the kills beside the run is next, happens."""
    import ray.train

    from raymat.cluster.worker import worker

    run = config["spec"].config
    journal = Journal(Path(run.storage) / f"{run.name}.journal")
    kills = json.loads((Path(run.storage) / f"{run.name}.kills").read_text())
    # All workers read it before the first of them can be at any point.
    left = kills[len(journal.read("killed")) :]
    rank = ray.train.get_context().get_world_rank()
    injector = Injector(rank, Kill(**left[0]) if left else None, journal)
    install(injector)
    worker.train_worker(config)
    journal.note("passed", rank=rank, counts=dict(injector.passed))
