"""Files of the user's that bear the names of packages: commands refuse them, or import the packages all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import raymat
from raymat.config.shadows import PACKAGES, find_shadow

ROOT = Path(raymat.__file__).resolve().parents[1]
COMMAND = "import sys; from raymat.cli.main import main; sys.exit(main(['verify', 'nothing']))"


def said(tmp_path: Path, path: str) -> tuple[int, str]:
    """The exit code and the error of a command with this PYTHONPATH."""
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[0] = {str(ROOT)!r}; {COMMAND}"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "name",
    ["torch.py", "ray/__init__.py", "yaml.py", "numpy.abi3.so", "queue.py", "email/__init__.py"],
)
def test_a_pythonpath_with_a_file_in_the_place_of_a_package_is_refused(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise SystemExit('imported')\n")
    first = tmp_path / name.partition("/")[0]
    package = first.name.partition(".")[0]
    code, error = said(tmp_path, f"{ROOT}{os.pathsep}{tmp_path}")
    assert (code, error) == (
        2,
        f"raymat: error: {first} takes the place of the package {package}: rename it, "
        f"or take {tmp_path} out of PYTHONPATH\n",
    )


def test_a_pythonpath_of_the_users_own_modules_or_of_installed_packages_is_none_of_raymats_business(
    tmp_path: Path,
) -> None:
    # Folders without __init__.py, and names that are built into Python.
    for name in (
        "my_losses.py",
        "data",
        "raymat",
        "ray",
        "torch",
        "torch.old.py",
        "time.py",
        "io.py",
    ):
        path = tmp_path / name
        path.touch() if path.suffix else path.mkdir()
    assert find_shadow(tmp_path) is None
    (tmp_path / "torch.py").touch()
    assert find_shadow(tmp_path) == tmp_path / "torch.py"
    (tmp_path / "torch-2.13.0.dist-info").mkdir()
    assert find_shadow(tmp_path) is None
    assert find_shadow(tmp_path / "nothing") is None
    assert find_shadow(ROOT) is None


@pytest.mark.parametrize("name", ["torch.py", "json.py", "tempfile.py"])
def test_an_empty_entry_of_pythonpath_is_the_working_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("raise SystemExit('imported')\n")
    assert said(tmp_path, f"{os.pathsep}{ROOT}") == (
        2,
        f"raymat: error: {name} takes the place of the package {name[:-3]}: rename it, "
        "or take its empty entry out of PYTHONPATH\n",
    )


@pytest.mark.parametrize("name", ["torch.py", "json.py", "tempfile.py"])
def test_python_m_raymat_imports_nothing_from_the_working_directory(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("raise SystemExit('imported')\n")
    command = [sys.executable, "-m", "raymat", "base", "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_package_that_raymat_requires_is_guarded() -> None:
    needed = {
        canonicalize_name(requirement.name)
        for requirement in map(Requirement, requires("raymat") or ())
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }
    names = packages_distributions()
    guarded = {canonicalize_name(n) for package in PACKAGES for n in names.get(package, ())}
    assert needed - guarded == set()
