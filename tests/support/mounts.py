"""Folders on a disk that comes and goes, or that is small."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


class Disk:
    """A folder, `point`, that can be taken away and brought back with all that is in it.

    By a mount where this process may mount; else by moving it, and leaving an empty folder as a mount point would be.
    """

    def __init__(self, folder: Path) -> None:
        self.point, self._content = folder / "mount", folder / "disk"
        self.point.mkdir()
        self._content.mkdir()
        self.mounted = _run("mount", "--bind", str(self._content), str(self.point))

    def detach(self) -> None:
        """Take it away, whoever uses it."""
        if self.mounted:
            assert _run("umount", "--lazy", str(self.point))
        else:
            os.rename(self.point, self._content / "moved")
            self.point.mkdir()

    def attach(self) -> None:
        """Bring it back."""
        if self.mounted:
            assert _run("mount", "--bind", str(self._content), str(self.point))
        else:
            self.point.rmdir()
            os.rename(self._content / "moved", self.point)


@contextmanager
def coming_and_going(folder: Path) -> Iterator[Disk]:
    """A disk below `folder`, not mounted any more at the end."""
    disk = Disk(folder)
    try:
        yield disk
    finally:
        if disk.mounted:
            _run("umount", "--lazy", str(disk.point))


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """An empty file system of `size` bytes below `folder`. Skips the test where this process may not mount one."""
    point = folder / "small"
    point.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(point)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    try:
        yield point
    finally:
        _run("umount", "--lazy", str(point))
