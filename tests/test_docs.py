"""The documents name only what exists: files, folders, tests and make targets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "deploy/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / ".github").rglob("*.md")),
]
PACKAGE = ROOT / "raymat"
ROOTS = {"raymat", "tests", "docs", "benchmarks", "deploy", "jobs", ".ci", ".github", ".githooks"}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
WINGS = {path.name for path in PACKAGE.iterdir()}
PATH = re.compile(r"(?<![\w/:@.-])(?:\.?\w[\w.*-]*/)+[\w.*-]*(?:::\w+)?")
FILE = re.compile(r"(?<![\w/:@.*-])\w[\w-]*\.(?:py|md|toml)\b")


THEIRS = {
    "train_base.py",
    "train_refine.py",
    "data_path.py",
    "inference_webcam.py",
    "inference_video.py",
}
"""Scripts of BackgroundMattingV2, which two pages translate."""
SHADOWS = {"queue.py", "torch.py", "yaml.py"}
"""Files of a user that would hide a package: the documents warn of them. An environment in the clone may hold their like."""


def named(document: Path) -> str:
    return str(document.relative_to(ROOT))


def code_of(document: Path) -> Iterator[str]:
    """What stands between backticks, and indented lines outside of drawn trees."""
    text = document.read_text(encoding="utf-8")
    yield from re.findall(r"`([^`\n]+)`", text)
    for block in blocks_of(text):
        if not is_tree(block):
            yield from block


def blocks_of(text: str) -> Iterator[list[str]]:
    for block in re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE):
        yield block.splitlines()


def is_tree(block: list[str]) -> bool:
    return "raymat/" in {line.strip() for line in block}


def exists(path: str) -> bool:
    """Whether a path with `*` in it, from the root or from the package, leads to anything; `::` to a test of that file."""
    place, _, test = path.partition("::")
    found = [each for folder in (ROOT, PACKAGE) for each in folder.glob(place.rstrip("/"))]
    return any(not test or f"def {test}(" in each.read_text("utf-8") for each in found)


def in_clone(file: str) -> bool:
    """Whether a file of that name lies at the root or in a folder of the project: an environment beside it is none of it."""
    folders = [ROOT / name for name in {*ROOTS, "examples"}]
    return (ROOT / file).exists() or any(any(f.rglob(file)) for f in folders)


def missing_paths(code: str) -> Iterator[str]:
    for path in PATH.findall(code):
        first = path.partition("/")[0]
        if (first in ROOTS or (first in WINGS and ".py" in path)) and not exists(path):
            yield path
    for file in FILE.findall(code):
        if file not in THEIRS | SHADOWS and not in_clone(file):
            yield file


def missing_in_tree(block: list[str]) -> Iterator[str]:
    """A line's own names lie in the folder that it is indented below, files in its text anywhere in the line's folder."""
    above = [(-1, ROOT)]
    for line in block:
        indent = len(line) - len(line.lstrip())
        while above[-1][0] >= indent:
            above.pop()
        names = re.match(r"(?:[\w.-]+/(?: +|$))+|[\w.-]+\.\w+(?: +|$)", line.strip())
        own = names[0].split() if names else []
        yield from (name for name in own if not (above[-1][1] / name).exists())
        if own:
            above.append((indent, above[-1][1] / own[0]))
        text = line.strip()[len(names[0]) if names else 0 :]
        yield from (file for file in FILE.findall(text) if not [*above[-1][1].rglob(file)])


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    missing = [path for code in code_of(document) for path in missing_paths(code)]
    for block in blocks_of(document.read_text(encoding="utf-8")):
        if is_tree(block):
            missing += missing_in_tree(block)
    assert missing == []


def test_a_file_of_the_environment_is_none_of_the_projects() -> None:
    assert [*missing_paths("see functional.py and rng.py")] == ["functional.py"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_make_target_that_a_document_names_exists(document: Path) -> None:
    named = {
        target
        for code in code_of(document)
        for target in re.findall(r"(?:^|[;&|] *)make ([\w-]+)", code.strip())
    }
    assert named - TARGETS == set()


LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)")
ELSEWHERE = {"changelog.md", "clusters.md", "contributing.md", "security.md"}
"""Pages of the site that docs/site_pages.py takes from elsewhere in the project."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_link_leads_to_a_file(document: Path) -> None:
    """Whether it leads to a heading of it is what `make docs` looks at."""
    places = LINK.findall(document.read_text(encoding="utf-8"))
    assert [place for place in places if not (document.parent / place).exists()] == []


def test_every_page_has_its_place_in_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    placed = re.findall(r": ([\w-]+\.md)$", text, re.MULTILINE)
    assert sorted(placed) == sorted(
        {page.name for page in (ROOT / "docs").glob("*.md")} | ELSEWHERE
    )


def test_the_page_of_benchmarks_names_every_script() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+\.py)` \|", page, re.MULTILINE)
    assert listed == sorted(path.name for path in (ROOT / "benchmarks").glob("*.py"))


def test_what_does_not_exist_is_found() -> None:
    code = "`raymat/nowhere.py`, `data/rng.py`, `lost.py`, `tests/test_docs.py::test_nothing`, `s3://raymat/x`"
    assert [*missing_paths(code)] == [
        "raymat/nowhere.py",
        "tests/test_docs.py::test_nothing",
        "lost.py",
    ]
    tree = [
        "raymat/",
        "  gone/   nothing",
        "  train/  lost.py, trainer.py: a step",
        "  cli/  config/",
    ]
    assert [*missing_in_tree(tree)] == ["gone/", "lost.py"]
