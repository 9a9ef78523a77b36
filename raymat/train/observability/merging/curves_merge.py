"""Merging of TensorBoard's event files, so that TensorBoard shows the same curve before, during and after it.

TensorBoard has two readers. One reads files in the order of their names and never goes back; the other also reads files
that appear later, whatever their names, and forgets all steps from their first one on. Hence:

- Beside training, a merged file takes the name of its last part. A TensorBoard that runs has read that name already and
  does not look again, and a new one finds the steps in order.
- On a restart, the newest files, up to the step that training goes on from, become a new file.
- A merged file begins with the event that says that a run went on from its first step: if the process is killed before the
  parts are deleted, TensorBoard drops what it has read of them.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from google_crc32c import value as crc32c
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from raymat.storage.bulk import read_many
from raymat.storage.store import Store
from raymat.train.observability.merging.merge_plan import LIMITS, MOST_BYTES, NEIGHBOURS, next_merge

FOLDER = "tensorboard"
NEWEST_KEPT = 24
"""Newest files that stay as they are: TensorBoard may be reading one, and compares the sizes of the 20 before it."""
_NAME = re.compile(r"events\.out\.tfevents\.(\d+)\.a(\d+)$")


@dataclass(frozen=True)
class EventFile:
    """One file: its events up to step `last`, from the last step of the file before it on."""

    path: str
    size: int
    last: int
    attempt: int
    after: int = -1
    """The last step of the file before it."""


def event_file_path(last: int, attempt: int) -> str:
    """Return the path of the file whose last step is `last`."""
    return f"{FOLDER}/events.out.tfevents.{last:09d}.a{attempt:03d}"


def list_event_files(store: Store) -> list[EventFile]:
    """Return the files in TensorBoard's order. Raises StorageError."""
    found: list[EventFile] = []
    for file in store.list(FOLDER):
        if match := _NAME.search(file.path):
            after = found[-1].last if found else -1
            found.append(EventFile(file.path, file.size, int(match[1]), int(match[2]), after))
    return found


class CurvesMerge:
    """Merges the files that this attempt has written, which no other attempt touches while it lives."""

    def __init__(self, store: Store, attempt: int) -> None:
        self._store, self._attempt = store, attempt

    def __call__(self) -> bool:
        """Merge one group; return whether there may be another. Raises StorageError."""
        own = [f for f in list_event_files(self._store) if f.attempt == self._attempt]
        older = own[:-NEWEST_KEPT]
        group = next_merge([file.size for file in older])
        if group is None:
            return False
        parts = older[group]
        _write(self._store, parts[-1].path, parts[0].after + 1, _read(self._store, parts))
        _delete(self._store, parts[:-1])
        return True


def clear_replayed(store: Store, attempt: int, step: int) -> None:
    """Remove what earlier attempts wrote of steps after `step` (-1: of all), and merge what is left of their newest files.

    Raises:
        StorageError: the storage fails.
    """
    if not store.may_delete:
        return
    files = [file for file in list_event_files(store) if file.attempt < attempt]
    kept = [file for file in files if file.last <= step]
    replayed = files[len(kept) :]
    across = replayed[0] if replayed and replayed[0].after < step else None
    _delete(store, replayed[1:] if across else replayed)
    if across is not None:
        kept.append(_cut(store, across, attempt, step))
    small = next((i for i, file in enumerate(kept) if file.size < LIMITS[-1]), len(kept))
    if len(kept) - small >= NEIGHBOURS:
        for parts in _batches(kept[small:]):
            path = event_file_path(parts[-1].last, attempt)
            _write(store, path, parts[0].after + 1, _read(store, parts))
            _delete(store, [part for part in parts if part.path != path])


def _cut(store: Store, file: EventFile, attempt: int, step: int) -> EventFile:
    """Replace a merged file by one that ends with `step`."""
    (data,) = read_many(store, [file.path])
    records = [record for record, event in decode_events(data) if event.step <= step]
    # By way of a name behind it: a reader in between finds both, and drops what it has read of the first.
    between, path = event_file_path(file.last, attempt), event_file_path(step, attempt)
    _write(store, between, file.after + 1, records)
    store.delete([file.path])
    _write(store, path, file.after + 1, records)
    store.delete([between])
    return EventFile(path, sum(map(len, records)), step, attempt, file.after)


def write_event_file(store: Store, path: str, events: Iterable[Event], when: float) -> None:
    """Write a file that begins at `when`, in Unix seconds. Raises StorageError."""
    header = Event(wall_time=when, file_version="brain.Event:2")
    store.write(path, [_record(event) for event in (header, *events)])


def _write(store: Store, path: str, first: int, contents: Iterable[bytes]) -> None:
    """Write records as they are, after the event that has TensorBoard forget steps from `first` on."""
    now = time.time()
    start = SessionLog(status=SessionLog.START)
    head = [
        _record(Event(wall_time=now, file_version="brain.Event:2")),
        _record(Event(wall_time=now, step=first, session_log=start)),
    ]
    store.write(path, [*head, *contents])


def _read(store: Store, parts: list[EventFile]) -> Iterator[bytes]:
    """Yield the whole records of each part: one that was cut off would hide all that comes after it."""
    for data in read_many(store, [part.path for part in parts]):
        yield b"".join(record for record, _ in _records(data))


def _delete(store: Store, files: list[EventFile]) -> None:
    # The newest first: if that is cut short, what is left is the beginning, and the merged file replaces it.
    if files:
        store.delete([file.path for file in reversed(files)])


def _batches(files: list[EventFile]) -> Iterator[list[EventFile]]:
    """Split neighbours into groups of bounded size."""
    group: list[EventFile] = []
    for file in files:
        if group and sum(f.size for f in group) + file.size > MOST_BYTES:
            yield group
            group = []
        group.append(file)
    yield group


def decode_events(data: bytes) -> Iterator[tuple[bytes, Event]]:
    """Yield each whole record of a file, and the event in it. Raises DecodeError for what is none."""
    for record, content in _records(data):
        yield record, Event.FromString(content)


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield each record of a file, whole and its content: 8 bytes length, 4 checksum, content, 4 checksum."""
    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        end = at + 12 + length + 4
        if end > len(data):
            return
        yield data[at:end], data[at + 12 : end - 4]
        at = end


def _record(event: Event) -> bytes:
    """Encode an event. TensorBoard's own writer imports boto3, 0.2 s of each start, and computes checksums in Python."""
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return b"".join((length, _checksum(length), content, _checksum(content)))


def _checksum(data: bytes) -> bytes:
    """Return the CRC-32C of `data`, masked as TFRecord files have it."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
