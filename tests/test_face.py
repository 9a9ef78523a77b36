"""The face of the package: what `import raymat` gives, and what it does not load."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import raymat
from raymat import errors

ROOT = Path(__file__).parents[1]
ERRORS = {name for name in vars(errors) if name.endswith("Error")}
NAMES = {
    *("RunConfig", "build"),
    *("RunResult", "fit"),
    *("Store", "read_events", "read_metrics"),
    *("build_network", "read_state", "read_weights"),
    *("export_network", "__version__"),
}


def run_alone(script: str) -> str:
    """What a script prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_exported_names_are_these() -> None:
    assert set(raymat.__all__) == NAMES | ERRORS
    assert set(raymat.__all__) <= set(dir(raymat))


@pytest.mark.parametrize("name", sorted(NAMES | ERRORS))
def test_every_exported_name_is_there(name: str) -> None:
    assert getattr(raymat, name).__doc__ or name == "__version__"


def test_a_name_stays_what_it_is_whatever_else_was_imported() -> None:
    """A subpackage of the same name would take its place."""
    folders = {path.parent.name for path in (ROOT / "raymat").glob("*/__init__.py")}
    assert not folders & set(raymat.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'train_forever'"):
        _ = raymat.train_forever


def test_importing_it_loads_neither_torch_nor_ray_nor_opencv() -> None:
    heavy = "print(sorted({'torch', 'ray', 'cv2', 'numpy'} & set(sys.modules)))"
    assert run_alone(f"import sys, raymat; {heavy}") == "[]"


def test_errors_and_the_configuration_need_neither_torch_nor_ray() -> None:
    script = "import sys; from raymat import ConfigError, RunConfig, build, read_events"
    assert run_alone(f"{script}; print(sorted({{'torch', 'ray'}} & set(sys.modules)))") == "[]"


def test_the_program_in_the_readme_works() -> None:
    """But for the training itself, and on made pictures."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.partition("From a program:\n")[2].lstrip("\n").partition("\n\nWhile")[0]
    program = re.sub(r"^    ", "", block, flags=re.MULTILINE)
    program = program.replace('"dataset": ..., "backgrounds": ...', '"synthetic": 16, "steps": 1')
    assert program.startswith("from raymat import build, fit\n")
    configured = program.replace("fit(build", "assert callable(fit)\nprint(build")
    assert run_alone(configured).startswith("RunConfig(")


def test_a_worker_s_way_to_its_first_step_and_commit_imports_neither_sympy_nor_boto3(
    tmp_path: Path,
) -> None:
    """torch and TensorBoard would import them for most of a second each, where a whole restart takes a few."""
    script = (
        "import sys; from tests.support import runs; from raymat.distributed.world import World; "
        f"print(runs.train(World(), runs.tiny({str(tmp_path)!r}, 'run', steps=2)).step, "
        "sorted({'sympy', 'boto3', 'botocore'} & set(sys.modules)))"
    )
    assert run_alone(script).splitlines()[-1] == "2 []"
