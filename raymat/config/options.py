"""Options declared as dataclass fields: type, checks and meaning stand at the field.

    class CheckpointConfig(OptionGroup):
        keep: Annotated[int, FREE, at_least(1)] = 3
        \"""Newest committed checkpoints to keep.\"""

The text below a field is its help text.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import docstring_parser

from raymat.config.values import describe, fits, read_value
from raymat.errors import ConfigError
from raymat.storage.urls import url_problem


class OnResume(enum.Enum):
    """Rules for an option's value when a run is resumed."""

    FREE = "may change"
    LENGTH = "may change; the run is then continued to its new length"
    FIXED = "may not change: the weights would not be an undisturbed run's"
    GROWABLE = "may change only where the run's dataset has grown"
    ADDABLE = "may be given to a run that has none, but not changed or dropped"
    FIXED_BY_PLATEAU = "may not change where validations steer the learning rates"


FREE, LENGTH, FIXED, GROWABLE, ADDABLE, FIXED_BY_PLATEAU = OnResume


@dataclass(frozen=True)
class Check:
    """A rule for an option's value; `words` follow the flag where `holds` is false of the value."""

    holds: Callable[[Any], bool]
    words: str


def at_least(low: int) -> Check:
    """Require a value of `low` or more."""
    return Check(lambda value: value >= low, f"must be at least {low}")


def matches(pattern: str, words: str) -> Check:
    """Require text that matches a regular expression as a whole."""
    return Check(lambda value: re.fullmatch(pattern, value) is not None, words)


MORE_THAN_0 = Check(lambda value: value > 0, "must be more than 0")
NOT_NEGATIVE = Check(lambda value: value >= 0, "must not be negative")
MULTIPLE_OF_4 = Check(
    lambda value: value > 0 and value % 4 == 0, "must be a positive multiple of 4"
)
THREADS = Check(lambda value: 1 <= value <= 1024, "must be in 1..1024")  # torch dies of far more
FRACTION = Check(lambda value: 0 <= value < 1, "must be in [0, 1)")
FACTOR = Check(lambda value: 0 < value < 1, "must be between 0 and 1 (exclusive)")


@dataclass(frozen=True)
class Spelling:
    """An option's form on a command line, where its name and type do not determine it."""

    metavar: str | None = None
    positional: bool = False
    short: str | None = None
    repeatable: bool = False
    """Whether its flag may be given more than once: the values are the lines of one text."""


REPEATABLE = Spelling(repeatable=True)

Url = Annotated[str, Spelling("URL", positional=True)]
"""The type of a URL that is given without a flag."""


@dataclass(frozen=True)
class Option:
    """One field of a dataclass of options."""

    owner: type
    name: str
    kind: Any
    """The type, without the None of an option that may stay unset."""
    optional: bool
    default: Any
    """dataclasses.MISSING where the option must be given."""
    marks: tuple[Any, ...]

    @property
    def flag(self) -> str:
        """The option's long flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def help(self) -> str:
        """The text below the field, on one line."""
        return _field_docs(self.owner).get(self.name, "")

    @property
    def on_resume(self) -> OnResume | None:
        """The rule for resumed runs; None if the field has none."""
        return next((mark for mark in self.marks if isinstance(mark, OnResume)), None)

    @property
    def spelling(self) -> Spelling:
        """The option's form on a command line."""
        return next((mark for mark in self.marks if isinstance(mark, Spelling)), Spelling())

    def read(self, text: str) -> Any:
        """Read a value as a flag or YAML gives it; raises ConfigError."""
        try:
            return read_value(self.kind, text)
        except ConfigError as error:
            raise ConfigError(f"{self.flag}: {error}") from None

    def check(self, value: Any) -> None:
        """Check a value's type and the field's rules; raises ConfigError."""
        if value is None and self.optional:
            return
        self.refuse_bad_urls(value)
        if not fits(value, self.kind):
            expected = describe(self.kind) + (" or nothing" if self.optional else "")
            raise ConfigError(f"{self.flag} must be {expected}, got {value!r}")
        for mark in self.marks:
            if isinstance(mark, Check) and not mark.holds(value):
                shown = repr(value) if isinstance(value, str) else value
                raise ConfigError(f"{self.flag} {mark.words}, got {shown}")

    def refuse_bad_urls(self, value: Any) -> None:
        """Refuse text with a URL that no option takes, as one with a secret; raises ConfigError."""
        texts = value.split("\n") if isinstance(value, str) else value
        for text in texts if isinstance(texts, (list, tuple)) else ():
            problem = url_problem(text) if isinstance(text, str) else None
            if problem is not None:
                flag = "" if self.spelling.positional else f"{self.flag}: "
                raise ConfigError(flag + problem)


class OptionGroup:
    """Base of frozen dataclasses whose values are checked when they are built.

    Raises:
        ConfigError: a value of another type, or one that its field's checks refuse.
    """

    def __post_init__(self) -> None:
        for name, option in options_of(type(self)).items():
            option.check(getattr(self, name))


def options_of(owner: type) -> dict[str, Option]:
    """Return the fields of a dataclass as options, by name."""
    hints = typing.get_type_hints(owner, include_extras=True)
    return {f.name: _option(owner, f, hints[f.name]) for f in dataclasses.fields(owner)}


def _option(owner: type, field: dataclasses.Field[Any], hint: Any) -> Option:
    marks: tuple[Any, ...] = getattr(hint, "__metadata__", ())
    hint = hint.__origin__ if marks else hint
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    (kind,) = (kind for kind in kinds if kind is not types.NoneType)
    return Option(owner, field.name, kind, types.NoneType in kinds, field.default, marks)


@functools.cache
def _field_docs(owner: type) -> dict[str, str]:
    documented = docstring_parser.parse_from_object(owner).params
    return {doc.arg_name: " ".join((doc.description or "").split()) for doc in documented}


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)
