"""Options that a run was given and does not use, since another option leaves them without a meaning."""

from __future__ import annotations

from collections.abc import Iterator

from raymat.config.options import Option
from raymat.config.run import STAGE_DEFAULTS, RunConfig, all_options

_REFINERS = (
    *("backbone_scale", "refine_mode", "refine_sample_pixels", "refine_threshold"),
    *("refine_kernel_size", "lr_refiner", "schedule_refiner"),
)
_OF_PLATEAU = tuple(
    f"plateau_{name}" for name in ("metric", "mode", "patience", "min_delta", "factor")
)
_OF_EARLY_STOP = tuple(f"early_stop_{name}" for name in ("metric", "mode", "min_delta"))
_OF_VALIDATION = ("validation", "valid_metrics", "best_metric", "best_mode")
_OF_FILES = ("pair_suffix", "skip_unpaired", "max_replaced", "scaled_decode")


def unused_options(config: RunConfig) -> list[str]:
    """Return a line for each reason for which options that differ from their defaults are not used."""
    known = all_options()
    return [
        line for names, why in _without_use(config) if (line := _line(config, known, names, why))
    ]


def _without_use(config: RunConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the options that this configuration gives no meaning, with the reason."""
    model, kinds = config.model, {*config.schedules.values()}
    if config.stage == "base":
        yield _REFINERS, "base has no refiner"
    else:
        mode = f"--refine-mode is {model.refine_mode}"
        if model.refine_mode != "sampling":
            yield ("refine_sample_pixels",), mode
        if model.refine_mode != "thresholding":
            yield ("refine_threshold",), mode
    for kind, names in (("step", ("step_examples", "step_factor")), ("plateau", _OF_PLATEAU)):
        if kind not in kinds:
            yield names, f"no --schedule is {kind}"
    if "cosine" not in kinds:
        yield ("schedule_examples",), "no --schedule is cosine"
    if not kinds & {"cosine", "plateau"}:
        yield ("schedule_floor",), "no --schedule is cosine or plateau"
    if not config.length.early_stop_patience:
        yield _OF_EARLY_STOP, "--early-stop-patience is 0"
    if not config.log.valid_examples:
        yield _OF_VALIDATION, "--valid-examples is 0"
    if config.data.synthetic is not None:
        yield _OF_FILES, "--synthetic reads no files"


def _line(
    config: RunConfig, known: dict[str, Option], names: tuple[str, ...], why: str
) -> str | None:
    sections = {type(part): part for part in vars(config).values()}
    defaults = STAGE_DEFAULTS[config.stage]
    given = [
        name
        for name in names
        if getattr(sections[known[name].owner], name) != defaults.get(name, known[name].default)
    ]
    return f"{', '.join(known[n].flag for n in given)}: not used, {why}" if given else None
