"""Prices of machines, as text or in a file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import yaml

from raymat.errors import ConfigError, StorageError
from raymat.storage.faults import backend_errors, classify
from raymat.storage.input_files import read_file
from raymat.storage.urls import redact

_EXPECTED = "expected spot=PRICE,ondemand=PRICE (ondemand may be left out), or a .yaml file of both"


@dataclass(frozen=True)
class Prices:
    """What a worker costs in an hour, in any one currency, written `spot=0.52,ondemand=1.62`."""

    spot: float
    ondemand: float | None = None
    """None: not known."""

    @classmethod
    def parse(cls, text: str | Prices) -> Prices:
        """Read `"spot=0.52,ondemand=1.62"`, in any order, `"spot=0.52"`, or a .yaml file with `spot: 0.52`.

        Raises:
            ConfigError: it is something else, or the file cannot be read.
        """
        if isinstance(text, Prices):
            return text
        if text.endswith((".yaml", ".yml")):
            return cls._of(_entries(text), text)
        pairs = (part.partition("=") for part in text.split(","))
        return cls._of(((name.strip(), price) for name, _, price in pairs), text)

    @classmethod
    def _of(cls, entries: Iterable[tuple[str, str]], source: str) -> Prices:
        found: dict[str, float] = {}
        for name, price in entries:
            if name not in ("spot", "ondemand") or name in found:
                raise ConfigError(f"{_EXPECTED}, got {source!r}")
            found[name] = _price(price)
        if "spot" not in found:
            raise ConfigError(f"{_EXPECTED}, got {source!r}")
        return cls(**found)

    def __str__(self) -> str:
        told = f"spot={self.spot:.15g}"
        return told if self.ondemand is None else f"{told},ondemand={self.ondemand:.15g}"


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise ConfigError(f"expected a price for an hour, as in spot=0.52, got {text!r}")
    return price


def _entries(source: str) -> list[tuple[str, str]]:
    try:
        # Not loaded: of a name that comes twice, that would keep the second.
        root = yaml.compose(read_file(source), Loader=yaml.BaseLoader)
    except FileNotFoundError:
        raise ConfigError(f"{redact(source)}: no such file") from None
    except (yaml.YAMLError, ValueError, RecursionError, StorageError) as error:
        raise ConfigError(f"{redact(source)} cannot be read as YAML") from error
    except backend_errors() as error:
        raise ConfigError(f"{redact(source)} cannot be read: {classify(error).advice}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{redact(source)}: {_EXPECTED}")
    return [(_text(name), _text(price)) for name, price in root.value]


def _text(node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else "several values"
