"""The pages that are made of the code are what the code makes of them now."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import raymat
from raymat.cli.main import COMMANDS
from raymat.config.run import all_options
from tests.support.paths import ROOT
from tests.support.reference import PAGES


@pytest.mark.parametrize(("page", "make"), PAGES.items(), ids=[*PAGES])
def test_a_page_of_the_reference_is_up_to_date(page: str, make: Callable[[], str]) -> None:
    """`python -m tests.support.reference` writes it anew."""
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == make()


def test_every_flag_and_every_name_is_there() -> None:
    commands, api = ((ROOT / "docs" / page).read_text(encoding="utf-8") for page in PAGES)
    assert [
        name for name, option in all_options().items() if f"`{option.flag}" not in commands
    ] == []
    assert [name for name in COMMANDS if f"raymat {name}" not in commands] == []
    assert [name for name in raymat.__all__ if name[0] != "_" and f"{name}" not in api] == []
    assert "object at 0x" not in api + commands
