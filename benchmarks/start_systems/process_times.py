"""CPU time of a command and of all that it starts, by the moment and by the kind of process."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
SECONDS = 0.1
"""Between two looks. What a process does between the last look at it and its end is not counted."""


class ProcessTimes:
    """Looks at a process and all below it, in a thread, until it is stopped."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._newest: dict[int, tuple[str, float]] = {}
        """By process, also of those that have ended: its kind and its CPU seconds."""
        self._history: list[tuple[float, dict[str, float]]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._done.set()
        self._thread.join()

    def until(self, moment: float) -> dict[str, float]:
        """Return the CPU seconds by kind of process up to Unix time `moment`."""
        before = [sums for at, sums in self._history if at <= moment]
        return before[-1] if before else {}

    def _run(self) -> None:
        while not self._done.wait(SECONDS):
            self._newest |= family(self._pid)
            sums: dict[str, float] = {}
            for kind, seconds in self._newest.values():
                sums[kind] = sums.get(kind, 0.0) + seconds
            self._history.append((time.time(), sums))


def family(root: int) -> dict[int, tuple[str, float]]:
    """Return kind and CPU seconds of `root` and all processes below it."""
    found: dict[int, tuple[str, float]] = {}
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it has just ended
                continue
            pid = int(entry.name)
            children.setdefault(int(fields[1]), []).append(pid)
            found[pid] = (_kind(words), sum(map(int, fields[11:13])) / TICKS)
    family, waiting = {root}, [root]
    while waiting:
        fresh = children.get(waiting.pop(), [])
        family.update(fresh)
        waiting += fresh
    return {
        pid: ("command", found[pid][1]) if pid == root else found[pid]
        for pid in family & found.keys()
    }


def _kind(words: list[str]) -> str:
    """Return what a process is: what Ray calls it, or the last part of what it runs."""
    if words[0].startswith("ray::"):
        return words[0].removeprefix("ray::").split("(")[0].split(".")[0].strip()
    scripts = [
        word for word in words[:4] if word.endswith(".py") or "server" in word or "raylet" in word
    ]
    if scripts:
        return Path(scripts[0].split()[0]).name
    return "worker" if "-m" in words else Path(words[0].split(" ")[0]).name
