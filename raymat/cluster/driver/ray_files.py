"""The run's folder as Ray Train's controller sees it: through the run's store, and without a way to end the run.

Ray writes a ledger of the checkpoints that it was told of. Nothing of a run depends on it. With a plain file system each of
its writes would be one that neither waits for storage nor reads renewed keys, and whose failure ends the run.
"""

from __future__ import annotations

import copy
import io
import logging
import posixpath
from typing import Any

import pyarrow as pa
import pyarrow.fs

from raymat.errors import StorageError
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store

LEDGER = "checkpoint_manager_snapshot.json"
MARKER = ".validate_storage_marker"
"""A file by which Ray finds out whether it can write."""
PATIENCE_SECONDS = 2.0
"""Maximum time that the controller waits for storage to take the ledger: it has failures to see to."""

log = logging.getLogger(__name__)


class RayFiles(pyarrow.fs.FileSystemHandler):
    """Files of a run for pyarrow, below the path of its folder.

    Reads are the store's. A write that fails is logged. The ledger of an earlier start, which may be damaged or name what
    is gone, is never there; a folder always is.
    """

    def __init__(self, store: Store) -> None:
        self._store = copy.copy(store)
        self._store.retry = RetryPolicy(total=PATIENCE_SECONDS)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RayFiles) and self._store.url == other._store.url

    __hash__ = None  # type: ignore[assignment]

    def get_type_name(self) -> str:
        return "raymat"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pyarrow.fs.FileInfo]:
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: Any) -> list[pyarrow.fs.FileInfo]:
        found = self._store.list(self._inside(selector.base_dir))
        return [_file(f"{self._store.root}/{file.path}", file.size) for file in found]

    def create_dir(self, path: str, recursive: bool) -> None:
        """A folder is there with its first file."""

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(io.BytesIO(self._store.read(self._inside(path))), mode="r")

    open_input_file = open_input_stream

    def open_output_stream(self, path: str, metadata: object) -> pa.NativeFile:
        return pa.PythonFile(_Write(self._store, self._inside(path)), mode="w")

    def _info(self, path: str) -> pyarrow.fs.FileInfo:
        name = posixpath.basename(path)
        if name == LEDGER:
            return pyarrow.fs.FileInfo(path, pyarrow.fs.FileType.NotFound)
        if name == MARKER:
            return _file(path, 0)
        return pyarrow.fs.FileInfo(path, pyarrow.fs.FileType.Directory)

    def _inside(self, path: str) -> str:
        return path.removeprefix(self._store.root).strip("/")

    def _refuse(self, *args: object) -> None:
        raise NotImplementedError("Ray neither moves nor deletes files of a run")

    open_append_stream = move = copy_file = _refuse
    delete_file = delete_dir = delete_dir_contents = delete_root_dir_contents = _refuse


class _Write(io.BytesIO):
    """A file that is written when it is closed, if the storage takes it."""

    def __init__(self, store: Store, path: str) -> None:
        super().__init__()
        self._store, self._path = store, path

    def close(self) -> None:
        """Write the file; a failure is logged."""
        if not self.closed:
            try:
                self._store.write(self._path, self.getvalue())
            except StorageError as error:
                log.warning("Ray's own record is not written: %s", error.line)
        super().close()


def _file(path: str, size: int) -> pyarrow.fs.FileInfo:
    return pyarrow.fs.FileInfo(path, pyarrow.fs.FileType.File, size=size)
