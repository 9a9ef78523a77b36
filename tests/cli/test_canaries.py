"""No command takes, prints or stores a secret in a URL, wherever it stands in whichever option."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from raymat.cli.main import COMMANDS as KNOWN
from raymat.cli.main import main
from raymat.config.flags import read_yaml
from raymat.config.options import Option, options_of
from raymat.config.run import all_options, build
from raymat.errors import ConfigError
from raymat.storage.urls import redact_urls

CANARY = "cAn4ry"

URLS = [
    f"s3://KEY:{CANARY}@bucket/runs/x",
    f"s3://KEY:{CANARY}/slash@bucket/runs/x",
    f"s3://KEY:sla/{CANARY}@bucket/runs/x",
    f"s3://KEY:{CANARY}",
    f"s3://KEY:{CANARY}/bucket/x",
    f"s3://KEY%3A{CANARY}%40bucket/x",
    f"s3:/KEY:{CANARY}@bucket/x",
    f"s3:////KEY:{CANARY}@bucket/x",
    f"S3://KEY:{CANARY}@bucket/x",
    f" s3://KEY:{CANARY}@bucket/x",
    f"gs://{CANARY}@bucket/x",
    f"abfs://container:{CANARY}@account/x",
    f"az://container/x?se=2030&sig={CANARY}",
    f"https://user:{CANARY}@host/x.pth",
    f"https://{CANARY}@host/x.pth",
    f"https://host/x.pth?X-Amz-Signature={CANARY}",
    f"https://host/x.pth?download=true&token={CANARY}",
    f"https://host/x.pth?{CANARY}",
    f"https://host/x.pth#access_token={CANARY}",
    f"https://host/x?next=https://other/{CANARY}",
    f"sftp://user:{CANARY}@host/x",
    f"redis://:{CANARY}@host/x",
    f"zip://a.csv::s3://KEY:{CANARY}@bucket/b.zip",
    f"simplecache::https://user:{CANARY}@host/x",
    f"s3://bucket/x,https://user:{CANARY}@host/y",
    f"/folder,https://user:{CANARY}@host/y",
]

TRAIN = ["base", "--name", "run", "--steps", "1"]
MADE = ["--synthetic", "8"]
COMMANDS: dict[str, list[str]] = {
    "--dataset": [*TRAIN, "--backgrounds", "/walls", "--dataset", "{}"],
    "--dataset=": [*TRAIN, "--backgrounds", "/walls", "--dataset={}"],
    "--backgrounds": [*TRAIN, "--dataset", "/pairs", "--backgrounds", "{}"],
    "--init": [*TRAIN, *MADE, "--init", "{}"],
    "--init @ema": [*TRAIN, *MADE, "--init", "{}@ema"],
    "--storage": [*TRAIN, *MADE, "--storage", "{}"],
    "--config": [*TRAIN, *MADE, "--config", "{}"],
    "--nearby": [*TRAIN, *MADE, "--nearby", "{}"],
    "--logger": [*TRAIN, *MADE, "--logger", "{}"],
    "a number": [*TRAIN, *MADE, "--seed", "{}"],
    "a choice": [*TRAIN, *MADE, "--backbone", "{}"],
    "a name": ["base", "--name", "{}", "--steps", "1", *MADE],
    "a stray word": [*TRAIN, *MADE, "{}"],
    "an unknown flag": [*TRAIN, *MADE, "--storrage={}"],
    "refine": ["refine", *TRAIN[1:], *MADE, "--init", "{}"],
    "a command": ["{}"],
    "checkpoints": ["checkpoints", "{}"],
    "verify": ["verify", "{}"],
    "restarts": ["restarts", "{}"],
    "prune": ["prune", "{}", "--keep", "1"],
    "select": ["select", "{}"],
    "diff, first": ["diff", "{}", "b.pth"],
    "diff, second": ["diff", "a.pth", "{}"],
    "diff --picture": ["diff", "a.pth", "b.pth", "--picture", "{}"],
    "average": ["average", "a.pth", "{}", "-o", "x.pth"],
    "average -o": ["average", "a.pth", "b.pth", "-o", "{}"],
    "average --dataset": ["average", "a.pth", "-o", "x.pth", "--dataset", "{}"],
    "evaluate": ["evaluate", "{}"],
    "evaluate --json": ["evaluate", "a.pth", "--json", "{}"],
    "evaluate --worst": ["evaluate", "a.pth", "--worst", "{}"],
    "evaluate --backgrounds": ["evaluate", "a.pth", "--backgrounds", "{}"],
    "export": ["export", "{}", "-o", "x.onnx"],
    "export -o": ["export", "a.pth", "-o", "{}"],
}

Said = Callable[[list[str]], str]


@pytest.fixture
def said(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Said:
    """What a command says that is refused with one line, and leaves nothing behind."""
    monkeypatch.chdir(tmp_path)

    def run(words: list[str]) -> str:
        assert main(words) == 2
        printed = capfd.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("raymat: error: ")
        assert printed.err.count("\n") == 1
        return printed.err

    return run


@pytest.mark.parametrize("place", COMMANDS)
def test_no_command_shows_or_stores_a_secret_in_a_url(
    said: Said, tmp_path: Path, place: str
) -> None:
    first = 3 * list(COMMANDS).index(place)
    for number in range(first, first + 3):  # together all of them, four times
        url = URLS[number % len(URLS)]
        line = said([word.replace("{}", url) for word in COMMANDS[place]])
        assert CANARY not in line, url
    assert list(tmp_path.iterdir()) == []


def options(command: str) -> list[Option]:
    """All options of a command that take text; of a run's, for `base` alone."""
    found = {} if command == "refine" else all_options()
    if command not in ("base", "refine"):
        target = inspect.getclosurevars(KNOWN[command].run).nonlocals["target"]
        found = options_of(importlib.import_module(target.partition(":")[0]).Options)
    return [option for option in found.values() if "str" in str(option.kind)]


def test_no_option_that_there_is_takes_a_secret_in_a_url(said: Said, tmp_path: Path) -> None:
    places = [(command, option) for command in KNOWN for option in options(command)]
    assert len(places) > 40
    assert {"matte", "events", "runs", "check"} < {command for command, _ in places}
    for number, (command, option) in enumerate(places):
        url = URLS[number % len(URLS)]
        words = [] if option.spelling.positional else [option.flag]
        line = said([command, *words, url])
        assert "Missing" not in line, (command, option.name)
        assert CANARY not in line, (command, option.name, url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["storage", "dataset", "init", "nearby", "seed", "unknown"])
def test_no_configuration_file_brings_a_secret_in(tmp_path: Path, key: str) -> None:
    for url in URLS:
        for text in (f"{key}: '{url}'\n", f"{url}: [\n"):
            (tmp_path / "run.yaml").write_text(text)
            with pytest.raises(ConfigError) as refused:
                build("base", {"name": "run", **read_yaml(str(tmp_path / "run.yaml"))})
            assert CANARY not in redact_urls(refused.value.line), url  # as it is printed


@pytest.mark.parametrize("option", ["storage", "dataset", "backgrounds", "init"])
def test_a_program_cannot_bring_a_secret_in_either(option: str) -> None:
    folders = {"dataset": "/pairs", "backgrounds": "/walls"}
    make = functools.partial(build, "base")
    for url in URLS:
        with pytest.raises(ConfigError) as refused:
            make({"name": "run", "steps": 1, **folders, option: url})
        assert CANARY not in refused.value.line


def test_the_refusal_says_what_to_do_instead(said: Said) -> None:
    assert said([*TRAIN, *MADE, "--storage", "s3://KEY:SECRET@bucket/runs"]) == (
        "raymat: error: --storage: the URL s3://bucket/runs carries credentials; leave them out and give them by the "
        "environment, the provider's files or the machine's role\n"
    )
    assert said(["checkpoints", "https://host/runs/x?sig=SECRET"]) == (
        "raymat: error: the URL https://host/runs/x carries a query, which may hold a signature or a token; fetch the "
        "file first and give its path, or give the bucket's own URL (s3://...)\n"
    )
