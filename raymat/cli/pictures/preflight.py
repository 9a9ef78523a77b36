"""`raymat check`: what can be known of a run before a cluster is paid for."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import yaml

from raymat.analysis.preflight.findings import Report
from raymat.analysis.preflight.run_checks import examine
from raymat.analysis.preflight.sample_sheet import sample_sheet
from raymat.analysis.preflight.subject import Subject
from raymat.cli.inputs import print_note
from raymat.config.flags import read_options
from raymat.config.options import OptionGroup, Spelling, at_least
from raymat.config.run import RunConfig, build, to_dict
from raymat.config.sections import Stage
from raymat.console import ProgressBar
from raymat.storage.output_files import check_output, write_output

_NAME = "unnamed"
"""Of a run that no option names."""
_SETTLED = (
    *("checkpoint_interval", "valid_interval", "log_images_interval"),
    *("precision", "recipe", "batch_norm"),
)
"""Options whose value a run finds when it begins: from its length, its device, or as the version has it."""


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """Look at a run's pictures, storage and weights before it begins; nothing is trained and nothing is kept.

    Takes the options of `raymat base`, or after the word refine those of `raymat refine`, and the same --config; the least
    is --dataset and --backgrounds. Without --all a sample of the pictures is read. Exit code: 0 if all is fine, 1 if
    something was found, 2 if something could not be looked at.
    """

    all: bool = False
    """Read and decode every picture."""
    sample: Annotated[int, at_least(1)] = 200
    """Pairs, and backgrounds, of each of train/ and valid/ to look at without --all."""
    json: bool = False
    """Print the findings as JSON."""
    contact_sheet: Annotated[str | None, Spelling("FILE.png")] = None
    """Write a picture of the first 8 training examples as the network will see them, any fsspec URL."""
    print_config: bool = False
    """Print the run's whole configuration as YAML, which --config reads, and look at nothing."""


def main(argv: Sequence[str]) -> int:
    """Run `raymat check [STAGE] OPTIONS` and return the exit code. Raises ConfigError for options that cannot be used."""
    stages = get_args(Stage)
    stage: Stage = argv[0] if argv and argv[0] in stages else "base"  # type: ignore[assignment]
    words = argv[1:] if argv and argv[0] in stages else argv
    about = inspect.getdoc(Options) or ""
    named, own = read_options(stage, words, "raymat check", about, Options)
    options = Options(**own)
    config = build(stage, {"name": _NAME} | named)
    if options.print_config:
        print(to_yaml(config, leave_out=() if "name" in named else ("name",)), end="")
        return 0
    check_output("--contact-sheet", options.contact_sheet, ".png")
    subject, report = _examine(config, options, stores=bool({"storage", "name"} & named.keys()))
    print(json.dumps(report.to_dict(), indent=2) if options.json else "\n".join(_lines(report)))
    if options.contact_sheet is not None and subject.trainable:
        sheet = sample_sheet(subject)
        write_output("--contact-sheet", options.contact_sheet, sheet)
    elif options.contact_sheet is not None:
        print_note("no contact sheet was drawn: there is nothing yet to train on")
    return report.code


def to_yaml(config: RunConfig, leave_out: Sequence[str] = ()) -> str:
    """Format a configuration as a file that `--config` reads; the stage is said in a comment, since the command names it."""
    flat: dict[str, Any] = to_dict(config)
    stage = flat.pop("stage")
    told = {n: v for n, v in flat.items() if v is not None and n not in leave_out}
    length = ("epochs",) if flat["steps"] is None else ()
    later = [name for name in (*length, *_SETTLED) if flat[name] is None]
    note = f"# settled when the run begins: {', '.join(later)}\n" if later else ""
    return f"# raymat {stage} --config FILE\n{note}" + yaml.safe_dump(told, sort_keys=False)


def _examine(config: RunConfig, options: Options, stores: bool) -> tuple[Subject, Report]:
    sample = None if options.all else options.sample
    bar = ProgressBar("check", noun="files")
    return examine(Subject(config=config, sample=sample, stores=stores, progress=bar))


def _lines(report: Report) -> list[str]:
    """Return the report's lines, on a terminal wrapped to its width: elsewhere a finding is one line."""
    if not sys.stdout.isatty():
        return report.text()
    width = max(40, shutil.get_terminal_size().columns)
    return [part for line in report.text() for part in _wrapped(line, width)]


def _wrapped(line: str, width: int) -> list[str]:
    indent = len(line) - len(line.lstrip()) + 4
    return textwrap.wrap(
        line,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
        replace_whitespace=False,
    ) or [line]
