"""The configuration of a run: its sections, the rules between them, and each stage's defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from raymat.config.monitoring import MonitoringConfig
from raymat.config.options import (
    FIXED,
    FREE,
    Option,
    OptionGroup,
    matches,
    options_of,
    require,
)
from raymat.config.sections import (
    RECIPES,
    CheckpointConfig,
    DataConfig,
    LengthConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    ScheduleKind,
    Stage,
    WorkersConfig,
)
from raymat.config.values import PARSED, Interval, Range
from raymat.errors import ConfigError, NewerFormatError
from raymat.storage.urls import root_problem

STAGE_DEFAULTS: dict[Stage, dict[str, Any]] = {
    "base": {},
    "refine": {
        "batch_size": 4,
        "resolution": 2048,
        "crop": Range(1024, 2048),
        "lr_backbone": 5e-5,
        "lr_aspp": 5e-5,
        "lr_decoder": 1e-4,
    },
}
"""Defaults that differ from those of the sections."""

ALTERNATIVES = {
    "epochs": ("steps",),
    "steps": ("epochs",),
    "dataset": ("synthetic",),
    "backgrounds": ("synthetic",),
    "synthetic": ("dataset", "backgrounds"),
}
"""Options that exclude each other; flags replace those of YAML, and both those of the defaults."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(OptionGroup):
    """One stage's run; the same --storage and --name are the same run.

    Raises:
        ConfigError: a section or a combination of options that cannot be used.
    """

    stage: Annotated[Stage, FIXED]
    name: Annotated[
        str,
        FREE,
        matches("[A-Za-z0-9][A-Za-z0-9._-]*", "may hold letters, digits, '.', '_' and '-'"),
    ]
    """Name of the run: its folder below --storage."""
    storage: Annotated[str, FREE, matches("(?s).+", "must not be empty")] = "./runs"
    """Where runs are stored: any fsspec URL."""
    take_over: Annotated[bool, FREE] = False
    """If another driver trains this run, have it commit and leave, then go on in its place."""
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    length: LengthConfig
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (problem := root_problem(self.storage)) is not None:
            raise ConfigError(f"--storage: {problem}")
        self._check_shares()
        require(
            self.stage == "refine" or "refiner" not in self.optim.frozen,
            "--freeze refiner: base has no refiner",
        )
        self._require_metric("--best-metric", self.checkpoint.best_metric)
        self._check_schedules()
        self._check_early_stop()

    @property
    def schedules(self) -> dict[str, ScheduleKind]:
        """The schedule of each part of the stage's network."""
        parts = ("backbone", "aspp", "decoder", *(("refiner",) if self.stage == "refine" else ()))
        return {p: getattr(self.optim, f"schedule_{p}") or self.optim.schedule for p in parts}

    def _check_shares(self) -> None:
        workers, batch, chunks = self.workers.workers, self.data.batch_size, self.optim.accumulate
        share = batch // chunks  # what a step spreads over the workers at a time
        require(
            batch % chunks == 0,
            f"--accumulate {chunks} does not divide --batch-size {batch}: its chunks are equal",
        )
        require(
            chunks == 1 or share > 1,
            f"--accumulate {chunks} leaves 1 example in a chunk, of which batch norm learns nothing: "
            f"use at most {batch // 2}, or a larger --batch-size",
        )
        what = "batch" if chunks == 1 else "chunk (--batch-size over --accumulate)"
        require(
            workers.high <= share,
            f"--workers {workers} is more than the {share} examples of a {what}: "
            f"use --workers {Range(min(workers.low, share), share)} or a larger --batch-size",
        )

    def _check_schedules(self) -> None:
        kinds, optim = self.schedules.values(), self.optim
        needs = {
            "step": ("--step-examples", optim.step_examples),
            "plateau": ("--plateau-patience", optim.plateau_patience),
        }
        for kind, (flag, value) in needs.items():
            satisfied = kind not in kinds or value is not None
            require(satisfied, f"--schedule {kind} needs {flag} N, in examples")
        if "plateau" in kinds:
            self._require_metric("--plateau-metric", optim.plateau_metric)
            self._require_validation("--schedule plateau")

    def _check_early_stop(self) -> None:
        if self.length.early_stop_patience > 0:
            self._require_metric("--early-stop-metric", self.length.early_stop_metric)
            self._require_validation("--early-stop-patience")

    def _require_validation(self, flag: str) -> None:
        if self.log.valid_examples == 0:
            raise ConfigError(f"{flag} needs validation: --valid-examples must not be 0")

    def _require_metric(self, flag: str, name: str) -> None:
        measured = ("loss", *self.log.metrics)
        if self.optim.ema_decay is not None:
            measured += tuple(f"ema_{metric}" for metric in measured)
        require(
            name in measured,
            f"{flag} must be one of {', '.join(measured)}, got {name!r}: --valid-metrics says what is measured, "
            "--ema-decay adds ema_ and each",
        )


SECTIONS: dict[str, type[OptionGroup]] = {
    name: option.kind
    for name, option in options_of(RunConfig).items()
    if isinstance(option.kind, type) and issubclass(option.kind, OptionGroup)
}
"""Sections of a run's configuration by the name of their field."""


def all_options() -> dict[str, Option]:
    """Return every option of a run by its flat name; the stage is none."""
    own = options_of(RunConfig)
    found = {name: own[name] for name in own if name not in SECTIONS and name != "stage"}
    for section in SECTIONS.values():
        found |= options_of(section)
    return found


def overlay(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Lay `upper` over `lower`, without the options of `lower` that one given in `upper` excludes."""
    given = [name for name, value in upper.items() if value is not None]
    excluded = {other for name in given for other in ALTERNATIVES.get(name, ())}
    return {name: value for name, value in lower.items() if name not in excluded} | upper


def build(stage: Stage, options: dict[str, Any]) -> RunConfig:
    """Build a run's configuration from flat option names, over the stage's defaults.

    Raises:
        ConfigError: an unknown name, a value that cannot be used, or no `name`.
    """
    known = all_options()
    unknown = sorted(options.keys() - known.keys())
    require(not unknown, f"unknown option {', '.join(unknown)}")
    require("name" in options, "--name is missing: it names the run's folder below --storage")
    values = overlay(STAGE_DEFAULTS[stage], options)
    for name, value in values.items():
        if known[name].kind in PARSED and value is not None:
            values[name] = known[name].read(value)
    sections: dict[str, Any] = {
        section: owner(**{name: values.pop(name) for name in options_of(owner) if name in values})
        for section, owner in SECTIONS.items()
    }
    return RunConfig(stage=stage, **values, **sections)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Flatten a configuration into JSON-able values by option name, and the stage under `stage`."""
    flat: dict[str, Any] = {}
    for name, value in vars(config).items():
        flat |= vars(value) if isinstance(value, OptionGroup) else {name: value}
    return {n: _stored(v) if isinstance(v, PARSED) else v for n, v in flat.items()}


def _stored(value: Any) -> str | int:
    """Return a value that has a notation of its own as JSON has it; a number of steps stays one."""
    return str(value) if not isinstance(value, Interval) or value.steps is None else value.steps


def from_dict(flat: dict[str, Any]) -> RunConfig:
    """Build the configuration that `to_dict` gave.

    Raises:
        NewerFormatError: its recipe is not known yet. ConfigError: it is no configuration.
    """
    # A run from before there were recipes has the first; one from before there were kernels has none.
    options = {"recipe": RECIPES[0], "batch_norm": "plain"} | flat
    if isinstance(options["recipe"], str) and options["recipe"] not in RECIPES:
        raise NewerFormatError(
            f"the run's pictures are augmented by recipe {options['recipe']}, this raymat knows {', '.join(RECIPES)}: "
            "use the one that began it"
        )
    stage = options.pop("stage", None)
    require(isinstance(stage, str) and stage in STAGE_DEFAULTS, f"there is no stage {stage!r:.60}")
    try:
        return build(stage, options)
    except (TypeError, AttributeError, OverflowError) as error:
        raise ConfigError(f"an option has a value of another type ({error})") from error
