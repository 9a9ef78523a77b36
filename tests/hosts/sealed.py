"""A process in namespaces of its own, which take everything with them when it ends: nothing is left to be cleaned up.

Its processes, its network with all hosts in it, its mounts and what was written to them are the kernel's to remove, as soon as
its first process is no more: however it ended, and also when the process that started it was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.support.heads import descendants
from tests.support.paths import ROOT

PR_SET_PDEATHSIG = 1
UNSHARE = ("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc")
END_SECONDS = 20.0
"""What the first process is given to end by itself, and after SIGKILL."""
HOME = "/run/home"
"""In place of root's, so that no key and no cluster of this machine is seen or changed."""


class Told(Exception):
    """A signal came that ends the command."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


def run_sealed(command: Sequence[str]) -> int:
    """Run a command as the first process of such namespaces; return its exit code, 128 + N after signal N."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _tell)
    process = subprocess.Popen(
        [*UNSHARE, *command],
        start_new_session=True,  # Ctrl-C is for this process, which ends all the others
        preexec_fn=_die_with_parent,
        stdin=subprocess.DEVNULL,
    )
    try:
        return process.wait()
    except Told as told:
        print(f"hosts: {told}: ending all hosts", file=sys.stderr)
        return told.code
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _end(process)


def _tell(number: int, frame: FrameType | None) -> None:
    raise Told(number)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the first process of the namespaces; once that has been waited for, all others are gone as well."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in descendants(process.pid)[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=END_SECONDS)
            return
    process.kill()
    process.wait()


def end_on_sigterm() -> None:
    """Have SIGTERM end this sealed process: it harms no first process that has not asked for it."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def settle_in(keep: Sequence[Path]) -> None:
    """Give this sealed process a /run and a /tmp of its own, in which folders to `keep` are seen where they were.

    A host does the same once more for itself (boot.sh).
    """
    _mount("tmpfs", "/run", "--types", "tmpfs", "--options", "size=4g,mode=755")
    for name in ("etc", "home", "hosts", "keep", "netns", "sshd"):
        Path("/run", name).mkdir(mode=0o755)
    hidden = sorted({path.resolve() for path in keep if path.resolve().is_relative_to("/tmp")})
    inside = [
        path for path in hidden if not any(path.is_relative_to(o) for o in hidden if o != path)
    ]
    for number, path in enumerate(inside):
        Path(f"/run/keep/{number}").mkdir()
        _mount(str(path), f"/run/keep/{number}", "--bind")
    Path("/run/keep/list").write_text("".join(f"{path}\n" for path in inside), encoding="utf-8")
    _mount("tmpfs", "/tmp", "--types", "tmpfs", "--options", "size=2g,mode=1777")
    for number, path in enumerate(inside):
        path.mkdir(parents=True)
        _mount(f"/run/keep/{number}", str(path), "--bind")
    os.chdir(ROOT)


def _mount(what: str, where: str, *options: str) -> None:
    subprocess.run(["mount", *options, what, where], check=True)
