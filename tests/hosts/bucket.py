"""The storage of the hosts: rclone's S3 server on the bridge, with a made dataset in its bucket."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.hosts.machine import OPERATOR
from tests.support.datakit import write_dataset
from tests.support.heads import wait_for
from tests.support.s3 import KEY, SECRET

PORT = 9000
NAME = "mattings"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_ENDPOINT_URL": f"http://{OPERATOR}:{PORT}",
    "AWS_REGION": "us-east-1",
}
"""For whoever reads and writes it."""


@contextlib.contextmanager
def bucket(folder: Path) -> Iterator[Path]:
    """Serve a bucket, and give the folder in which its objects lie: looking there costs the server nothing."""
    objects = folder / NAME
    objects.mkdir(parents=True)
    write_dataset(str(objects), pairs=32, backgrounds=16, valid=4)
    rclone = str(Path(sys.executable).parent / "rclone")
    command = [rclone, "serve", "s3", "--config", "/dev/null", "--addr", f"{OPERATOR}:{PORT}"]
    with (folder.parent / "s3.log").open("wb") as log:
        command += ["--auth-key", f"{KEY},{SECRET}", str(folder)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(_answers, 60)
            yield objects
        finally:
            server.kill()
            server.wait()


def _answers() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((OPERATOR, PORT)) == 0
