"""`make hosts`: exit code 0 if the disturbed run is equal to the undisturbed one to the bit, 1 if not or if anything failed."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

from tests.hosts.hosts import Hosts
from tests.hosts.machine import FOLDER
from tests.hosts.needs import SBIN, missing
from tests.hosts.sealed import HOME, end_on_sigterm, run_sealed, settle_in
from tests.hosts.transcript import write_transcript
from tests.support.paths import ROOT

UNWANTED = {"s3", "env", "raymat", ".ray", "runtime_resources", "nvme"}
"""Of the hosts' folders: what is no log."""


def main() -> int:
    """Parse, look for what is missing, and play the story in namespaces of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.hosts", description=__doc__)
    parser.add_argument("--logs", type=_path, help="where to copy what all hosts logged")
    parser.add_argument("--transcript", type=_path, help="page that is to show what happened")
    parser.add_argument("--sealed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sealed:
        return play(options)
    page = options.transcript
    if page and not (page.is_file() and page.is_relative_to(ROOT)):
        parser.error(
            f"--transcript {page}: a page of the project, such as docs/hosts.md: hosts see no other"
        )
    if lacking := missing():
        print(f"hosts: {lacking}", file=sys.stderr)
        return 1
    if options.logs:
        options.logs.mkdir(parents=True, exist_ok=True)
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *SBIN])
    return run_sealed([sys.executable, "-m", "tests.hosts", "--sealed", *sys.argv[1:]])


def _path(text: str) -> Path:
    return Path(text).resolve()


def play(options: argparse.Namespace) -> int:
    """Play the story as the first process of the namespaces; return the exit code."""
    end_on_sigterm()
    keep = [ROOT, Path(sys.prefix), Path(sys.base_prefix)]
    settle_in([*keep, options.logs] if options.logs else keep)
    os.environ["HOME"] = HOME
    hosts = Hosts()
    try:
        parts = hosts.play()
    except (AssertionError, OSError, RuntimeError, subprocess.SubprocessError):
        traceback.print_exc()
        print(f"hosts: failed; what they logged: {options.logs or '--logs FOLDER keeps it'}")
        return 1
    finally:
        if options.logs:
            shutil.copytree(FOLDER, options.logs, symlinks=True, ignore=_no_log, dirs_exist_ok=True)
    if options.transcript:
        write_transcript(options.transcript, parts)
    return 0


def _no_log(folder: str, names: list[str]) -> set[str]:
    """Return what of a folder is not kept."""
    files = {name for name in names if Path(folder, name).is_file() or Path(folder, name).is_dir()}
    return UNWANTED | ({*names} - files)


if __name__ == "__main__":
    sys.exit(main())
