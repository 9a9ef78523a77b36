"""Marks of a copy that `raymat prepare` makes: while it is made, and in the end."""

from __future__ import annotations

from raymat.data.dataset.image_folder import Folder, SilentStorageError, UnreachableError
from raymat.errors import DataError

RECORD = "prepared.jsonl"
"""Name of a complete copy's record."""
PARTS = "prepared"
"""Folder that is there while a copy is made."""
HEAD = "how.json"
"""File in it from its beginning to its end."""


def refuse_unfinished(folder: Folder) -> None:
    """Raise DataError if a folder is a copy that is not complete, or if its storage does not answer.

    One that may not be listed as a whole is believed to be none.
    """
    try:
        begun = (folder.entries() or {}).get(PARTS) and HEAD in (folder.entries(PARTS) or {})
    except SilentStorageError:
        raise
    except UnreachableError:
        return
    if begun:
        raise DataError(
            f"{folder.shown()} is a copy that raymat prepare has not finished: give its command again"
        )
