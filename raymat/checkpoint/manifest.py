"""Manifests: the files, sizes and digests of each rank in a checkpoint, and the files' names.

A manifest is the last file that a rank writes. It has one canonical form and contains its own digest, so that a
reader accepts exactly what a writer wrote, to the byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymat.errors import CheckpointError, NewerFormatError
from raymat.storage.digest import canonical, is_digest, is_sealed, seal
from raymat.storage.fields import Count, parse_fields, parse_object

FORMATS = (1, 2, 3)
"""Of manifests. 2: with the word of the saving; 3: with digests that readers of the first two do not know."""

STATE_FORMAT = 1
"""Of the state file."""

STATE = "state.json"
"""File of rank 0 with everything that is not a tensor."""

MAX_MANIFEST_BYTES = 2**20
MAX_STATE_BYTES = 2**28
MAX_BYTES = 64 * 2**30
"""Limit of a checkpoint's size; a larger one is neither written nor read."""
MAX_WORLD = 99_999


@dataclass(frozen=True, order=True)
class CheckpointId:
    """Identity of a checkpoint: `step` completed steps, written by `attempt`. Ordered by step, then attempt."""

    step: int
    attempt: int

    def __post_init__(self) -> None:
        if self.step < 0 or self.attempt < 0:
            raise ValueError(f"negative step or attempt: {self.step}, {self.attempt}")

    def __str__(self) -> str:
        return f"step-{self.step:09d}-a{self.attempt:03d}"

    @classmethod
    def parse(cls, text: str) -> CheckpointId:
        """Parse what `str` returned. Raises CheckpointError for any other text."""
        found = cls.try_parse(text)
        if found is None:
            raise CheckpointError(
                f"expected a checkpoint like step-000001200-a003, got {text[:60]!r}"
            )
        return found

    @classmethod
    def try_parse(cls, text: str) -> CheckpointId | None:
        """Parse what `str` returned; None for any other text."""
        match = re.fullmatch(r"step-([0-9]{9,18})-a([0-9]{3,9})", text)
        if match is None:
            return None
        found = cls(int(match[1]), int(match[2]))
        return found if str(found) == text else None


def shard_name(rank: int, world: int) -> str:
    """Return the name of the file with the tensors of `rank`'s share."""
    return f"shard-{rank:05d}-of-{world:05d}.safetensors"


def manifest_name(rank: int, world: int) -> str:
    """Return the name of `rank`'s manifest."""
    return f"manifest-{rank:05d}-of-{world:05d}.json"


def parse_manifest_name(name: str) -> tuple[int, int] | None:
    """Return (rank, world) of a manifest's name, or None if it is none."""
    match = re.fullmatch(r"manifest-([0-9]{5})-of-([0-9]{5})\.json", name)
    if match is None or not int(match[1]) < int(match[2]):
        return None
    return int(match[1]), int(match[2])


def share_names(rank: int, world: int) -> tuple[str, ...]:
    """Return the files that `rank` writes before its manifest."""
    return (shard_name(rank, world), STATE) if rank == 0 else (shard_name(rank, world),)


@dataclass(frozen=True)
class Origin:
    """What tells the checkpoints of one attempt at a run from all others, also from those of a copy of the run."""

    run: str
    """The run's id."""
    attempt: int
    word: str
    """Random, drawn once per attempt: with the step it names a saving. Empty: none, as in manifests of format 1."""


@dataclass(frozen=True)
class FileEntry:
    """File in a manifest: `size` in bytes, `digest` as "algorithm:hex"."""

    name: str
    size: Count
    digest: str


@dataclass(frozen=True)
class _Content:
    """What a manifest's object says beside its format and its digest."""

    run: str
    step: Count
    attempt: Count
    rank: Count
    world: Count
    files: tuple[FileEntry, ...]
    word: str = ""


@dataclass(frozen=True)
class Manifest:
    """Manifest of what one rank wrote for one checkpoint of the run with the id `run`.

    `word`: the attempt's, equal in all manifests of a saving: what two copies of a run saved under one name never counts as
    one checkpoint.
    """

    run: str
    id: CheckpointId
    rank: int
    world: int
    files: tuple[FileEntry, ...]
    word: str = ""

    def to_json(self) -> bytes:
        """Return the canonical form with its own digest, ASCII, one line."""
        return canonical(seal(self._content())) + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Parse what `to_json` returned. Raises CheckpointError for a difference of one byte."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise CheckpointError(f"manifest of {len(data)} bytes, more than {MAX_MANIFEST_BYTES}")
        try:
            content = parse_object(data)
        except ValueError as error:
            raise CheckpointError(f"manifest is damaged: {error}") from error
        if newer_format(content, FORMATS[-1]) is not None and not is_sealed(content):
            raise CheckpointError("manifest is damaged: its digest or its format is wrong")
        refuse_format(content, FORMATS, "manifest")
        try:
            found = parse_fields(_Content, content)
        except ValueError as error:
            raise CheckpointError(f"manifest is damaged: {error}") from error
        place = CheckpointId(found.step, found.attempt)
        manifest = cls(found.run, place, found.rank, found.world, found.files, found.word)
        manifest._check()
        if manifest.to_json() != data:
            raise CheckpointError("manifest is damaged: its digest or its form is wrong")
        return manifest

    def _content(self) -> dict[str, Any]:
        word = {"word": self.word} if self.word else {}
        return word | {
            "format": self._format(),
            "run": self.run,
            "step": self.id.step,
            "attempt": self.id.attempt,
            "rank": self.rank,
            "world": self.world,
            "files": [{"name": f.name, "size": f.size, "digest": f.digest} for f in self.files],
        }

    def _format(self) -> int:
        """Return the lowest format that has all that is here."""
        if any(entry.digest.startswith("blake3:") for entry in self.files):
            return 3
        return 2 if self.word else 1

    def _check(self) -> None:
        if not all(is_digest(entry.digest) for entry in self.files):
            raise CheckpointError("manifest is damaged or newer: unknown digest")
        if not self.rank < self.world <= MAX_WORLD:
            raise CheckpointError(f"manifest of rank {self.rank} in a world of {self.world}")
        names = tuple(entry.name for entry in self.files)
        if names != share_names(self.rank, self.world):
            shown = ", ".join(ascii(name[:60]) for name in names[:3])
            raise CheckpointError(
                f"manifest of rank {self.rank} lists other files than that rank's: {shown}"
            )


def newer_format(content: Any, known: int) -> int | None:
    """Return the `format` of a parsed file if it is newer than the `known` one, else None."""
    found = content.get("format") if isinstance(content, dict) else None
    return found if type(found) is int and found > known else None


def refuse_format(content: Mapping[str, Any], known: Sequence[int], what: str) -> None:
    """Raise unless a parsed file is of a format in `known`, oldest first.

    Raises:
        NewerFormatError: a newer raymat wrote it. CheckpointError: its format is none that ever was.
    """
    found = content.get("format")
    if type(found) is int and found in known:
        return
    newer = newer_format(content, known[-1]) is not None
    hint = ": use the raymat that wrote it" if newer else ""
    message = f"{what} of format {found!r}, this version reads {known[-1]}{hint}"
    raise NewerFormatError(message) if newer else CheckpointError(message)
