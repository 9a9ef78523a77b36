"""`raymat evaluate`: matting metrics of several networks on the same examples, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch

from raymat.analysis.evaluation import Candidate, Measured, measure
from raymat.analysis.examples import ExampleRequest, Examples
from raymat.analysis.run_pictures import Split
from raymat.analysis.scores import ScoreReport, SeenExample, rows_of
from raymat.analysis.worst_examples import Worst
from raymat.cli.inputs import device_of, print_note
from raymat.config.command_line import parse_options
from raymat.config.options import MULTIPLE_OF_4, THREADS, OptionGroup, Spelling, at_least
from raymat.config.run import RunConfig
from raymat.config.sections import DataConfig, Device, Precision
from raymat.config.settled import precision_on
from raymat.console import ProgressBar
from raymat.errors import ConfigError
from raymat.storage.output_files import check_output, write_output
from raymat.train.run.selected_weights import Selected, read_weights

_REPLACED_SHOWN = 10

Metric = Literal["loss", "sad", "mse", "grad", "conn", "fgr_mse"]

_Folder = Annotated[str | None, Spelling("URL", repeatable=True)]


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """Measure networks as validation does, all on the same examples: SAD, MSE, Grad and Conn of alpha, MSE of the foreground.

    WHAT is a weights file or a run's checkpoint: FILE.pth, STORAGE/NAME (newest), STORAGE/NAME@1200, STORAGE/NAME@best,
    STORAGE/NAME/checkpoints/step-..., all but a file also with @ema at the end. All see the same pictures, by default
    those of the first run among them. Only files that you ask for are written. Exit code: 0, or 2 if something could
    not be read or written.
    """

    what: Annotated[tuple[str, ...], Spelling("WHAT...", positional=True)]
    """Networks to measure, one row each."""
    dataset: _Folder = None
    """Folder (any fsspec URL) with valid/ or train/, each with fgr/ and pha/. Default: the run's."""
    backgrounds: _Folder = None
    """Folder (any fsspec URL) with valid/ or train/. Default: the run's."""
    pair_suffix: str = ""
    """Ending of the mattes' names in --dataset that their foregrounds' lack, as _alpha."""
    skip_unpaired: bool = False
    """Leave out files of --dataset without a partner, instead of refusing it."""
    synthetic: int | None = None
    """Make N procedural examples instead."""
    split: Split = "valid"
    """Split of the dataset to measure on."""
    examples: Annotated[int | None, at_least(1)] = None
    """Number of examples, spread evenly over the split. Default: each pair once. With the run's own --valid-examples, the
    run's validation is reproduced, to the bit on the same kind of device."""
    resolution: Annotated[int | None, MULTIPLE_OF_4] = None
    """Side of the square in pixels, a multiple of 4. Default: the run's."""
    seed: int | None = None
    """Seed of backgrounds and warps. Default: the run's."""
    ensemble: bool = False
    """Add a row for the mean of all predictions."""
    device: Device = "auto"
    """Device to compute on; auto is cuda if torch finds one."""
    precision: Precision | None = None
    """Precision of the arithmetic. Default: the run's, if it ran on this kind of device."""
    threads: Annotated[int | None, THREADS] = None
    """CPU threads for computing. Default: the run's; other numbers round differently."""
    csv: Annotated[str | None, Spelling("FILE.csv")] = None
    """Write every example and the means to this file, any fsspec URL."""
    json: Annotated[str | None, Spelling("FILE.json")] = None
    """Write the same as JSON, with all that is known of each row."""
    worst: Annotated[str | None, Spelling("FILE.png")] = None
    """Write a picture of the 8 worst examples of the best row, any fsspec URL."""
    worst_by: Metric = "sad"
    """Metric that decides which row is best and which examples are worst."""

    @property
    def request(self) -> ExampleRequest:
        """What to measure on. Raises ConfigError if the dataset is named by halves or twice."""
        data, given = None, (self.dataset, self.backgrounds, self.synthetic)
        if given != (None, None, None):
            data = DataConfig(
                dataset=self.dataset,
                backgrounds=self.backgrounds,
                pair_suffix=self.pair_suffix,
                skip_unpaired=self.skip_unpaired,
                synthetic=self.synthetic,
                seed=0 if self.seed is None else self.seed,
            )
        return ExampleRequest(
            data=data,
            split=self.split,
            count=self.examples,
            resolution=self.resolution,
            seed=self.seed,
        )


def main(argv: Sequence[str]) -> int:
    """Run `raymat evaluate WHAT...` and return the exit code. Raises RaymatError if something cannot be read or written."""
    options = parse_options(Options, argv, "raymat evaluate")
    _check(options)
    device = device_of(options.device)
    selected = [read_weights(what, on_skip=_print_skipped) for what in options.what]
    config = next((one.config for one in selected if one.config is not None), None)
    precision = options.precision or _precision(config, device)
    threads = options.threads or (config.workers.threads if config else None)
    if threads is not None:
        torch.set_num_threads(threads)
    examples, data = options.request.open(selected)
    _note_other_resolutions(selected, examples.geometry.resolution)
    candidates = [Candidate.of(one, device, precision) for one in selected]
    del selected
    settings = {
        "data": data,
        "split": options.split,
        "resolution": examples.geometry.resolution,
        "seed": examples.seed,
        "device": device.type,
        "precision": precision,
    }
    worst = Worst(options.worst_by) if options.worst else None
    report = evaluate(candidates, examples, device, precision, settings, options.ensemble, worst)
    print(report.text)
    _write(options, report, worst)
    return 0


def evaluate(
    candidates: Sequence[Candidate],
    examples: Examples,
    device: torch.device,
    precision: Precision,
    settings: dict[str, Any] | None = None,
    ensemble: bool = False,
    worst: Worst | None = None,
) -> ScoreReport:
    """Measure all candidates on all examples, with a bar on stderr, and show each example to `worst`.

    Raises:
        DataError: pictures cannot be had.
    """
    seen: list[SeenExample] = []
    replaced = 0
    with ProgressBar("evaluate", noun="examples") as progress:
        progress.begin(examples.count)
        for measured in measure(
            candidates, examples, device=device, precision=precision, ensemble=ensemble
        ):
            seen.append(SeenExample.of(measured, examples))
            if worst is not None:
                worst.see(measured, seen[-1].name)
            replaced = _note_replaced(measured, replaced)
            progress.add(1)
    return ScoreReport(rows_of(candidates, ensemble), seen, settings or {})


def _write(options: Options, report: ScoreReport, worst: Worst | None) -> None:
    """Write the files that the options ask for."""
    if options.csv:
        write_output("--csv", options.csv, report.to_csv())
    if options.json:
        write_output("--json", options.json, report.to_json())
    if options.worst and worst is not None:
        write_output("--worst", options.worst, worst.png(report.best(options.worst_by)))


def _note_replaced(measured: Measured, before: int) -> int:
    """Note the first few pictures that could not be read; returns how many there are by now."""
    for one in measured.batch.replaced:
        before += 1
        if before <= _REPLACED_SHOWN:
            print_note(
                f"example {one.number}: another picture stands in for {one.path}: {one.reason}"
            )
        elif before == _REPLACED_SHOWN + 1:
            print_note("more pictures cannot be read")
    return before


def _check(options: Options) -> None:
    if not options.what:
        raise ConfigError("name what to evaluate: weights files or runs (raymat evaluate --help)")
    if options.ensemble and len(options.what) < 2:
        raise ConfigError("--ensemble is a mean of several predictions: name at least two")
    _ = options.request
    if options.worst_by == "loss" and options.ensemble:
        raise ConfigError("--worst-by loss: an ensemble has no loss, use another metric")
    check_output("--csv", options.csv)
    check_output("--json", options.json)
    check_output("--worst", options.worst, ".png")


def _print_skipped(checkpoint: object, reason: str) -> None:
    print_note(f"passed over: {reason}")


def _precision(config: RunConfig | None, device: torch.device) -> Precision:
    theirs = config and config.workers.device in (device.type, "auto") and config.optim.precision
    return theirs or precision_on(device.type)


def _note_other_resolutions(selected: Sequence[Selected], resolution: int) -> None:
    for one in selected:
        if one.config is not None and one.config.data.resolution != resolution:
            print_note(
                f"{one.what} was trained at {one.config.data.resolution} pixels, and is measured at {resolution}"
            )
