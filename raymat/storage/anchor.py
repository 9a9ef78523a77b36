"""What tells that a folder is still the one that it was: a file in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raymat.storage.faults import MissingBucketError, MissingFileError


@dataclass
class Anchor:
    """Files by which a run's folder is known, and a word that one of them contains; without any every folder is right."""

    paths: tuple[str, ...] = ()
    word: str = ""

    def is_there(self, read: Callable[[str], bytes]) -> bool:
        """Return whether `read` finds a file with the word. Raises StorageError if the storage fails."""
        return not self.paths or any(self._is_in(path, read) for path in self.paths)

    def _is_in(self, path: str, read: Callable[[str], bytes]) -> bool:
        try:
            return self.word.encode() in read(path)
        except (MissingFileError, MissingBucketError):
            return False
