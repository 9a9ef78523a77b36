"""A real S3 server on loopback, for tests."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raymat.storage.store import Store

KEY, SECRET = "ACCESSKEY", "SECRETKEY"
RENEWED = {f"RENEWEDKEY{n}": f"RENEWEDSECRET{n}" for n in range(4)}
"""Further keys that the server takes, and their secrets."""


@dataclass(frozen=True)
class S3Server:
    """A real S3 server on loopback: each folder of `folder` is a bucket."""

    folder: Path
    endpoint: str

    @property
    def options(self) -> dict[str, Any]:
        return {"key": KEY, "secret": SECRET, "endpoint_url": self.endpoint}

    @property
    def environment(self) -> dict[str, str]:
        """The same for a process, as the AWS libraries read it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def store(self, bucket: str, name: str = "run") -> Store:
        """A store in a new bucket, made through the server."""
        store = Store.open(f"s3://{bucket}/runs", name, options=self.options)
        store.backend.filesystem.mkdir(bucket)  # type: ignore[attr-defined]
        return store


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("s3")
    # The server notices folders that it did not make only at its start.
    for name in ("prepared-0", "prepared-3"):
        (folder / name).mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "rclone"), "serve", "s3", "--config", "/dev/null",
        "--addr", f"127.0.0.1:{port}", str(folder),
    ]  # fmt: skip
    for key, secret in ({KEY: SECRET} | RENEWED).items():
        command += ["--auth-key", f"{key},{secret}"]
    log = (folder.parent / "rclone.log").open("wb")
    server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for(port, server)
        yield S3Server(folder, f"http://127.0.0.1:{port}")
    finally:
        server.kill()
        server.wait()
        log.close()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while server.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("rclone serve s3 did not start")
