"""A run that cannot start says why in one line within seconds, before Ray starts; a longer wait has a word before.

`pytest -s` prints the table.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from raymat.cli.main import job_main
from raymat.cluster.driver import launch  # noqa: F401  (not while another user: Python may be root's alone)
from raymat.config.run import RunConfig, build
from raymat.model.matting import build as network
from raymat.storage.store import Store
from raymat.train.run.open_run import open_run
from tests.support.s3 import S3Server

SECONDS = 15.0
"""At most, once Ray and torch are imported, on a busy machine. Most take less than one."""
PLAIN = {
    "--synthetic": "8", "--storage": "{}/runs", "--name": "run", "--steps": "1", "--backbone": "mobilenetv2",
    "--device": "cpu", "--resolution": "32", "--crop": "32", "--batch-size": "4", "--valid-examples": "0",
}  # fmt: skip
BUCKET = {"--storage": "s3://bucket/runs"}
DEAD = "http://127.0.0.1:9"
NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
WRITE = "cannot write s3://bucket/runs/run: "
SETTINGS = f"{WRITE}the provider's settings cannot be used ("
CORRECT = "); correct its variables (AWS_...) or files (~/.aws)"
SILENT = f"{WRITE}the storage does not answer ("
STRANGER = (
    f"{WRITE}what answers is no storage of that kind (a web page came, no XML); "
    "check the endpoint, and the proxy if there is one"
)
OPEN = {"--storage": "{}/open"}
FILES = {"--synthetic": "-", "--dataset": "{}/pairs", "--backgrounds": "{}/walls"}


@dataclass(frozen=True)
class Wrong:
    """What is wrong, and how the line begins; `{}` is the test's folder, `[page]` a web server's URL."""

    line: str
    environment: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=lambda: BUCKET)
    bound: bool = False
    """Whether rights must bind the user, which they do not root."""


ENVIRONMENT = {
    "an endpoint without a scheme": Wrong(
        f"{SETTINGS}Invalid endpoint: 127.0.0.1:9000, expected http://HOST or https://HOST{CORRECT}",
        {"AWS_ENDPOINT_URL": "127.0.0.1:9000"},
    ),
    "an endpoint of S3 without a scheme": Wrong(
        f"{SETTINGS}Invalid endpoint: storage.example, expected http://HOST or https://HOST{CORRECT}",
        {"AWS_ENDPOINT_URL_S3": "storage.example"},
    ),
    "an endpoint without a scheme, with a password": Wrong(
        f"{SETTINGS}Invalid endpoint: ...@127.0.0.1:9000, expected http://HOST or https://HOST{CORRECT}",
        {"AWS_ENDPOINT_URL": "me:secret@127.0.0.1:9000"},
    ),
    "an endpoint with a password": Wrong(
        f"{SETTINGS}Cannot combine AUTHORIZATION header with AUTH argument or credentials encoded in URL{CORRECT}",
        {"AWS_ENDPOINT_URL": "http://me:secret@127.0.0.1:9"},
    ),
    "a token with a line break": Wrong(
        f"{SETTINGS}Forbidden control character detected in headers.",
        {"AWS_ENDPOINT_URL": "[page]/200", "AWS_SESSION_TOKEN": "secret\n-more"},
    ),
    "an endpoint that refuses": Wrong(
        f'{SILENT}Could not connect to the endpoint URL: "{DEAD}/', {"AWS_ENDPOINT_URL": DEAD}
    ),
    "an endpoint whose name does not resolve": Wrong(
        f'{SILENT}Could not connect to the endpoint URL: "http://nowhere.invalid/',
        {"AWS_ENDPOINT_URL": "http://nowhere.invalid"},
    ),
    "an endpoint that speaks no TLS": Wrong(
        f"{SILENT}SSL validation failed for https://", {"AWS_ENDPOINT_URL": "[tls]"}
    ),
    "an endpoint that answers with a page": Wrong(STRANGER, {"AWS_ENDPOINT_URL": "[page]/200"}),
    "an endpoint that leads to a page": Wrong(STRANGER, {"AWS_ENDPOINT_URL": "[page]/302"}),
    "an endpoint that takes no writes": Wrong(STRANGER, {"AWS_ENDPOINT_URL": "[page]/405"}),
    "a gateway with nothing behind it": Wrong(STRANGER, {"AWS_ENDPOINT_URL": "[page]/502"}),
    "an endpoint that accepts and says nothing": Wrong(
        f"{SILENT}No answer from http://127.0.0.1:", {"AWS_ENDPOINT_URL": "[silent]"}
    ),
    "a region that is none": Wrong(
        f"{SETTINGS}Provided region_name 'some where' doesn't match",
        {"AWS_DEFAULT_REGION": "some where"},
    ),
    "a profile that is not there": Wrong(
        f"{SETTINGS}The config profile (nobody) could not be found{CORRECT}",
        {"AWS_PROFILE": "nobody"},
    ),
    "a file of settings that is no INI file": Wrong(
        f"{SETTINGS}Unable to parse config file: {{}}/no.ini{CORRECT}",
        {"AWS_CONFIG_FILE": "{}/no.ini"},
    ),
    "a file of settings that is no text": Wrong(
        f"{SETTINGS}Unable to parse config file: {{}}/binary.ini{CORRECT}",
        {"AWS_CONFIG_FILE": "{}/binary.ini"},
    ),
    "a file of keys that is no INI file": Wrong(
        f"{SETTINGS}Unable to parse config file: {{}}/no.ini{CORRECT}",
        {"AWS_SHARED_CREDENTIALS_FILE": "{}/no.ini"},
    ),
    "certificates that are not there": Wrong(
        f"{SETTINGS}the file of certificates /nowhere/ca.pem does not exist{CORRECT}",
        {"AWS_CA_BUNDLE": "/nowhere/ca.pem"},
    ),
    "a token that is not there": Wrong(
        f"{SETTINGS}there is no file /nowhere/token{CORRECT}",
        NO_KEYS
        | {
            "AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere/token",
            "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x",
        },
    ),
    "a way of retrying that is none": Wrong(
        f'{SETTINGS}Invalid value provided to "mode": "odd"', {"AWS_RETRY_MODE": "odd"}
    ),
    "no keys": Wrong(
        f"{WRITE}no usable credentials (Unable to locate credentials); give the machine a role,",
        NO_KEYS,
    ),
    "half of the keys": Wrong(
        f"{WRITE}no usable credentials (Partial credentials found in env, missing: AWS_SECRET",
        {"AWS_SECRET_ACCESS_KEY": ""},
    ),
    "a proxy that is dead": Wrong(
        f'{SILENT}Failed to connect to proxy URL: "{DEAD}"',
        {"AWS_ENDPOINT_URL": "https://storage.example", "HTTPS_PROXY": DEAD},
    ),
    "a proxy that is none": Wrong(
        f'{SILENT}Could not connect to the endpoint URL: "https://storage.example/',
        {"AWS_ENDPOINT_URL": "https://storage.example", "HTTPS_PROXY": "nonsense"},
    ),
}

PATHS = {
    "a storage in what Ray unpacked for a job": Wrong(
        "--storage {}/working_dir_files/_ray_pkg_0f/runs lies in the copy of the project that Ray made for this job, and goes",
        flags={"--storage": "{}/working_dir_files/_ray_pkg_0f/runs"},
    ),
    "a dataset that is not there": Wrong(
        "no such folder: {}/nowhere/train/fgr", flags=FILES | {"--dataset": "{}/nowhere"}
    ),
    "a dataset that is a file": Wrong(
        "no such folder: {}/no.ini/train/fgr", flags=FILES | {"--dataset": "{}/no.ini"}
    ),
    "backgrounds that are not there": Wrong(
        "no such folder: {}/nowhere/train", flags=FILES | {"--backgrounds": "{}/nowhere"}
    ),
    "a dataset in a bucket that is not there": Wrong(
        "no such folder: s3://nowhere/pairs/train/fgr",
        {"AWS_ENDPOINT_URL": "[s3]"},
        FILES | {"--dataset": "s3://nowhere/pairs"},
    ),
    "a dataset in a storage that refuses": Wrong(
        "cannot list s3://bucket/pairs: the storage does not answer (Could not connect to the endpoint",
        {"AWS_ENDPOINT_URL": DEAD},
        FILES | {"--dataset": "s3://bucket/pairs"},
    ),
    "a dataset behind settings that are none": Wrong(
        f"cannot list s3://bucket/pairs/train/fgr: {SETTINGS.removeprefix(WRITE)}Invalid endpoint",
        {"AWS_ENDPOINT_URL": "127.0.0.1:9000"},
        FILES | {"--dataset": "s3://bucket/pairs"},
    ),
    "weights that are not there": Wrong(
        "no such weights file: {}/w.pth; give a .pth file, or a run", flags={"--init": "{}/w.pth"}
    ),
    "weights that are none": Wrong(
        "cannot read weights from {}/words.pth: it is", flags={"--init": "{}/words.pth"}
    ),
    "weights of another backbone": Wrong(
        "{}/other.pth has the backbone mobilenetv2, this network resnet50: use --backbone mobilenetv2",
        flags={"--init": "{}/other.pth", "--backbone": "resnet50"},
    ),
    "weights of a run that is not there": Wrong(
        "{}/runs/nobody is neither a weights file", flags={"--init": "{}/runs/nobody"}
    ),
    "weights behind settings that are none": Wrong(
        f"cannot read weights from s3://bucket/w.pth: {SETTINGS.removeprefix(WRITE)}The config prof",
        {"AWS_PROFILE": "nobody"},
        {"--init": "s3://bucket/w.pth"},
    ),
    "a configuration that is not there": Wrong(
        "--config {}/nowhere.yaml: no such file", flags={"--config": "{}/nowhere.yaml"}
    ),
    "a configuration that is a folder": Wrong(
        "--config {}/walls: cannot be read: ", flags={"--config": "{}/walls"}
    ),
    "a configuration behind settings that are none": Wrong(
        f"--config s3://bucket/run.yaml: cannot be read: {SETTINGS.removeprefix(WRITE)}The config",
        {"AWS_PROFILE": "nobody"},
        {"--config": "s3://bucket/run.yaml"},
    ),
    "a storage that is a file": Wrong(
        "cannot write {}/no.ini/run: a file lies where a folder should be",
        flags={"--storage": "{}/no.ini"},
    ),
    "a storage below a file": Wrong(
        "cannot write {}/no.ini/runs/run: a file lies where a folder should be",
        flags={"--storage": "{}/no.ini/runs"},
    ),
    "a storage in a bucket that is not there": Wrong(
        "cannot write s3://nowhere/runs/run: there is no bucket or container of that name",
        {"AWS_ENDPOINT_URL": "[s3]"},
        {"--storage": "s3://nowhere/runs"},
    ),
    "a storage that may not be written": Wrong(
        "cannot write {}/locked/run: permission denied",
        flags={"--storage": "{}/locked"},
        bound=True,
    ),
    "a run that may not be read": Wrong(
        "cannot write {}/open/blind: permission denied",
        flags=OPEN | {"--name": "blind"},
        bound=True,
    ),
    "a dataset that may not be read": Wrong(
        "cannot list {}/hidden/train/fgr: permission denied",
        flags=OPEN | FILES | {"--dataset": "{}/hidden"},
        bound=True,
    ),
    "weights that may not be read": Wrong(
        "cannot read weights from {}/hidden.pth: permission denied",
        flags=OPEN | {"--init": "{}/hidden.pth"},
        bound=True,
    ),
    "a precision that the device does not have": Wrong(
        "--precision fp16 needs a GPU", flags={"--precision": "fp16"}
    ),
    "another backbone than the run was begun with": Wrong(
        "{}/runs/begun was begun with another configuration: --backbone was mobilenetv2, is resnet50;",
        flags={"--name": "begun", "--backbone": "resnet50"},
    ),
}


class Page(http.server.BaseHTTPRequestHandler):
    """Answers everything with a page and the status that its path begins with; 302 leads to 200."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = int(self.path.split("/")[1])
        time.sleep(4.0 if status == 403 else 0.0)
        body = b"<html><body><p>Welcome<br></body></html>"
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/200/login")
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def silent() -> Iterator[str]:
    """The URL of a server that accepts connections and does nothing more."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """What the cases name. Others may go through it, unlike through pytest's."""
    with tempfile.TemporaryDirectory(prefix="rm", dir="/tmp") as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "no.ini").write_text("this is\n[no INI file\n")
        (root / "binary.ini").write_bytes(bytes(range(256)))
        (root / "words.pth").write_text("words")
        torch.save(network("base", _small().model, 0).state_dict(), root / "other.pth")
        (root / "hidden.pth").write_bytes((root / "other.pth").read_bytes())
        for below in (
            "walls/train",
            "walls/valid",
            "locked",
            "hidden/train/fgr",
            "open/blind",
            "pairs/train/fgr",
            "pairs/train/pha",
            "pairs/valid",
        ):
            (root / below).mkdir(parents=True)
        (root / "open").chmod(0o777)
        (root / "open/blind").chmod(0o333)
        open_run(_small(storage=str(root / "runs")), Store.open(str(root / "runs"), "begun"))
        for name in ("fgr/a.jpg", "pha/a.png"):
            (root / "pairs/train" / name).write_bytes(b"x")
        (root / "hidden/train/fgr").chmod(0)
        (root / "hidden.pth").chmod(0)
        yield root


def _small(**options: Any) -> RunConfig:
    return build(
        "base",
        {"name": "begun", "synthetic": 8, "steps": 1, "backbone": "mobilenetv2", "device": "cpu"}
        | {"resolution": 32, "crop": "32", "batch_size": 4, "valid_examples": 0, "precision": "fp32"}
        | options,
    )  # fmt: skip


@contextmanager
def without_rights() -> Iterator[None]:
    """Be another user than root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


Said = Callable[[Wrong], tuple[list[str], float]]


@pytest.fixture
def said(
    folder: Path,
    page: str,
    silent: str,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Said:
    """What a job says that is refused, and the seconds that it took."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    # Whoever comes to Ray says that nothing answers there.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")

    def fill(text: str) -> str:
        text = text.replace("{}", str(folder)).replace("[s3]", s3_server.endpoint)
        text = text.replace("[silent]", silent)
        return text.replace("[page]", page).replace("[tls]", page.replace("http:", "https:"))

    def run(wrong: Wrong) -> tuple[list[str], float]:
        keys = {n: s3_server.environment[n] for n in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        alone = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": DEAD}
        for name, value in (keys | alone | dict(wrong.environment)).items():
            monkeypatch.setenv(name, fill(value))
        flags = {name: fill(value) for name, value in (PLAIN | dict(wrong.flags)).items()}
        words = [word for pair in flags.items() if pair[1] != "-" for word in pair]
        began = time.monotonic()
        with without_rights() if wrong.bound else contextlib.nullcontext():
            code = job_main("base", words)
        seconds = time.monotonic() - began
        printed = capfd.readouterr()
        assert (code, printed.out) == (2, "")
        return printed.err.splitlines(), seconds

    return run


@pytest.mark.parametrize("case", [*ENVIRONMENT, *PATHS])
def test_a_wrong_start_is_one_line_within_seconds(
    said: Said, folder: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = (ENVIRONMENT | PATHS)[case]
    lines, seconds = said(wrong)
    with capfd.disabled():
        print(f"\n| {case} | {seconds:.1f} s | `{lines[-1].replace(str(folder), '...')}` |", end="")
    assert lines[-1].startswith("raymat: error: " + wrong.line.replace("{}", str(folder)))
    assert len(lines) == 1 or lines[0].startswith("waiting for ")
    assert len(lines) <= 2
    assert seconds < SECONDS


def test_what_takes_longer_is_said_to_be_waited_for(said: Said) -> None:
    lines, seconds = said(Wrong("", {"AWS_ENDPOINT_URL": "[page]/403"}))
    assert seconds > 3
    assert lines[0] == "waiting for an answer from s3://bucket/runs/run"
    assert lines[1].startswith(f"raymat: error: {WRITE}permission denied (")
