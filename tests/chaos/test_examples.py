"""The scripts of examples/ do what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
SCRIPTS = {
    "train_and_matte.py": "is at step 60",
    "survive_a_kill.py": "killing worker 1 of 2",
    "resume_elsewhere.py": "40 steps, each once, each on the same examples",
}


@pytest.mark.parametrize(("script", "said"), SCRIPTS.items(), ids=[*SCRIPTS])
def test_an_example_does_what_it_says(script: str, said: str, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), str(tmp_path / "out")],
        env=os.environ | {"PATH": path, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert said in done.stdout
    if script == "train_and_matte.py":
        assert (tmp_path / "out/cut.png").stat().st_size > 0


def test_every_example_is_run() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {*SCRIPTS}
