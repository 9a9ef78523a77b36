"""Prices are read from text or a file, or refused with what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymat.config.prices import Prices
from raymat.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "prices"),
    [
        ("spot=0.52,ondemand=1.62", Prices(0.52, 1.62)),
        ("ondemand=1.62, spot=0.52", Prices(0.52, 1.62)),
        ("spot=0", Prices(0.0)),
    ],
)
def test_prices_are_read_in_any_order_and_written_as_they_were(text: str, prices: Prices) -> None:
    assert Prices.parse(text) == prices == Prices.parse(str(prices))


@pytest.mark.parametrize(
    "text", ["", "0.52", "ondemand=1", "spot=1,spot=2", "spot=-1", "spot=nan", "spot=1,owned=2"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Prices.parse(text)


def test_a_file_of_prices_is_read(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("spot: 0.52\nondemand: 1.62\n", encoding="utf-8")
    assert Prices.parse(str(path)) == Prices(0.52, 1.62)


@pytest.mark.parametrize("content", ["spot: [1", "- 1", "spot: {a: 1}", "\0", "[" * 10_000])
def test_a_file_of_something_else_is_refused_by_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"prices\.yaml|expected a price"):
        Prices.parse(str(path))


def test_a_file_in_which_a_price_comes_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("spot: 1\nspot: 2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected spot=PRICE"):
        Prices.parse(str(path))


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^/nowhere/prices\.yaml: no such file$"):
        Prices.parse("/nowhere/prices.yaml")
