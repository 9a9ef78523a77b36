"""`raymat select`: the checkpoints of a run that are best by a metric, or the one before its curve flattens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from raymat.analysis.plateau import THRESHOLD
from raymat.analysis.selection import Choice, read_curve
from raymat.config.command_line import parse_options
from raymat.config.options import FACTOR, OptionGroup, Spelling, Url, at_least
from raymat.console import columns
from raymat.errors import ConfigError
from raymat.json_lines import tell
from raymat.train.run.run_url import open_run_url

FOUND, NOTHING = 0, 1


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """Name the checkpoints of a run that are best by a validation metric, best first.

    With --before-plateau, name the one to fine-tune from: the newest at or before the point where the curve flattens.
    The curve is the metric's best value so far, smoothed by a median of three. It is flat from the first point after
    which no --window of examples improves it by more than --threshold of itself. A curve that still improves has no
    such point.

    Only committed checkpoints whose digests all match are named. Exit code: 0, or 1 if there is no plateau, or 2 for
    an error.
    """

    url: Url
    """STORAGE/NAME of a run, any fsspec URL."""
    metric: str | None = None
    """A validation metric (loss, sad, ..., or ema_loss, ... of the averaged weights), or train_loss, the mean over the
    training rows since the previous checkpoint. Default: the run's --best-metric."""
    mode: Literal["min", "max"] | None = None
    """Whether the lowest or the highest value is best. Default: the run's --best-mode for its own metric, else min."""
    top: Annotated[int, at_least(1)] = 1
    """Maximum checkpoints to name."""
    before_plateau: bool = False
    """Name the checkpoint before the curve flattens instead of the best."""
    window: Annotated[int | None, at_least(1)] = None
    """Examples over which --before-plateau looks for an improvement. Default: a fifth of the curve."""
    threshold: Annotated[float, FACTOR] = THRESHOLD
    """Relative improvement per window below which --before-plateau calls the curve flat."""
    quiet: Annotated[bool, Spelling(short="-q")] = False
    """Print only URL@STEP, one a line, as --init and `raymat average` take it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.before_plateau and self.top != 1:
            raise ConfigError("--top and --before-plateau exclude each other")


def main(argv: Sequence[str]) -> int:
    """Run `raymat select URL` and return the exit code. Raises RaymatError if nothing can be chosen."""
    options = parse_options(Options, argv, "raymat select")
    choice = select(options)
    for note in choice.notes:
        tell(f"note: {note}", "warning")
    if not choice.points:
        tell(f"raymat: {choice.verdict}", "warning")
        return NOTHING
    print("\n".join(choice.names) if options.quiet else _text(choice))
    return FOUND


def select(options: Options) -> Choice:
    """Choose as the options say; errors as `read_curve` and `MetricCurve`."""
    curve = read_curve(open_run_url(options.url), options.metric, options.mode)
    if options.before_plateau:
        return curve.before_plateau(options.window, options.threshold)
    return curve.best(options.top)


def _text(choice: Choice) -> str:
    rows = [("checkpoint", "examples", choice.metric)]
    for name, point in zip(choice.names, choice.points, strict=True):
        rows.append((name, f"{point.examples:.0f}", f"{point.value:.6g}"))
    return "\n".join([columns(rows), choice.verdict]).rstrip("\n")
