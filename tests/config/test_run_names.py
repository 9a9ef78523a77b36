"""Laws of names of runs: a new run's folder can be copied to any system, and a run that is there goes on under its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymat.cli.main import main
from raymat.config.run_names import name_problem
from raymat.errors import ConfigError
from raymat.storage.store import Store
from raymat.train.run.open_run import open_run
from raymat.train.run.run_file import require_portable_name
from tests.support.kit import tiny

DEVICE = "is a device on Windows, which has no folder of that name: choose another"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("CON", f"--name CON {DEVICE}"),
        ("nul.portraits", f"--name nul.portraits {DEVICE}"),
        ("Lpt1", f"--name Lpt1 {DEVICE}"),
        ("portraits.", "--name portraits. ends with a dot, which Windows leaves out: choose another"),
        ("x" * 129,
         "--name has 129 characters, more than 128, which not every storage holds: choose a shorter one"),
        ("x" * 128, None),
        ("console", None),
        ("com", None),
        ("a.con", None),
        ("portraits-2026.11.29_b", None),
    ],
)  # fmt: skip
def test_a_name_that_some_system_cannot_hold_is_named(name: str, problem: str | None) -> None:
    assert name_problem(name) == problem


@pytest.mark.parametrize("name", ["aux", "x" * 300])
def test_a_new_run_of_such_a_name_is_refused_before_anything_is_made(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["base", "--synthetic", "8", "--storage", str(tmp_path / "runs"), "--name", name]) == 2
    )
    assert capsys.readouterr().err == f"raymat: error: {name_problem(name)}\n"
    assert not (tmp_path / "runs").exists()


def test_a_run_that_has_such_a_name_goes_on(tmp_path: Path) -> None:
    config = tiny("base", tmp_path, "aux")
    store = Store.open(config.storage, config.name)
    with pytest.raises(ConfigError, match="is a device on Windows"):
        require_portable_name(store, config.name)
    open_run(config, store)
    require_portable_name(store, config.name)
