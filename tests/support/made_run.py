"""A run's folder with checkpoints in it, and the `raymat` command: fixtures for tests of what reads finished runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch import Tensor

from raymat.checkpoint.manifest import CheckpointId, Manifest
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.distributed.world import World
from raymat.storage.digest import digest
from raymat.storage.store import Store


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class MadeRun:
    """A run's folder, with checkpoints as training writes them but a tiny state."""

    def __init__(self, storage: str) -> None:
        self.url = f"{storage}/run"
        self.store = Store.open(storage, "run")

    def commit(
        self,
        step: int,
        attempt: int = 1,
        *,
        losses: dict[int, float | None] | None = None,
        tensors: dict[str, Tensor] | None = None,
        ranks: int = 2,
        run: str = "id",
        **extra: Any,
    ) -> CheckpointId:
        """A checkpoint of world 2; with `ranks` 1 it is torn. `losses`: of its validations, by step."""
        default = {"model/a": torch.full((50,), float(step)), "optimizer/a": torch.zeros(60)}
        validations = [{"step": s, "loss": loss} for s, loss in (losses or {}).items()]
        snapshot = Snapshot.take(step, tensors or default, {"validations": validations} | extra)
        checkpoint = CheckpointId(step, attempt)
        for rank in range(ranks):
            write_share(self.store, checkpoint, snapshot, World(rank, 2), run)
        return checkpoint

    def files(self) -> dict[str, int]:
        """Every file of the run and its size."""
        return {info.path: info.size for info in self.store.list(temporary=True)}

    def names(self) -> list[str]:
        """The checkpoints' folders in which anything is left."""
        paths = [path.split("/") for path in self.files()]
        return sorted({parts[1] for parts in paths if parts[0] == "checkpoints"})


@pytest.fixture
def local(tmp_path: Path) -> MadeRun:
    return MadeRun(str(tmp_path / "runs"))


@pytest.fixture(params=["local", "memory"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MadeRun]:
    """An empty run's folder, on a disk and in memory."""
    fsspec.filesystem("memory").store.clear()
    yield MadeRun(str(tmp_path / "runs") if request.param == "local" else "memory://runs")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def raymat(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str], list[str]]]:
    """The `raymat` command: exit code, and the lines on stdout and stderr."""
    from raymat.cli.main import main

    def run(*argv: str) -> tuple[int, list[str], list[str]]:
        code = main(argv)
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err.splitlines()

    return run


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


NEWER_FILES = ["manifest-00001-of-00002.json", "state.json", "training state"]


def write_newer(
    run: MadeRun, step: int, what: str, *, attempt: int = 1, ranks: int = 2
) -> CheckpointId:
    """A checkpoint of which one of NEWER_FILES is of a format that does not exist yet, and every digest is right."""
    extra = {"format": 9} if what == "training state" else {}
    checkpoint = run.commit(step, attempt, ranks=ranks, **extra)
    if what == "training state":
        return checkpoint
    folder = f"checkpoints/{checkpoint}"
    changed = run.store.read(f"{folder}/{what}").replace(b'"format":1', b'"format":9')
    if what != "state.json":
        content = json.loads(changed) | {"format": 9}
        del content["digest"]
        content["digest"] = digest([_canonical(content)])
        changed = _canonical(content) + b"\n"
    run.store.write(f"{folder}/{what}", changed)
    if what == "state.json":
        path = f"{folder}/manifest-00000-of-00002.json"
        manifest = Manifest.from_json(run.store.read(path))
        files = tuple(
            replace(e, digest=digest([changed])) if e.name == what else e for e in manifest.files
        )
        run.store.write(path, replace(manifest, files=files).to_json())
    return checkpoint
