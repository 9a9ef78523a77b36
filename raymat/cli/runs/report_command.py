"""`raymat report`: a run's whole past, or several runs compared, as one HTML page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from raymat.analysis.report.page import make_page
from raymat.analysis.report.story import read_story
from raymat.config.command_line import parse_options
from raymat.config.options import Spelling
from raymat.config.prices import Prices
from raymat.console import size
from raymat.errors import ConfigError
from raymat.storage.output_files import check_output, write_output
from raymat.train.run.run_url import open_run_url


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a run's report: one HTML page that needs no network, with its timeline, goodput, curves, checkpoints and events.

    Several runs are compared, too. Exit code: 0, or 2 if a run cannot be read or the page not be written.
    """

    urls: Annotated[tuple[str, ...], Spelling("URL", positional=True)] = ()
    """The runs: STORAGE/NAME, any fsspec URLs."""
    output: Annotated[str, Spelling("FILE.html", short="-o")] = "report.html"
    """The page."""
    price: Prices | None = None
    """What a worker costs in an hour, in any currency, as spot=0.52,ondemand=1.62 or a .yaml file of both: the time is also
    told in money."""

    def __post_init__(self) -> None:
        if not self.urls:
            raise ConfigError("expected a run: raymat report STORAGE/NAME -o report.html")


def main(argv: Sequence[str]) -> int:
    """Run `raymat report URL... -o FILE.html` and return the exit code. Raises RaymatError for what the user can mend."""
    options = parse_options(Options, argv, "raymat report")
    check_output("--output", options.output, ".html")
    stories = [read_story(open_run_url(url), options.price) for url in options.urls]
    page = make_page(stories, time.time()).encode(errors="backslashreplace")
    write_output("--output", options.output, page)
    print(f"{options.output}: {size(len(page))}")
    for story in stories:
        for gap in story.gaps:
            print(f"{story.summary.name}: {gap}")
    return 0
