"""A host: network, processes, mounts and name of its own, an ssh server, and its cloud's metadata server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from tests.hosts.sealed import HOME
from tests.support.heads import wait_for

FOLDER = Path("/run/hosts")
"""Of the hosts' own folders, and of what is logged."""
HERE = Path(__file__).parent
SUBNET = "10.77.0"
OPERATOR = f"{SUBNET}.1"
"""Address of whoever calls `ray up`, and of the storage."""
BRIDGE = "hosts"
KEY = Path("/run/key")
SSH_SERVER = f"""
HostKey /run/host_key
AuthorizedKeysFile {KEY}.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PrintMotd no
PrintLastLog no
PidFile none
MaxStartups 100
"""


def ip(*words: str) -> None:
    """Run `ip`. Raises CalledProcessError, and says why."""
    subprocess.run(["ip", *words], check=True)


def lay_network(names: dict[str, str]) -> None:
    """Lay the bridge that joins the hosts, and write what they all read: addresses by name, users, keys."""
    ip("link", "set", "lo", "up")
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("address", "add", f"{OPERATOR}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    for key in ("/run/host_key", str(KEY)):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    Path("/run/sshd_config").write_text(SSH_SERVER, encoding="utf-8")
    known = {"127.0.0.1": f"localhost {socket.gethostname()}", OPERATOR: "operator"}
    known |= {address: name for name, address in names.items()}
    users = Path("/etc/passwd").read_text(encoding="utf-8").splitlines()
    others = [user for user in users if not user.startswith("root:")]
    texts = {
        "/etc/hosts": [f"{address} {name}" for address, name in known.items()],
        "/etc/passwd": [f"root:x:0:0:root:{HOME}:/bin/bash", *others],
        "/etc/shadow": ["root:*:20000:0:99999:7:::"],
        "/etc/resolv.conf": [],  # nobody who could be asked: each question would wait for an answer
    }
    for place, lines in texts.items():
        own = Path("/run/etc", Path(place).name)
        own.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        subprocess.run(["mount", "--bind", own, place], check=True)


class Machine:
    """A host, from its start to its end. One that has ended may boot again, as a new one with the same address."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.address = name, f"{SUBNET}.{number}"
        self.folder = FOLDER / name
        self._wire = f"to-{name}"
        self._process: subprocess.Popen[bytes] | None = None

    def boot(self) -> float:
        """Start it, and return once its ssh server answers: the seconds that took."""
        began = time.monotonic()
        self.folder.mkdir(parents=True)
        ip("netns", "add", self.name)
        wire = ("type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "add", self._wire, *wire)
        ip("link", "set", self._wire, "master", BRIDGE, "up")
        ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")
        ip("-n", self.name, "route", "add", "default", "via", OPERATOR)
        own = ("--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")
        boot = ("bash", str(HERE / "boot.sh"), self.name, sys.executable)
        with (self.folder / "boot.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, "unshare", *own, *boot, str(HERE / "metadata_server.py")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )  # fmt: skip
        wait_for(self._answers, 60)
        return time.monotonic() - began

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(
                f"{self.name} did not boot: {(self.folder / 'boot.log').read_text()}"
            )
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((self.address, 22)) == 0

    def vanish(self) -> None:
        """Pull its plug: no answer, no goodbye, and nobody who refuses a connection."""
        ip("link", "set", self._wire, "down")

    def announce_end(self, seconds: float) -> None:
        """Have its metadata server tell that it will be taken in so many seconds."""
        end = datetime.fromtimestamp(time.time() + seconds, timezone.utc)
        notice = {"action": "terminate", "time": f"{end:%Y-%m-%dT%H:%M:%SZ}"}
        (self.folder / "coming").write_text(json.dumps(notice), encoding="utf-8")
        os.replace(self.folder / "coming", self.folder / "notice.json")

    def take(self) -> None:
        """End all that runs on it, as its cloud does."""
        assert self._process is not None
        self._process.send_signal(
            signal.SIGKILL
        )  # which `unshare` hands on to the host's first process
        self._process.wait()
        self.vanish()

    def read(self, file: str) -> str:
        """Return a file of root's home there, "" if there is none."""
        place = self.folder / "home" / file
        return place.read_text(encoding="utf-8") if place.exists() else ""
