"""`raymat average`: one network from several, with batch-norm statistics of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from raymat.analysis.averaging.averager import DATA, Average, OnSkip, Recipe
from raymat.analysis.averaging.averager import average as average_networks
from raymat.cli.inputs import device_of, print_note
from raymat.config.command_line import parse_options
from raymat.config.options import OptionGroup, Spelling, at_least
from raymat.config.sections import Device
from raymat.console import columns, count, size
from raymat.errors import ConfigError
from raymat.export.weights_file import check_path, write_weights


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """Average the weights of several networks into one weights file.

    WHAT is a weights file or a run's checkpoint: FILE.pth, STORAGE/NAME (newest), STORAGE/NAME@1200,
    STORAGE/NAME@best, STORAGE/NAME/checkpoints/step-...; all but a file also with @ema at the end. All must be of
    one stage and backbone.

    The batch-norm statistics of the average are recomputed on training pictures, by default the run's own. Sums are
    in float64, and the order of the arguments changes no bit. In memory are the sum and one checkpoint at a time. A
    .pth gets a .json beside it that says what it was made from; a .safetensors has that in its header. Exit code: 0,
    or 2 if nothing was written.
    """

    what: Annotated[tuple[str, ...], Spelling("WHAT...", positional=True)]
    """Networks to average."""
    output: Annotated[str, Spelling("FILE", short="-o")]
    """The file to write, .pth or .safetensors, in a folder of this machine that exists."""
    force: bool = False
    """Replace the file if it exists."""
    greedy: bool = False
    """Start with the best network by validation and add, best first, each with which the average is at least as good
    (the greedy soup of Wortsman et al., 2022)."""
    metric: Literal["loss", "sad", "mse", "grad", "conn"] = "loss"
    """Validation metric of --greedy; the lowest value is the best."""
    examples: Annotated[int, at_least(1)] = 256
    """Training examples for the statistics, the first of the run's order, rounded up to whole batches."""
    dataset: Annotated[str | None, Spelling("URL")] = None
    """Folder (any fsspec URL) with train/ and valid/, each with fgr/ and pha/. Default: the run's."""
    backgrounds: Annotated[str | None, Spelling("URL")] = None
    """Folder (any fsspec URL) with train/ and valid/. Default: the run's."""
    synthetic: int | None = None
    """Make N procedural pairs and backgrounds instead of reading the two folders."""
    resolution: int | None = None
    """Side of the square that samples are warped to, in pixels. Default: the run's."""
    crop: Annotated[str | None, Spelling("MIN:MAX")] = None
    """Sides of the random crop in pixels. Default: the run's."""
    batch_size: int | None = None
    """Examples per batch. Default: the run's."""
    valid_examples: int | None = None
    """Validation examples of --greedy. Default: the run's."""
    device: Device = "auto"
    """Device to compute on; auto is cuda if torch finds one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.what:
            raise ConfigError("expected what to average: raymat average A B ... -o FILE")

    @property
    def recipe(self) -> Recipe:
        """How to average."""
        data = {n: v for n in DATA if (v := getattr(self, n)) is not None}
        return Recipe(greedy=self.greedy, metric=self.metric, examples=self.examples, data=data)


def main(argv: Sequence[str]) -> int:
    """Run `raymat average A B C -o FILE` and return the exit code. Raises RaymatError if nothing is written."""
    options = parse_options(Options, argv, "raymat average")
    found, written = average(options, print_note)
    print(text(options, found, written))
    return 0


def average(options: Options, on_skip: OnSkip = lambda note: None) -> tuple[Average, int]:
    """Average and write the file; returns the file's bytes, too. Raises RaymatError if nothing is written."""
    check_path(options.output, options.force)
    found = average_networks(options.what, options.recipe, device_of(options.device), on_skip)
    check_path(options.output, options.force)  # again: averaging took a while
    weights = {name: tensor.cpu() for name, tensor in found.network.state_dict().items()}
    return found, write_weights(options.output, weights, found.about)


def text(options: Options, found: Average, written: int) -> str:
    """Format what was averaged, or how each candidate fared, and the file as the last line."""
    lines = [
        f"{one.what}{f' ({one.checkpoint})' if one.checkpoint else ''}" for one in found.sources
    ]
    if found.trials:
        rows = [("candidate", f"{options.metric} alone", "with it", "")]
        for t in found.trials:
            verdict = "taken" if t.taken else "refused"
            rows.append((t.name, f"{t.alone:.6g}", f"{t.together:.6g}", verdict))
        lines = [columns(rows)]
    made = f"average of {count(len(found.sources), 'network')}"
    statistics = f"statistics of {count(found.examples, 'example')}"
    return "\n".join([*lines, f"{options.output}: {size(written)}, {made}, {statistics}"])
