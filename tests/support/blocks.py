"""Blocks of code in documents, the commands in them, and what each block's mark says of it.

A mark is a comment in the line before a block, which no reader sees: `<!-- runs -->` where a test runs each command of it,
`<!-- needs an account -->` and the like where nothing here can, so that its commands are only read by raymat's parsers.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NEEDS = ("an account", "a cluster", "a GPU", "footage", "minutes", "a network")
"""What a block may need that tests do not have."""
MARK = re.compile(rf"<!-- (runs|needs (?:{'|'.join(NEEDS)})) -->")
PROGRAMS = {
    *("raymat", "ray", "python", "pip", "make", "git", "pytest", "mkdocs", "tensorboard"),
    *("aws", "packer", "kubectl", "sky", "sbatch", "docker", "ffmpeg", "curl", "tar", "sudo"),
    *(".", "export", "for", "bash", "cp", "kill", "cd", "uv"),
}
"""By the first word a line is known for a command."""
COMMENT = re.compile(r"(?:^|\s+)#(?!\w{6}\b).*$")


class Block(NamedTuple):
    """A block, its place, its mark ("" if there is none) and its lines."""

    document: Path
    line: int
    mark: str
    lines: tuple[str, ...]

    @property
    def commands(self) -> list[str]:
        """Its commands without comments, each on one line."""
        found: list[str] = []
        for line in "\n".join(self.lines).replace("\\\n", " ").splitlines():
            command = COMMENT.sub("", line).strip()
            if command and command.split()[0].removeprefix("$").split("=")[
                0
            ] in PROGRAMS | _variables(line):
                found.append(" ".join(command.split()))
        return found

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"


def _variables(line: str) -> set[str]:
    """The name of a variable that a line sets for its command."""
    set_first = re.match(r"\s*([A-Z_]+)=\S+ \w", line)
    return {set_first[1]} if set_first else set()


def blocks_of(document: Path) -> Iterator[Block]:
    """The fenced and the indented blocks of a document."""
    lines = document.read_text(encoding="utf-8").splitlines()
    number, mark = 0, ""
    while number < len(lines):
        line, first = lines[number], number
        if line.startswith("```"):
            number = (
                next(n for n in range(number + 1, len(lines)) if lines[n].startswith("```")) + 1
            )
            yield Block(document, first + 1, mark, (*lines[first + 1 : number - 1],))
            mark = ""
        elif line.startswith("    ") and (first == 0 or not lines[first - 1].strip()):
            while number < len(lines) and (
                lines[number].startswith("    ") or not lines[number].strip()
            ):
                number += 1
            yield Block(document, first + 1, mark, (*(each[4:] for each in lines[first:number]),))
            mark = ""
        else:
            if line.strip():
                marked = MARK.fullmatch(line.strip())
                mark = marked[1] if marked else ""
            number += 1


def raymat_commands(command: str) -> Iterator[list[str]]:
    """The words after `raymat` of each of its commands in a line, also of those that another program starts."""
    for part in re.split(r"&&|;|\||>", command):
        try:
            words = shlex.split(part)
        except ValueError:
            words = part.split()
        for place, word in enumerate(words):
            job = re.fullmatch(r"(?:\S*/)?jobs/(base|refine)\.py", word)
            if job:
                yield [job[1], *words[place + 1 :]]
            elif word == "raymat" and (
                place == 0 or words[place - 1] in ("--", "-m") or "=" in words[place - 1]
            ):
                yield words[place + 1 :]
