"""`raymat evaluate`: how good networks are at mattes, all on the same examples, as one table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import tyro

from raymat.analysis.evaluation import (
    Candidate,
    Examples,
    Measured,
    Split,
    contender,
    measure,
    spread,
)
from raymat.analysis.scores import ScoreReport, SeenExample
from raymat.analysis.worst_examples import Worst
from raymat.cli.inputs import device_of, kept_source
from raymat.config.run import STAGE_DEFAULTS, RunConfig
from raymat.config.sections import DataConfig, Device, Precision
from raymat.console import ProgressBar, parse_options
from raymat.data.batch import Geometry
from raymat.data.source import FolderSource, Source, SourceSpec, build_listing
from raymat.errors import ConfigError
from raymat.storage.output_files import check_output, write_output
from raymat.storage.urls import redact
from raymat.train.optim.mixed_precision import settled
from raymat.train.run.weights_reference import Selected, read_weights

_REPLACED_SHOWN = 10

Metric = Literal["loss", "sad", "mse", "grad", "conn", "fgr_mse"]

_Number = Annotated[int | None, tyro.conf.arg(metavar="N")]
_Folder = Annotated[str | None, tyro.conf.arg(metavar="URL")]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure networks as validation does, all on the same examples: SAD, MSE, Grad, Conn of alpha, MSE of the foreground.

    WHAT is a weights file or a run's checkpoint: FILE.pth, STORAGE/NAME (newest), STORAGE/NAME@1200, STORAGE/NAME@best,
    STORAGE/NAME/checkpoints/step-..., all but a file also with @ema at the end. With several all see the same pictures,
    which are those of the first run among them. Nothing is written but the files that are asked for. Exit code: 0, or 2
    if something could not be read or written.
    """

    what: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="WHAT...")]
    """What to measure, a row each."""
    dataset: _Folder = None
    """Folder (any fsspec URL) with valid/ or train/, below it fgr/ and pha/. Default: the run's."""
    backgrounds: _Folder = None
    """Folder (any fsspec URL) with valid/ or train/. Default: the run's."""
    synthetic: _Number = None
    """Make N procedural examples instead."""
    split: Split = "valid"
    """Which half of the dataset."""
    examples: _Number = None
    """So many, spread evenly over the split. Default: each pair once. The run's own --valid-examples gives the numbers of its
    validation again, to the bit on the same kind of device."""
    resolution: _Number = None
    """Side of the square in pixels, a multiple of 4. Default: the run's."""
    seed: _Number = None
    """Names backgrounds and warps. Default: the run's."""
    ensemble: bool = False
    """One more row: the mean of all predictions."""
    device: Device = "auto"
    """auto, cpu or cuda."""
    precision: Precision | None = None
    """fp16, bf16, fp32 or fp64. Default: the run's, if it ran on this kind of device."""
    threads: _Number = None
    """CPU threads of the arithmetic. Default: the run's; other numbers give other roundings."""
    csv: Annotated[str | None, tyro.conf.arg(metavar="FILE.csv")] = None
    """Write every example and the means to this file, any fsspec URL."""
    json: Annotated[str | None, tyro.conf.arg(metavar="FILE.json")] = None
    """The same, with all that is known of the rows."""
    worst: Annotated[str | None, tyro.conf.arg(metavar="FILE.png")] = None
    """Write a picture of the 8 worst examples of the best row, any fsspec URL."""
    worst_by: Metric = "sad"
    """The metric that says which row is best and which examples are worst."""


def main(argv: Sequence[str]) -> int:
    """`raymat evaluate WHAT...`; returns the exit code. Raises RaymatError if something cannot be read or written."""
    options = parse_options(Options, argv, "raymat evaluate")
    _check(options)
    device = device_of(options.device)
    selected = [read_weights(what, on_skip=_told) for what in options.what]
    config = next((one.config for one in selected if one.config is not None), None)
    precision = options.precision or _precision(config, device)
    threads = options.threads or (config.workers.threads if config else None)
    if threads is not None:
        torch.set_num_threads(threads)
    examples, data = _examples(options, selected, config)
    _compare_resolutions(selected, examples.geometry.resolution)
    contenders = [contender(one, device, precision) for one in selected]
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
    report = evaluate(contenders, examples, device, precision, settings, options.ensemble, worst)
    print(report.text)
    if options.csv:
        write_output("--csv", options.csv, report.to_csv())
    if options.json:
        write_output("--json", options.json, report.to_json())
    if options.worst and worst is not None:
        write_output("--worst", options.worst, worst.png(report.best(options.worst_by)))
    return 0


def evaluate(
    contenders: Sequence[Candidate],
    examples: Examples,
    device: torch.device,
    precision: Precision,
    settings: dict[str, Any] | None = None,
    ensemble: bool = False,
    worst: Worst | None = None,
) -> ScoreReport:
    """Measure all on all examples, with a bar on stderr; `worst` is shown each. Raises DataError: pictures cannot be had."""
    rows = [(one.label, one.facts) for one in contenders]
    if ensemble:
        rows.append((f"mean of the {len(contenders)} predictions", {"step": None}))
    seen: list[SeenExample] = []
    replaced = 0
    with ProgressBar("evaluate", noun="examples") as progress:
        progress.begin(examples.count)
        for measured in measure(
            contenders, examples, device=device, precision=precision, ensemble=ensemble
        ):
            seen.append(_seen(measured, examples))
            if worst is not None:
                worst.see(measured, seen[-1].name)
            replaced = _tell_replaced(measured, replaced)
            progress.add(1)
    return ScoreReport(rows, seen, settings or {})


def _seen(measured: Measured, examples: Examples) -> SeenExample:
    example = measured.example
    name = examples.name_of(example)
    return SeenExample(example.number, example.pair, example.background, name, measured.values)


def _tell_replaced(measured: Measured, before: int) -> int:
    """Say which pictures could not be read, the first few; how many there are by now."""
    for one in measured.batch.replaced:
        before += 1
        if before <= _REPLACED_SHOWN:
            note = f"example {one.number}: another picture stands in for {one.path}: {one.reason}"
        else:
            note = "more pictures cannot be read"
        if before <= _REPLACED_SHOWN + 1:
            print(f"note: {note}", file=sys.stderr)
    return before


# What the options mean.


def _check(options: Options) -> None:
    if not options.what:
        raise ConfigError("name what to evaluate: weights files or runs (raymat evaluate --help)")
    if options.ensemble and len(options.what) < 2:
        raise ConfigError("--ensemble is a mean of several predictions: name at least two")
    for flag, value in (("--examples", options.examples), ("--threads", options.threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} must be at least 1, got {value}")
    resolution = options.resolution
    if resolution is not None and (resolution < 4 or resolution % 4):
        raise ConfigError(f"--resolution must be a positive multiple of 4, got {resolution}")
    if _names_data(options):
        _data(options)
    if options.worst_by == "loss" and options.ensemble:
        raise ConfigError("--worst-by loss: an ensemble has no loss, use another metric")
    check_output("--csv", options.csv)
    check_output("--json", options.json)
    check_output("--worst", options.worst, ".png")


def _names_data(options: Options) -> bool:
    return (options.dataset, options.backgrounds, options.synthetic) != (None, None, None)


def _data(options: Options) -> DataConfig:
    """What the options name; a ConfigError for half of it or too much."""
    seed = 0 if options.seed is None else options.seed
    return DataConfig(
        dataset=options.dataset,
        backgrounds=options.backgrounds,
        synthetic=options.synthetic,
        seed=seed,
    )


def _told(checkpoint: object, reason: str) -> None:
    print(f"note: passed over: {reason}", file=sys.stderr)


def _precision(config: RunConfig | None, device: torch.device) -> Precision:
    theirs = config and config.workers.device in (device.type, "auto") and config.optim.precision
    return theirs or settled(None, device)


def _examples(
    options: Options, selected: Sequence[Selected], config: RunConfig | None
) -> tuple[Examples, str]:
    """What to measure on, as the options say or else as the first run among `selected` does, and its name for people."""
    stage = config.stage if config else selected[0].stage
    own = config.data if config else None
    seed = options.seed if options.seed is not None else (own.seed if own else 0)
    side = STAGE_DEFAULTS[stage].get("resolution", 512) if own is None else own.resolution
    geometry = Geometry(stage, options.resolution or side, own is None or own.scaled_decode)
    if _names_data(options):
        data = _data(options)
        source = _source(data, data.synthetic, seed, geometry.resolution, options.split)
    elif config is None:
        raise ConfigError(
            f"{selected[0].what} does not say what to evaluate on: give --dataset and --backgrounds, or --synthetic N"
        )
    else:
        data = config.data
        # A run validates on as many procedural pairs as it has validation examples.
        run = next(one for one in selected if one.config is config)
        kept = None if data.synthetic is not None else kept_source(run)
        source = kept or _source(
            data, config.log.valid_examples, seed, geometry.resolution, options.split
        )
    name = "procedural pictures" if data.synthetic is not None else redact(data.dataset or "")
    return spread(source, options.split, seed, options.examples, geometry), name


def _source(
    data: DataConfig, valid_synthetic: int | None, seed: int, resolution: int, split: Split
) -> Source:
    if data.synthetic is not None:
        return SourceSpec.synthetic(data.synthetic, seed, resolution, valid_synthetic).open()
    assert data.dataset is not None
    assert data.backgrounds is not None
    valid = split == "valid"
    listing = build_listing(data.dataset, data.backgrounds, need_train=not valid, need_valid=valid)
    return FolderSource(listing)


def _compare_resolutions(selected: Sequence[Selected], resolution: int) -> None:
    for one in selected:
        if one.config is not None and one.config.data.resolution != resolution:
            print(
                f"note: {one.what} was trained at {one.config.data.resolution} pixels, and is measured at {resolution}",
                file=sys.stderr,
            )
