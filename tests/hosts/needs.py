"""What the hosts need of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

PACKAGES = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "rsync": "rsync",
    "ip": "iproute2",
    "unshare": "util-linux",
    "flock": "util-linux",
    "pgrep": "procps",
}
"""Programs, each with Debian's package of it."""
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def missing() -> str:
    """Return one line that says what this machine lacks, "" if it lacks nothing."""
    return "; ".join(_missing())


def _missing() -> Iterator[str]:
    lacking = sorted({package for program, package in PACKAGES.items() if not find(program)})
    if lacking:
        yield f"install {', '.join(lacking)} (apt-get install {' '.join(lacking)})"
    if os.geteuid() != 0:
        yield "root is needed, which makes namespaces of networks, processes and mounts"
    elif find("unshare"):
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--net", "--uts", "--fork", "true"],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            yield f"root may not make namespaces here: {' '.join(done.stderr.split())}"


def find(program: str) -> str | None:
    """Return a program's path: some lie where only root's PATH leads."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), *SBIN]))
