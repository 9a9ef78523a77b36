"""Types of option values, and how a value is read from text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from raymat.config.prices import Prices
from raymat.errors import ConfigError

_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Range:
    """An inclusive range of positive whole numbers, written MIN:MAX; N stands for N:N."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ConfigError(f"expected MIN:MAX with 0 < MIN <= MAX, got {self.low}:{self.high}")

    @classmethod
    def parse(cls, text: str | int | Range) -> Range:
        """Read `"1:4"`, `"3"` or `3`; raises ConfigError for anything else."""
        if isinstance(text, Range):
            return text
        match = re.fullmatch(r"\s*(\d+)\s*(?::\s*(\d+)\s*)?", str(text))
        if match is None:
            raise ConfigError(f"expected N or MIN:MAX in whole numbers, got {text!r}")
        return cls(int(match[1]), int(match[2] or match[1]))

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


@dataclass(frozen=True)
class Duration:
    """A length of time, written `90`, `90s`, `30m` or `1.5h`."""

    seconds: float

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise ConfigError(f"expected more than no time, got {self.seconds} s")

    @classmethod
    def parse(cls, text: str | float | Duration) -> Duration:
        """Read `"30m"`, `"90"` or `90`; raises ConfigError for anything else."""
        if isinstance(text, Duration):
            return text
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([smh]?)\s*", str(text))
        if match is None:
            raise ConfigError(f"expected a time such as 90s, 30m or 1.5h, got {text!r}")
        return cls(float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]])

    def __str__(self) -> str:
        return f"{self.seconds:.15g}s"


@dataclass(frozen=True)
class Interval:
    """A number of steps, or `auto`: what loses least."""

    steps: int | None = None
    """None: auto."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"expected at least 1, got {self.steps}")

    @classmethod
    def parse(cls, text: str | int | Interval) -> Interval:
        """Read `"auto"`, `"300"` or `300`; raises ConfigError for anything else."""
        if isinstance(text, Interval):
            return text
        word = str(text).strip()
        if word != "auto" and re.fullmatch(r"\d+", word) is None:
            raise ConfigError(f"expected a whole number or auto, got {text!r}")
        return cls(None if word == "auto" else int(word))

    def __str__(self) -> str:
        return "auto" if self.steps is None else str(self.steps)


@dataclass(frozen=True)
class Limit:
    """A number, or a share of one: `20` or `2.5%`."""

    number: float
    is_share: bool = False

    @classmethod
    def parse(cls, text: str | float | Limit) -> Limit:
        """Read `"20"`, `20` or `"2.5%"`; raises ConfigError for anything else."""
        if isinstance(text, Limit):
            return text
        match = re.fullmatch(r"\s*(\d+|\d+\.\d*(?=\s*%))\s*(%?)\s*", str(text))
        if match is None or (match[2] and float(match[1]) > 100):
            raise ConfigError(f"expected a whole number or a share such as 2.5%, got {text!r}")
        return cls(float(match[1]), match[2] == "%")

    def of(self, whole: float) -> float:
        """Return the limit where the whole is this much."""
        return self.number / 100 * whole if self.is_share else self.number

    def __str__(self) -> str:
        return f"{self.number:.15g}{'%' if self.is_share else ''}"


@dataclass(frozen=True)
class Numbers:
    """Finite numbers, written with commas between: `0.1,0.05`."""

    values: tuple[float, ...]

    @classmethod
    def parse(cls, text: str | float | Numbers) -> Numbers:
        """Read `"0.1,0.05"`, `"0.1"` or `0.1`; raises ConfigError for anything else."""
        if isinstance(text, Numbers):
            return text
        try:
            found = tuple(float(number) for number in str(text).split(","))
        except ValueError:
            found = (math.nan,)
        if not all(map(math.isfinite, found)):
            raise ConfigError(f"expected numbers like 0.5,0.4, got {text!r}")
        return cls(found)

    def __str__(self) -> str:
        return ",".join(f"{number:.15g}" for number in self.values)


PARSED = (Range, Duration, Interval, Limit, Numbers, Prices)
"""Types that have a notation of their own."""


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value has this type: any finite number is a float, a bool is no number."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, get_origin(kind) or kind)


def describe(kind: Any) -> str:
    """Describe the values of a type, as in "a whole number" or "one of auto, cpu, cuda"."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return _EXPECTED.get(kind) or str(kind.__name__)


def read_value(kind: Any, text: str) -> Any:
    """Read a value of this type from text.

    Raises:
        ConfigError: what was expected and what came.
    """
    if kind in PARSED:
        return kind.parse(text)
    try:
        if get_origin(kind) is Literal:
            value = {str(choice): choice for choice in get_args(kind)}[text]
        else:
            value = _SWITCH[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        value = None
    if not fits(value, kind):
        raise ConfigError(f"expected {describe(kind)}, got {text!r}")
    return value
