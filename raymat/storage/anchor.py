"""What tells that a folder is still the one that it was: a file in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raymat.storage.faults import MissingBucketError, MissingFileError


@dataclass
class Anchor:
    """A file by which a run's folder is known, and a word that it contains; without a path every folder is right."""

    path: str = ""
    word: str = ""

    def is_there(self, read: Callable[[str], bytes]) -> bool:
        """Return whether `read` finds the file with its word. Raises StorageError if the storage fails."""
        try:
            return not self.path or self.word.encode() in read(self.path)
        except (MissingFileError, MissingBucketError):
            return False
