"""Names of files: which are pictures, which are none but may be meant, and what systems and viewers leave beside them."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from raymat.data.decoding.header import DECODING

_FIRST = (".jpg", ".jpeg", ".png", ".webp")
_SUFFIXES = {1: _FIRST, 2: _FIRST}
SUFFIXES = (*_FIRST, ".tif", ".tiff", ".bmp", ".gif", ".avif", ".jfif", ".jpe")
"""Extensions of pictures, in lower case; all other files are ignored. What a file is, its content says."""
VIDEOS = frozenset((".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mxf", ".mpg", ".mpeg"))
ARCHIVES = frozenset((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"))
_NOTES = frozenset(
    (
        *(
            ".txt",
            ".md",
            ".rst",
            ".html",
            ".pdf",
            ".log",
            ".csv",
            ".tsv",
            ".json",
            ".jsonl",
            ".xml",
            ".xmp",
        ),
        *(
            ".yaml",
            ".yml",
            ".toml",
            ".ini",
            ".py",
            ".sh",
            ".md5",
            ".sha1",
            ".sha256",
            ".lock",
            ".db",
        ),
    )
)
"""Extensions of what lies beside pictures and nobody takes for one. All else that is not read may be meant, and is told."""
_NOTE_NAMES = frozenset(("readme", "license", "licence", "copying", "makefile", "checksums"))
_LEFT_BEHIND = frozenset(
    ("@eadir", "__macosx", "thumbs.db", "desktop.ini", "#recycle", "$recycle.bin", "lost+found")
)
"""Names, in lower case, of what file servers, archives and systems put beside pictures: thumbnails and the like."""


@dataclass(frozen=True)
class NameRules:
    """Rules by which the files of a dataset are chosen and paired.

    `decoding`: the version of how pictures are read. `pair_suffix`: what mattes' names have besides their foregrounds', as in
    `_alpha`. `skip_unpaired`: leave out files without a partner.
    """

    decoding: int = DECODING
    pair_suffix: str = ""
    skip_unpaired: bool = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Extensions of pictures, in lower case."""
        return _SUFFIXES.get(self.decoding, SUFFIXES)

    @property
    def kinds(self) -> str:
        """The kinds of pictures that are read, for people."""
        names = [suffix[1:] for suffix in self.suffixes if suffix not in (".jfif", ".jpe")]
        return ", ".join(names)

    def is_junk(self, name: str) -> bool:
        """Whether a file or folder is hidden, or left behind by a system."""
        return name.startswith(".") or (self.decoding >= 3 and name.lower() in _LEFT_BEHIND)

    def split(self, name: str, matte: bool) -> tuple[str, str]:
        """Split a path into the name of its pair and the rest of it, "" if it is no picture's."""
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in self.suffixes:
            return name, ""
        ending = self.pair_suffix
        if matte and ending and stem.endswith(ending) and not stem.endswith("/" + ending):
            return stem.removesuffix(ending), ending + suffix
        return stem, suffix


ANY_NAMES = NameRules()
"""The rules of a dataset without flags for them."""


def without_junk(found: Mapping[str, int], rules: NameRules) -> tuple[dict[str, int], Counter[str]]:
    """Return the files that are not hidden or left behind, and how many of the pictures and folders are, by name."""
    kept: dict[str, int] = {}
    passed: Counter[str] = Counter()
    for path, size in found.items():
        parts = path.rstrip("/").split("/")
        junk = next((part for part in parts if rules.is_junk(part)), None)
        if junk is None:
            kept[path] = size
        elif (
            path.endswith("/") or len(parts) > 1 + parts.index(junk) or rules.split(path, False)[1]
        ):
            passed["._*" if junk.startswith("._") else junk] += 1
    return kept, passed


def others(names: Iterable[str], rules: NameRules) -> Counter[str]:
    """Count, by extension, the files that are not read though somebody may take them for part of the dataset."""
    known, found = _NOTES.union(rules.suffixes), Counter[str]()
    for name in names:
        stem, suffix = os.path.splitext(name.rpartition("/")[2])
        if stem and suffix.lower() not in known and stem.lower() not in _NOTE_NAMES:
            found[suffix.lower() if len(suffix) > 1 else "without an extension"] += 1
    return found


def composed(name: str) -> str:
    """Return a name with its accents in one form (NFC): a Mac writes another one than most, and both look the same."""
    return unicodedata.normalize("NFC", name)


def listed(counts: Mapping[str, int]) -> str:
    """Return counts for people: `2 .tif, 1 .heic`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {name}" for name, count in ordered)
