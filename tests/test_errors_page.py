"""docs/errors.md has an entry for every line by which raymat says that something is wrong, and none that it does not say."""

from __future__ import annotations

import re

import pytest

from tests.support.messages import Message, messages
from tests.support.paths import ROOT

PAGE = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
ENTRIES = [
    double or single
    for double, single in re.findall(r"^- (?:`` (.+?) ``|`([^`]+)`)", PAGE, re.MULTILINE)
]
FEWEST_LETTERS = 6
"""A text with fewer of its own is found by nobody: it is made of others, which have entries."""

MADE_OF_OTHERS = {
    "analysis/selection.py": 1,
    "checkpoint/catalog.py": 1,
    "checkpoint/integrity.py": 1,
    "checkpoint/local_cache.py": 1,
    "checkpoint/manifest.py": 1,
    "checkpoint/reader.py": 1,
    "cli/pictures/prepare.py": 1,
    "cluster/driver/ray_watch.py": 2,
    "cluster/spot/drain.py": 3,
    "cluster/spot/metadata.py": 1,
    "cluster/spot/metadata_request.py": 3,
    "config/flags.py": 1,
    "config/options.py": 4,
    "config/prices.py": 2,
    "data/dataset/discovery.py": 2,
    "data/dataset/growth.py": 3,
    "data/dataset/layout_hints.py": 3,
    "data/dataset/roots.py": 1,
    "inference/background_fit.py": 1,
    "inference/video_footage.py": 1,
    "model/pretrained.py": 1,
    "model/weights_reader.py": 1,
    "storage/output_files.py": 1,
    "storage/store.py": 1,
    "storage/urls.py": 1,
    "train/run/first_weights.py": 1,
    "train/run/lease/lease.py": 1,
    "train/run/run_file.py": 1,
    "train/validation/result.py": 1,
}
"""How many errors of a file have no words of their own. One more needs its words in COMPOSED of tests/support/messages.py."""


def lines() -> list[Message]:
    return [message for message in messages() if message.letters >= FEWEST_LETTERS]


def test_every_line_has_an_entry() -> None:
    missing = sorted({f"{m.text}    ({m.file})" for m in lines() if m.text not in ENTRIES})
    assert missing == [], "add `- `the line`` and what to do to docs/errors.md"


def test_every_entry_is_a_line() -> None:
    assert sorted({*ENTRIES} - {m.text for m in lines()}) == []
    assert sorted({e for e in ENTRIES if ENTRIES.count(e) > 1}) == []


def test_what_is_made_of_other_lines_is_known() -> None:
    found: dict[str, int] = {}
    for message in messages():
        if message.letters < FEWEST_LETTERS and not message.warning:
            found[message.file] = found.get(message.file, 0) + 1
    assert found == MADE_OF_OTHERS


@pytest.mark.parametrize(
    "line",
    [
        "no space left there (…); free some, a run can keep fewer checkpoints",
        "--dataset and --backgrounds go together: one of them is missing",
        "must be a positive multiple of 4",
        "files without a partner of the same name in fgr/ or pha/ in",
        "workers failed: …",
    ],
)
def test_lines_are_found_however_they_are_made(line: str) -> None:
    assert line in {message.text for message in messages()}
