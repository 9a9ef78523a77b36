"""Every command of the documents runs, or says by a mark what it needs and is read by the parser of its command."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raymat.cli.main import COMMANDS, main
from raymat.storage.store import Store
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.run.open_run import open_run
from tests.support import runs
from tests.support.blocks import Block, blocks_of, raymat_commands
from tests.support.command_lines import read
from tests.support.datakit import encode, photo, write, write_dataset
from tests.support.paths import ROOT
from tests.support.videos import write_video
from tests.test_docs import DOCUMENTS

BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
WITH_COMMANDS = [block for block in BLOCKS if block.commands]
RUNNING = [block for block in WITH_COMMANDS if block.mark == "runs"]
READ = [
    (block, words)
    for block in WITH_COMMANDS
    for command in block.commands
    for words in raymat_commands(command)
]
FINDING = ("check", "cluster", "diff", "select")
"""Commands whose exit code 1 says that something was found."""
INFORMS = {"--help", "--help-all", "--version", "-h"}


def place(block: Block) -> str:
    return f"{block.document.name}-{block.line}"


@pytest.mark.parametrize("block", WITH_COMMANDS, ids=place)
def test_every_block_with_commands_is_marked(block: Block) -> None:
    assert block.mark, (
        f"{block}: put `<!-- runs -->` or `<!-- needs ... -->` before it: {block.commands}"
    )


@pytest.mark.parametrize("block", BLOCKS, ids=place)
def test_only_blocks_with_commands_are_marked(block: Block) -> None:
    assert block.commands or not block.mark


@pytest.mark.parametrize("block", WITH_COMMANDS, ids=place)
def test_the_commands_that_a_document_shows_can_be_read(block: Block) -> None:
    """By raymat's own parsers: each flag exists and takes such a value."""
    for command in block.commands:
        for words in raymat_commands(command):
            if words[:1] != ["COMMAND"] and not INFORMS & {*words}:
                read(words)


def test_every_command_of_raymat_is_shown() -> None:
    assert {words[0] for _, words in READ if words} >= {*COMMANDS} - {"demo"}  # by make


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the documents speak of it: data/, walls/, and runs/portraits."""
    folder = tmp_path_factory.mktemp("documents")
    write_dataset(str(folder), pairs=6, backgrounds=6, valid=3)
    places = {
        "dataset": str(folder / "data"),
        "backgrounds": str(folder / "walls"),
        "synthetic": None,
    }
    options = {
        "steps": 4,
        "valid_interval": 2,
        "valid_examples": 2,
        "precision": "fp32",
        "batch_size": 2,
        **places,
    }
    config = runs.tiny(folder / "runs", "portraits", "refine", **options)
    runs.train_here(open_run(config, runs.store_of(config)))
    _write_footage(folder)
    return folder


def _write_footage(folder: Path) -> None:
    """What the documents cut out: me.jpg before room.jpg, the same as folders and as a video, and a network as a file."""
    for name, seed in (("me", 1), ("room", 2), ("beach", 3), ("wall", 2)):
        write(f"{folder}/{name}.jpg", encode(photo(seed), "JPEG"))
    for place in ("photos", "empty"):
        write(f"{folder}/{place}/1.jpg", encode(photo(1), "JPEG"))
    write_video(folder / "clip.mp4", [photo(1), photo(1)])
    shutil.copy(ROOT / "cluster.yaml", folder)
    assert main(["export", f"{folder}/runs/portraits", "-o", f"{folder}/portraits.pth"]) == 0


@pytest.mark.slow
def test_every_column_of_a_runs_metrics_is_described(made: Path) -> None:
    described = (ROOT / "docs/curves.md").read_text(encoding="utf-8")
    columns = {
        name for row in read_metrics(Store.open(f"{made}/runs", "portraits")) for name in row
    }
    assert {name for name in columns if f"`{name}`" not in described} == set()


@pytest.fixture
def inside(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the working directory of what a block runs."""
    copy = tmp_path / "here"
    shutil.copytree(made, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("block", RUNNING, ids=place)
def test_commands_run_as_a_document_shows_them(
    block: Block, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in block.commands:
        words = [*raymat_commands(command)]
        if len(words) == 1 and not re.search(r"[|;&>$]|^\w+=", command):
            try:
                code = main(words[0])
            except SystemExit as done:  # --help
                code = int(done.code or 0)
        else:
            code = subprocess.run(["bash", "-ec", command], stdout=subprocess.DEVNULL).returncode
        found = (0, 1) if words and words[0][0] in FINDING else (0,)
        assert code in found, (
            command,
            capsys.readouterr().err[-2000:],
        )
