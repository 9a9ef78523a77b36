"""The licences of what raymat needs, as docs/licences.md lists them: `python -m tests.support.licences > docs/licences.md`."""

from __future__ import annotations

import importlib.metadata
import re
import textwrap
from collections.abc import Iterable, Mapping

from packaging.requirements import Requirement

RAYMATS = importlib.metadata.requires("raymat") or []
CUDAS = re.compile("(nvidia|cuda|triton)")
"""What only a torch with CUDA brings."""

HEAD = """# Licences of what raymat needs

raymat is under the Apache License 2.0 (`LICENSE`). Its report carries uPlot (MIT,
`raymat/analysis/report/assets/uPlot.LICENSE.txt`). The wheel contains nothing else of others; `pip install` brings these, each
under its own licence, as its metadata states it. On Linux torch with CUDA brings NVIDIA's packages too (`nvidia-*`, `cuda-*`),
under NVIDIA's own terms, and `triton` (MIT). The extra `video` brings PyAV,
whose wheels contain FFmpeg with encoders under the GPL.

Made by `make licences` from what is installed; it lists no versions.

| package | licence |
| --- | --- |
"""


def required() -> list[str]:
    """The canonical names of all that raymat needs without extras, with what those need in turn, where it is installed."""
    found: dict[str, None] = {}
    waiting = [
        r for r in map(Requirement, RAYMATS) if r.marker is None or "extra" not in str(r.marker)
    ]
    while waiting:
        requirement = waiting.pop()
        name = canonical(requirement.name)
        marks = [{"extra": extra} for extra in (requirement.extras or {""})]
        if name == "raymat" or not _applies(requirement, [{"extra": ""}]):
            continue
        seen = name in found and not requirement.extras
        found[name] = None
        if not seen:
            try:
                needs = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                del found[name]
                continue
            waiting += [
                _plain(r) for r in map(Requirement, needs) if _applies(r, [*marks, {"extra": ""}])
            ]
    return sorted(name for name in found if not CUDAS.match(name))


def _plain(requirement: Requirement) -> Requirement:
    requirement.marker = None
    return requirement


def _applies(requirement: Requirement, environments: Iterable[Mapping[str, str]]) -> bool:
    return requirement.marker is None or any(map(requirement.marker.evaluate, environments))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(name: str) -> str:
    """What a package's metadata states: an expression, classifiers, or a short text."""
    about = importlib.metadata.metadata(name)
    short = (about.get("License") or "").strip().split("\n")[0]
    classified = [
        c.rpartition(" :: ")[2]
        for c in about.get_all("Classifier") or []
        if c.startswith("License ::")
    ]
    classified = [c for c in classified if c != "OSI Approved"]
    stated = about.get("License-Expression") or ", ".join(classified) or short
    return textwrap.shorten(stated, 100, placeholder=" ...") or "?"


def page() -> str:
    """The whole of docs/licences.md."""
    return HEAD + "".join(f"| {name} | {licence(name)} |\n" for name in required())


if __name__ == "__main__":
    print(page(), end="")
