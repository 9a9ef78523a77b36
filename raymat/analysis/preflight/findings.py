"""Findings of a preflight: what was found, where, and what to do; alike ones are one, with a count and examples."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from raymat.storage.urls import redact_urls

Severity = Literal["error", "warning", "unseen", "note", "skipped"]
"""error: the run would fail, or train on something else. warning: likely a mistake. unseen: could not be looked at.
note: a fact. skipped: was not asked for, or there is nothing to look at."""

EXAMPLES = 3
"""Of one kind of finding, at most."""
FINE, FOUND, UNSEEN = 0, 1, 2
"""Exit codes."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    severity: Severity
    what: str
    """What is wrong, without names and numbers of this one: alike findings have the same."""
    where: str = ""
    """The file."""
    detail: str = ""
    """What is said of this file alone."""
    advice: str = ""
    """What to do."""
    data: Any = None
    """What a note says, for programs."""

    @property
    def kind(self) -> tuple[str, ...]:
        """What alike findings have in common: the detail counts without its numbers and names."""
        pattern = re.sub(r"\S*[\d/]\S*", "#", self.detail)
        return (self.severity, self.what, self.advice, pattern)


@dataclass
class Found:
    """Alike findings: their number, and the first of them."""

    first: Finding
    count: int = 0
    examples: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Count one more."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(finding)

    @property
    def line(self) -> str:
        """The finding in one line, URLs without secrets; a note's may be several."""
        places = [f"{e.where} ({e.detail})" if e.detail else e.where for e in self.examples]
        more = ["..."] if self.count > len(self.examples) else []
        number = f"{self.count:,} x " if self.count > 1 else ""
        parts = [number + self.first.what, ", ".join([*places, *more])]
        text = ": ".join(filter(None, parts))
        return redact_urls("; ".join(filter(None, (text, self.first.advice))))


@dataclass
class Section:
    """The findings of one check, in the order in which their kinds were first found."""

    title: str
    found: dict[tuple[str, ...], Found] = field(default_factory=dict)

    def add(self, findings: Iterable[Finding]) -> None:
        """Add findings as they come; memory grows with their kinds, not with their number."""
        for finding in findings:
            self.found.setdefault(finding.kind, Found(finding)).add(finding)

    def of(self, severity: Severity) -> list[Found]:
        """Return the findings of one severity."""
        return [found for found in self.found.values() if found.first.severity == severity]

    def text(self) -> list[str]:
        """Return the section's lines: its title with the result, what is wrong, then its notes."""
        kinds: tuple[Severity, ...] = ("error", "warning", "unseen")
        wrong = [f"  {kind}: {found.line}" for kind in kinds for found in self.of(kind)]
        notes = [f"  {line}" for found in self.of("note") for line in found.line.splitlines()]
        return [f"{self.title}: {self._result(wrong)}", *wrong, *notes]

    def _result(self, wrong: list[str]) -> str:
        reasons = [found.line for found in self.of("skipped")]
        if wrong or not (reasons or not self.found):
            return "look here" if wrong else "fine"
        return ": ".join(["not looked at", *reasons])

    def to_dict(self) -> dict[str, Any]:
        """Return the section as JSON has it."""
        return {"title": self.title, "findings": [_as_json(found) for found in self.found.values()]}


@dataclass(frozen=True)
class Report:
    """What a preflight found, section by section."""

    sections: tuple[Section, ...]

    def count(self, severity: Severity) -> int:
        """Return how many kinds of findings have this severity."""
        return sum(len(section.of(severity)) for section in self.sections)

    @property
    def code(self) -> int:
        """The exit code: 0 nothing found, 1 found something, 2 something could not be looked at, and nothing else was found."""
        if self.count("error") or self.count("warning"):
            return FOUND
        return UNSEEN if self.count("unseen") else FINE

    @property
    def line(self) -> str:
        """The result in one line."""
        numbers = {
            "error": self.count("error"),
            "warning": self.count("warning"),
            "not looked at": self.count("unseen"),
        }
        return ", ".join(f"{n} {_plural(what, n)}" for what, n in numbers.items() if n) or "fine"

    def text(self) -> list[str]:
        """Return all lines for people."""
        return [*(line for s in self.sections for line in s.text()), f"result: {self.line}"]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        return {"code": self.code, "sections": [s.to_dict() for s in self.sections]}


def _plural(what: str, number: int) -> str:
    return what if number == 1 or " " in what else f"{what}s"


def _as_json(found: Found) -> dict[str, Any]:
    first, examples = found.first, [e for e in found.examples if e.where]
    told = {"severity": first.severity, "what": redact_urls(first.what), "count": found.count}
    if first.advice:
        told["advice"] = first.advice
    if examples:
        told["examples"] = [
            {"where": redact_urls(e.where), "detail": redact_urls(e.detail)} for e in examples
        ]
    return told if first.data is None else told | {"data": first.data}
