"""The package as it is given away: built from a copy of the project, whole, and able to train in an environment of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.chaos

TRAIN = [
    "base", "--synthetic", "8", "--backbone", "mobilenetv2", "--resolution", "48", "--crop", "32:48", "--batch-size", "2",
    "--device", "cpu", "--valid-examples", "0", "--steps", "3", "--name", "first",
]  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist that `make package` makes."""
    folder = tmp_path_factory.mktemp("package")
    copy = folder / "project"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        if not name.startswith("tests/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    out = folder / "dist"
    build = [sys.executable, "-m", "build", "--quiet", "--outdir", str(out), str(copy)]
    subprocess.run(build, check=True)
    return out


def test_the_wheel_holds_every_module_the_reports_assets_and_the_types_mark(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "raymat").rglob("*.py")}
    assert modules <= names
    assets = "raymat/analysis/report/assets"
    assert {
        "raymat/py.typed",
        f"{assets}/page.css",
        f"{assets}/page.js",
        f"{assets}/uPlot.iife.min.js",
        f"{assets}/uPlot.min.css",
    } <= names
    assert len([n for n in names if re.search(r"dist-info/licenses/.*LICENSE", n)]) == 2
    assert {n.partition("/")[0] for n in names} == {"raymat", "raymat-0.1.0.dist-info"}


def test_the_sdist_holds_what_a_cluster_needs(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        ".gitignore",  # what of it a job's package leaves out, environments among it
        ".rayignore",
        "cluster.yaml",
        "constraints.txt",
        "Dockerfile",
        "jobs/base.py",
        "jobs/refine.py",
    } <= names
    deploy = {str(p.relative_to(ROOT)) for p in (ROOT / "deploy").rglob("*") if p.is_file()}
    assert deploy <= names


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_it_trains_in_an_environment_of_its_own(built: Path, kind: str, tmp_path: Path) -> None:
    """From an empty folder, with the tested versions; some minutes, most of them pip's."""
    (package,) = built.glob(kind)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    programs = tmp_path / "env/bin"
    constraints = ROOT / "constraints.txt"
    install = [programs / "pip", "install", "-q", "--no-compile", "-c", constraints, package]
    subprocess.run(install, check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    environ = {"HOME": str(tmp_path), "PATH": f"{programs}:/usr/bin:/bin"}
    subprocess.run([programs / "raymat", *TRAIN], cwd=empty, env=environ, check=True, timeout=300)
    report = [programs / "raymat", "report", "runs/first", "-o", "first.html"]
    subprocess.run(report, cwd=empty, env=environ, check=True)
    assert "uPlot" in (empty / "first.html").read_text(encoding="utf-8")
