"""docs/licences.md lists what is installed with raymat, by name; its versions are constraints.txt's."""

from __future__ import annotations

import re
import sys

import pytest

from tests.support.licences import licence, required
from tests.support.paths import ROOT

ROWS = dict(
    re.findall(
        r"^\| ([\w-]+) \| (.+) \|$", (ROOT / "docs/licences.md").read_text("utf-8"), re.MULTILINE
    )
)
for heading in ("package", "---"):
    del ROWS[heading]


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="other Pythons need other packages")
def test_every_package_that_raymat_needs_is_listed_with_its_licence() -> None:
    """`make licences` writes it anew."""
    assert sorted(ROWS) == required()
    assert {"torch", "ray", "botocore", "urllib3"} < set(ROWS)
    assert [name for name, stated in ROWS.items() if stated == "?"] == []


def test_what_a_package_states_is_read_from_its_metadata() -> None:
    assert licence("numpy").startswith("BSD-3-Clause")
    assert licence("s3fs").startswith("BSD")
