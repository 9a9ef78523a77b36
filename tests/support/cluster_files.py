"""Copies of cluster.yaml with changes, and `raymat cluster check` of them from a folder that has what they mount."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymat.cli.main import main
from tests.support.paths import ROOT

CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


def changed(*changes: tuple[str, Any]) -> dict[str, Any]:
    """cluster.yaml with an address of one's own, and with fields at dotted paths set, or without those that are None."""
    config = copy.deepcopy(CLUSTER)
    config["provider"]["ssh_from"] = ["203.0.113.7/32"]
    for path, value in changes:
        *parents, last = path.split(".")
        inner = config
        for name in parents:
            inner = inner[name]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    return config


@pytest.fixture
def check(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Cluster files are looked at from the folder of what they mount, by one who has a token."""
    for local in {v for v in CLUSTER["file_mounts"].values() if not v.startswith("~")}:
        place = tmp_path / local
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(ROOT / local)
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    token = home / ".ray/auth_token"
    token.write_text("token")
    token.chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)

    return Check(tmp_path / "cluster.yaml", capsys)


class Check:
    """`raymat cluster check` of one file after the other."""

    def __init__(self, path: Path, capsys: Any) -> None:
        self._path, self._capsys, self._errors = path, capsys, ""

    def __call__(self, config: Any, *options: str) -> tuple[int, list[str]]:
        """Look at a configuration, text or bytes: exit code and lines."""
        if isinstance(config, dict):
            config = yaml.safe_dump(config, sort_keys=False)
        self._path.write_bytes(config if isinstance(config, bytes) else config.encode())
        code = main(["cluster", "check", str(self._path), *options])
        out, self._errors = self._capsys.readouterr()
        return code, out.splitlines()

    def errors(self) -> str:
        """What the last look wrote to standard error."""
        return self._errors
