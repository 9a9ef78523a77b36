"""Reading a checkpoint: its manifests, then its bytes, every digest checked, whatever number of workers wrote it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from raymat.checkpoint.layout import CHECKPOINTS, path_of
from raymat.checkpoint.local_cache import LocalCache
from raymat.checkpoint.manifest import (
    MAX_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_STATE_BYTES,
    STATE,
    CheckpointId,
    FileEntry,
    Manifest,
    manifest_name,
    parse_manifest_name,
    shard_name,
)
from raymat.checkpoint.shards import assign
from raymat.checkpoint.state_dict import parse_state
from raymat.errors import CheckpointError, NewerFormatError
from raymat.storage.digest import matches
from raymat.storage.faults import MissingFileError
from raymat.storage.store import Store

if TYPE_CHECKING:
    from torch import Tensor  # at run time late: a driver lists checkpoints without torch

    from raymat.checkpoint.snapshot import Snapshot

_READERS = 8
"""Parallel requests; each holds up to `_RANGE` bytes beside the checkpoint itself."""
_RANGE = 16 * 2**20
_LEAST_RANGE = 2**16
"""Smallest range: below it a request costs more than its bytes."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Contents:
    """Files of a checkpoint according to its manifests, checked against its listing; none is read yet."""

    checkpoint: CheckpointId
    files: tuple[FileEntry, ...]

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.files)

    def only(self, names: Collection[str]) -> Contents:
        """Return the contents restricted to the files with these names."""
        return Contents(self.checkpoint, tuple(e for e in self.files if e.name in names))

    def chunks(self, readers: int = 1) -> list[list[Chunk]]:
        """Split all bytes into chunks of one request each, and share them out among `readers`, about equally many bytes each."""
        smallest = _RANGE if readers == 1 else -(-self.bytes // (4 * readers))
        size = max(_LEAST_RANGE, min(_RANGE, smallest))
        chunks = {
            f"{entry.name} {start:015d}": Chunk(entry.name, start, min(size, entry.size - start))
            for entry in self.files
            for start in range(0, entry.size, size)
        }
        parts = assign({key: chunk.size for key, chunk in chunks.items()}, readers)
        return [[chunks[key] for key in part] for part in parts]


@dataclass(frozen=True)
class Chunk:
    """Range of a file: the bytes start..start+size-1."""

    name: str
    start: int
    size: int


class CheckpointReader:
    """Reader of one checkpoint into memory: a buffer for each file, filled in chunks that ranks may share out."""

    def __init__(self, contents: Contents) -> None:
        import torch

        self.contents = contents
        self._data = {e.name: torch.empty(e.size, dtype=torch.uint8) for e in contents.files}
        self._verified: set[str] = set()

    def place(self, chunk: Chunk) -> Tensor:
        """Return the chunk's place in memory: uint8 (size,), a view."""
        return self._data[chunk.name][chunk.start : chunk.start + chunk.size]

    def read(self, store: Store, chunks: Sequence[Chunk]) -> None:
        """Read chunks, several at the same time. Raises CheckpointError if a file is missing or short, StorageError."""
        checkpoint = self.contents.checkpoint

        def read(chunk: Chunk) -> None:
            view = _memory_of(self.place(chunk))
            try:
                store.read_into(path_of(checkpoint, chunk.name), chunk.start, view)
            except MissingFileError as error:
                raise CheckpointError(
                    f"{checkpoint} is torn: {chunk.name} is missing or short"
                ) from error

        parallel(read, chunks)

    def read_cached(self, local_cache: LocalCache, files: Sequence[FileEntry]) -> frozenset[str]:
        """Read whole files from this machine's disk; return the names of those whose digest is right."""

        def read(entry: FileEntry) -> bool:
            return local_cache.read(entry, _memory_of(self._data[entry.name]))

        good = parallel(read, files)
        self._verified |= {entry.name for entry, right in zip(files, good, strict=True) if right}
        return frozenset(self._verified)

    def finish(self) -> Snapshot:
        """Return the state if every digest is right. Raises CheckpointError, naming the file that is damaged."""
        from raymat.checkpoint.snapshot import Snapshot

        checkpoint, files = self.contents.checkpoint, self.contents.files

        def verify(entry: FileEntry) -> bool:
            return entry.name in self._verified or matches(
                entry.digest, [_memory_of(self._data[entry.name])]
            )

        for entry, good in zip(files, parallel(verify, files), strict=True):
            if not good:
                raise _other_digest(checkpoint, entry.name)
        _require_state_size(checkpoint, len(self._data[STATE]))
        extra = parse_state(checkpoint, bytes(_memory_of(self._data[STATE])))
        shards = {name: data for name, data in self._data.items() if name != STATE}
        return Snapshot(checkpoint.step, _merge(checkpoint, shards), extra)


def read_checkpoint(
    store: Store,
    checkpoint: CheckpointId,
    run: str | None = None,
    *,
    files: Mapping[str, int] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Snapshot:
    """Read the state in `checkpoint`, whatever world wrote it, every digest checked first.

    Arguments and errors are those of `read_contents`. The tensors are views of one buffer per shard, so that memory
    holds one copy of the checkpoint.
    """
    contents = read_contents(store, checkpoint, run, files=files, max_bytes=max_bytes)
    reader = CheckpointReader(contents)
    reader.read(store, *contents.chunks())
    return reader.finish()


def read_contents(
    store: Store,
    checkpoint: CheckpointId,
    run: str | None = None,
    *,
    files: Mapping[str, int] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Contents:
    """Read the manifests of `checkpoint`: one request for each rank that wrote it.

    `run`: the run id that its manifests must carry (default: any one). `files`: its file names and
    sizes, where a listing is at hand. Raises CheckpointError if it is torn, foreign or larger than
    `max_bytes`, naming the file; StorageError if the storage fails.
    """
    sizes = list_files(store, checkpoint) if files is None else files
    manifests = read_manifests(store, checkpoint, sizes, run)
    contents = Contents(checkpoint, tuple(entry for m in manifests for entry in m.files))
    if contents.bytes > max_bytes:
        raise CheckpointError(
            f"{checkpoint} claims {contents.bytes} bytes, more than the {max_bytes} that are allowed"
        )
    return contents


def list_files(store: Store, checkpoint: CheckpointId) -> dict[str, int]:
    """List the names and sizes of a checkpoint's files, in one request."""
    folder = f"{CHECKPOINTS}/{checkpoint}"
    return {info.path[len(folder) + 1 :]: info.size for info in store.list(folder)}


def world_of(checkpoint: CheckpointId, files: Mapping[str, int]) -> int:
    """Return the size of the world that wrote it. Raises CheckpointError unless a listing shows all its files."""
    worlds = {found[1] for found in map(parse_manifest_name, files) if found is not None}
    if len(worlds) != 1:
        what = "no manifest" if not worlds else "manifests of more than one world"
        raise CheckpointError(f"{checkpoint} is torn: {what}")
    world = worlds.pop()
    for name in _expected(world):
        if not files.get(name):
            what = "is empty" if name in files else "is missing"
            raise CheckpointError(f"{checkpoint} is torn: {name} {what}")
    return world


def read_manifests(
    store: Store, checkpoint: CheckpointId, files: Mapping[str, int], run: str | None = None
) -> list[Manifest]:
    """Read every rank's manifest, in rank order: of one run, true to the sizes in `files`.

    One request each. Raises CheckpointError.
    """
    world = world_of(checkpoint, files)
    names = [manifest_name(rank, world) for rank in range(world)]
    for name in names:
        if files[name] > MAX_MANIFEST_BYTES:
            raise CheckpointError(f"{checkpoint} is damaged: {name} has {files[name]} bytes")
    data = parallel(lambda name: _read_small(store, checkpoint, name), names)
    manifests = [_parse(checkpoint, name, text) for name, text in zip(names, data, strict=True)]
    for rank, manifest in enumerate(manifests):
        if (manifest.id, manifest.rank, manifest.world) != (checkpoint, rank, world):
            raise CheckpointError(
                f"{checkpoint} is damaged: {names[rank]} belongs to another checkpoint or rank"
            )
    _check_origin(checkpoint, manifests, run)
    for entry in (entry for manifest in manifests for entry in manifest.files):
        if files[entry.name] != entry.size:
            raise CheckpointError(
                f"{checkpoint} is damaged: {entry.name} has {files[entry.name]} bytes, expected {entry.size}"
            )
    return manifests


def read_state(store: Store, checkpoint: CheckpointId, entry: FileEntry) -> dict[str, Any]:
    """Read and verify what a checkpoint holds beside its tensors: the file `entry` of rank 0's manifest."""
    _require_state_size(checkpoint, entry.size)
    data = _read_small(store, checkpoint, entry.name)
    if not matches(entry.digest, [data]):
        raise _other_digest(checkpoint, entry.name)
    return parse_state(checkpoint, data)


def _other_digest(checkpoint: CheckpointId, name: str) -> CheckpointError:
    return CheckpointError(f"{checkpoint} is damaged: {name} has another digest than its manifest")


def _require_state_size(checkpoint: CheckpointId, size: int) -> None:
    if size > MAX_STATE_BYTES:
        raise CheckpointError(f"{checkpoint} is refused: {STATE} has {size} bytes")


def _check_origin(checkpoint: CheckpointId, manifests: Iterable[Manifest], run: str | None) -> None:
    found = {manifest.run for manifest in manifests}
    if len(found) > 1:
        raise CheckpointError(f"{checkpoint} is damaged: its manifests are of different runs")
    if len({manifest.word for manifest in manifests}) > 1:
        raise CheckpointError(f"{checkpoint} is damaged: its manifests are of different savings")
    if run is not None and found != {run}:
        raise CheckpointError(
            f"{checkpoint} is foreign: it is of run {found.pop()[:80]!r}, expected {run!r}"
        )


def _expected(world: int) -> Iterable[str]:
    yield STATE
    for rank in range(world):
        yield manifest_name(rank, world)
        yield shard_name(rank, world)


def _read_small(store: Store, checkpoint: CheckpointId, name: str) -> bytes:
    try:
        return store.read(path_of(checkpoint, name))
    except MissingFileError as error:
        raise CheckpointError(f"{checkpoint} is torn: {name} is missing") from error


def _parse(checkpoint: CheckpointId, name: str, data: bytes) -> Manifest:
    try:
        return Manifest.from_json(data)
    except NewerFormatError as error:
        raise NewerFormatError(f"{checkpoint} is newer: {name}: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint} is damaged: {name}: {error}") from error


def _merge(checkpoint: CheckpointId, shards: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge the tensors of all shards, by name."""
    from raymat.checkpoint.safetensors_io import decode

    merged: dict[str, Tensor] = {}
    for name, data in shards.items():
        try:
            tensors = decode(data)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint} is damaged: {name}: {error}") from error
        twice = merged.keys() & tensors.keys()
        if twice:
            raise CheckpointError(
                f"{checkpoint} is damaged: tensor {min(twice)!r} is in more than one shard"
            )
        merged |= tensors
    return dict(sorted(merged.items()))


def _memory_of(data: Tensor) -> memoryview:
    """Return the bytes of uint8 (n,): a view."""
    return memoryview(data.numpy())  # type: ignore[arg-type]


def parallel(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Apply `work` to each item in parallel; return results in order. After the first failure nothing new begins."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(max_workers=min(_READERS, len(items))) as pool:
        try:
            return list(pool.map(work, items))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
