"""The whole configuration of a run: small frozen dataclasses, each checked when it is built.

`build` fills in a stage's defaults. Names are the flags'
names with underscores. Nothing here reads a file, the environment or the command line: `raymat.cli.main`
does.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from raymat.errors import ConfigError

Stage = Literal["base", "refine"]
Backbone = Literal["resnet50", "resnet101", "mobilenetv2"]
Precision = Literal["fp16", "bf16", "fp32", "fp64"]
Device = Literal["auto", "cpu", "cuda"]
RefineMode = Literal["full", "sampling", "thresholding"]
Mode = Literal["min", "max"]
ValidationPlace = Literal["loop", "beside", "auto"]
ScheduleKind = Literal["constant", "cosine", "step", "plateau"]

METRICS = ("loss", "mse", "sad", "grad", "conn")
"""What a validation can measure."""

PARTS = ("backbone", "aspp", "decoder", "refiner")
"""Parts of a network; a base network has no refiner."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def field_kinds(owner: type) -> dict[str, tuple[Any, ...]]:
    """For each field of a configuration class the types that it may have, None as NoneType: `int | None` is (int, NoneType)."""
    unions = (typing.Union, types.UnionType)
    return {
        name: typing.get_args(hint) if typing.get_origin(hint) in unions else (hint,)
        for name, hint in typing.get_type_hints(owner).items()
    }


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    if kind is float:
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        )
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _expected(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "nothing",
    }
    return names.get(kind, kind.__name__)


def _check_kinds(owner: object) -> None:
    """Refuse values of another type than the field's, which would fail far away or not at all."""
    for name, kinds in field_kinds(type(owner)).items():
        value = getattr(owner, name)
        _require(
            any(_fits(value, kind) for kind in kinds),
            f"--{name.replace('_', '-')} must be {' or '.join(map(_expected, kinds))}, got {value!r}",
        )


@dataclass(frozen=True)
class Range:
    """MIN:MAX as a flag writes it; a single number N is N:N."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _require(
            0 < self.low <= self.high,
            f"expected MIN:MAX with 0 < MIN <= MAX, got {self.low}:{self.high}",
        )

    @classmethod
    def parse(cls, text: str | int | Range) -> Range:
        """`"1:4"`, `"3"` or `3`; anything else is a ConfigError."""
        if isinstance(text, Range):
            return text
        match = re.fullmatch(r"\s*(\d+)\s*(?::\s*(\d+)\s*)?", str(text))
        if match is None:
            raise ConfigError(f"expected N or MIN:MAX in whole numbers, got {text!r}")
        low = int(match[1])
        return cls(low, int(match[2]) if match[2] else low)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


@dataclass(frozen=True)
class Duration:
    """A length of time as a flag writes it: `90`, `90s`, `30m`, `1.5h`."""

    seconds: float

    def __post_init__(self) -> None:
        _require(0 < self.seconds < math.inf, f"expected more than no time, got {self.seconds} s")

    @classmethod
    def parse(cls, text: str | float | Duration) -> Duration:
        """`"30m"`, `"90"` or `90`; anything else is a ConfigError."""
        if isinstance(text, Duration):
            return text
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([smh]?)\s*", str(text))
        if match is None:
            raise ConfigError(f"expected a time such as 90s, 30m or 1.5h, got {text!r}")
        return cls(float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]])

    def __str__(self) -> str:
        return f"{self.seconds:.15g}s"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on, and how a sample is cut from it."""

    dataset: str | None = None
    """Folder (any fsspec URL) with train/ and valid/, each with fgr/ and pha/, same relative paths
    below."""
    backgrounds: str | None = None
    """Folder (any fsspec URL) with train/ and valid/."""
    synthetic: int | None = None
    """Make N procedural pairs and backgrounds instead of reading the two above."""
    resolution: int = 512
    """Side in pixels of the square that samples are warped to."""
    crop: Range = Range(256, 512)
    """MIN:MAX of the random crop in pixels, multiples of 4, one size per step (MAX excluded unless
    MIN = MAX)."""
    batch_size: int = 8
    """GLOBAL batch in examples, constant whatever the number of workers."""
    grow_dataset: bool = False
    """Take what was added to the dataset, the backgrounds or --synthetic since the run began: the pass
    under way is finished without it."""
    seed: int = 0
    """Names every random draw of the run."""
    scaled_decode: bool = True
    """Decode JPEGs at 1/2, 1/4 or 1/8 where the warp shrinks by more. Off: nearer to the
    reference's pictures, slower."""

    def __post_init__(self) -> None:
        _check_kinds(self)
        folders = self.dataset is not None or self.backgrounds is not None
        _require(
            folders != (self.synthetic is not None),
            "give either --dataset and --backgrounds, or --synthetic N",
        )
        if folders:
            _require(
                self.dataset is not None and self.backgrounds is not None,
                "--dataset and --backgrounds go together: one of them is missing",
            )
        if self.synthetic is not None:
            _require(self.synthetic > 0, f"--synthetic must be at least 1, got {self.synthetic}")
        _require(
            self.resolution > 0 and self.resolution % 4 == 0,
            f"--resolution must be a multiple of 4, got {self.resolution}",
        )
        _require(
            self.crop.low % 4 == 0 and self.crop.high % 4 == 0,
            f"--crop must be multiples of 4, got {self.crop}",
        )
        _require(
            self.crop.high <= self.resolution,
            f"--crop {self.crop} is larger than --resolution {self.resolution}",
        )
        _require(self.batch_size > 0, f"--batch-size must be at least 1, got {self.batch_size}")
        _require(0 <= self.seed < 2**63, f"--seed must be in 0..2**63-1, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    backbone: Backbone = "resnet50"
    """Encoder: resnet50, resnet101 or mobilenetv2."""
    init: str | None = None
    """Weights to start from: a published .pth or .safetensors, a DeepLabV3 .pth, or a run of raymat:
    STORAGE/NAME (its newest checkpoint), NAME@1200 (of step 1200), NAME@best (of its best
    validation), NAME/checkpoints/step-...; with @ema at the end the averaged weights. The weights
    alone: the optimiser, the schedule and the cursor begin anew."""
    backbone_scale: float = 0.25
    """Refine only: the base network works at this scale of the picture, at most 0.5."""
    refine_mode: RefineMode = "sampling"
    """Refine only: full, sampling or thresholding."""
    refine_sample_pixels: int = 80_000
    """Refine only: pixels refined per picture when sampling."""
    refine_threshold: float = 0.1
    """Refine only: error from which a patch is refined when thresholding."""
    refine_kernel_size: Literal[1, 3] = 3
    """Refine only: kernel size of the refiner's convolutions."""

    def __post_init__(self) -> None:
        _check_kinds(self)
        _require(
            0 < self.backbone_scale <= 0.5,
            f"--backbone-scale must be in (0, 0.5], got {self.backbone_scale}",
        )
        _require(
            self.refine_sample_pixels > 0,
            f"--refine-sample-pixels must be at least 1, got {self.refine_sample_pixels}",
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam, and one learning rate per part of the network with its schedule, in examples."""

    lr_backbone: float = 1e-4
    """Adam's learning rate of the backbone."""
    lr_aspp: float = 5e-4
    """Adam's learning rate of the ASPP."""
    lr_decoder: float = 5e-4
    """Adam's learning rate of the decoder."""
    lr_refiner: float = 3e-4
    """Adam's learning rate of the refiner (refine only)."""
    schedule: ScheduleKind = "constant"
    """How all learning rates go on after the warm-up: constant, cosine, step, or plateau (lowered where
    a metric of validation stops getting better)."""
    schedule_backbone: ScheduleKind | None = None
    """The backbone's schedule, where it is another one than --schedule."""
    schedule_aspp: ScheduleKind | None = None
    """The ASPP's schedule, where it is another one than --schedule."""
    schedule_decoder: ScheduleKind | None = None
    """The decoder's schedule, where it is another one than --schedule."""
    schedule_refiner: ScheduleKind | None = None
    """The refiner's schedule, where it is another one than --schedule (refine only)."""
    warmup_examples: int = 0
    """Examples over which all learning rates rise in a straight line from 0, with any schedule."""
    schedule_examples: int | None = None
    """Cosine: examples after which it ends, warm-up included. Default: the run's length when it
    began."""
    schedule_floor: float = 0.0
    """Cosine, plateau: the fraction of its learning rate below which no part's goes."""
    step_examples: int | None = None
    """Step: examples after which the learning rates are multiplied with --step-factor, again and
    again."""
    step_factor: float = 0.1
    """Step: what the learning rates are multiplied with."""
    plateau_metric: str = "loss"
    """Plateau: metric of validation (one of --valid-metrics, or ema_ and one) that is watched."""
    plateau_mode: Mode = "min"
    """Plateau: whether a lower (min) or a higher (max) --plateau-metric is better."""
    plateau_patience: int | None = None
    """Plateau: examples without a better validation after which the learning rates are multiplied with
    --plateau-factor, again and again."""
    plateau_min_delta: float = 0.0
    """Plateau: by more than this the metric must change to be better, in its own units."""
    plateau_factor: float = 0.1
    """Plateau: what the learning rates are multiplied with."""
    precision: Precision | None = None
    """fp16 (autocast with a gradient scaler), bf16, fp32, or fp64 to prove equality. Default: fp16
    on cuda, fp32 on cpu."""
    max_bad_steps: int = 10
    """Steps in a row with a non-finite loss or gradient that are skipped before training stops."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights that keeps this much of itself in each step
    (0.999), warmed up as min(it, (1 + t) / (10 + t)) over t steps. Default: none."""
    clip_norm: float | None = None
    """Shrink the gradient to this norm where it is larger: over all parameters and the whole batch.
    Default: never."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW): each step takes this much times the learning rate from every
    weight; biases and norms have none."""
    freeze: str | None = None
    """Parts that are not trained, as backbone,aspp or backbone.features.0: their weights, moments and
    batch-norm statistics stay as they are, and they work as in evaluation."""
    accumulate: int = 1
    """Chunks of its batch that a step takes one after another, each with its own batch-norm statistics:
    with N activations need an N-th of the memory."""

    def __post_init__(self) -> None:
        _check_kinds(self)
        _require(
            self.clip_norm is None or self.clip_norm > 0,
            f"--clip-norm must be more than 0, got {self.clip_norm}",
        )
        _require(
            0 <= self.weight_decay < 1,
            f"--weight-decay must be in [0, 1), got {self.weight_decay}",
        )
        _require(self.accumulate > 0, f"--accumulate must be at least 1, got {self.accumulate}")
        for name in self.frozen:
            _require(
                name.split(".")[0] in PARTS,
                f"--freeze takes {', '.join(PARTS)} or what lies below them (backbone.features.0), "
                f"with commas between: got {self.freeze!r}",
            )
        _require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"--ema-decay must be between 0 and 1, as in 0.999, got {self.ema_decay}",
        )
        for name in ("lr_backbone", "lr_aspp", "lr_decoder", "lr_refiner"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"--{name.replace('_', '-')} must be in [0, 1), got {value}")
        for name in ("schedule_examples", "step_examples", "plateau_patience"):
            value = getattr(self, name)
            _require(
                value is None or value > 0,
                f"--{name.replace('_', '-')} must be at least 1, got {value}",
            )
        for name in ("warmup_examples", "plateau_min_delta"):
            value = getattr(self, name)
            _require(value >= 0, f"--{name.replace('_', '-')} must not be negative, got {value}")
        for name in ("step_factor", "plateau_factor"):
            value = getattr(self, name)
            _require(0 < value < 1, f"--{name.replace('_', '-')} must be in (0, 1), got {value}")
        _require(
            0 <= self.schedule_floor < 1,
            f"--schedule-floor must be in [0, 1), got {self.schedule_floor}",
        )
        _require(
            self.max_bad_steps > 0, f"--max-bad-steps must be at least 1, got {self.max_bad_steps}"
        )

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names in `freeze`."""
        return () if self.freeze is None else tuple(n.strip() for n in self.freeze.split(","))


@dataclass(frozen=True, kw_only=True)
class LengthConfig:
    """How long a run is, in examples."""

    epochs: float | None = None
    """Stop after this many virtual epochs; may be fractional. Default: 8 base, 1 refine."""
    epoch_examples: int | None = None
    """Examples in one virtual epoch. Default: the size that the dataset had when the run began."""
    steps: int | None = None
    """Stop after this many steps instead of --epochs."""
    early_stop_patience: int = 0
    """Stop early after so many examples without a better validation; 0: do not."""
    early_stop_metric: str = "loss"
    """Early stopping: metric of validation (one of --valid-metrics, or ema_ and one) that is watched."""
    early_stop_mode: Mode = "min"
    """Early stopping: whether a lower (min) or a higher (max) --early-stop-metric is better."""
    early_stop_min_delta: float = 0.0
    """Early stopping: by more than this the metric must change to be better, in its own units."""

    def __post_init__(self) -> None:
        _check_kinds(self)
        _require(self.epochs is None or self.steps is None, "give --epochs or --steps, not both")
        _require(
            self.epochs is not None or self.steps is not None, "give one of --epochs and --steps"
        )
        for name in ("epochs", "epoch_examples", "steps"):
            value = getattr(self, name)
            _require(
                value is None or value > 0,
                f"--{name.replace('_', '-')} must be more than 0, got {value}",
            )
        for name in ("early_stop_patience", "early_stop_min_delta"):
            value = getattr(self, name)
            _require(value >= 0, f"--{name.replace('_', '-')} must not be negative, got {value}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When state is committed, and what is kept."""

    checkpoint_interval: int = 5000
    """Steps between checkpoints, beside the one at each virtual epoch's end and the last."""
    keep: int = 3
    """Newest committed checkpoints to keep, beside the best."""
    best_metric: str = "loss"
    """Metric of validation (one of --valid-metrics) by which a checkpoint is the best."""
    best_mode: Mode = "min"
    """Whether the lowest (min) or the highest (max) value of --best-metric is the best."""
    max_checkpoint_age: Duration = Duration(1800.0)
    """A time (90s, 30m, 1.5h): end the attempt when storage has taken no checkpoint for so long since
    one was due. Until then failed uploads are tried again while training goes on."""
    nearby: str = "auto"
    """A folder on each worker's own disk for copies of its newest shards, which a restart reads instead
    of the storage's; off: none; auto: in the temporary folder, if --storage is not itself a
    folder."""

    def __post_init__(self) -> None:
        _check_kinds(self)
        _require(
            self.checkpoint_interval > 0,
            f"--checkpoint-interval must be at least 1, got {self.checkpoint_interval}",
        )
        _require(self.keep > 0, f"--keep must be at least 1, got {self.keep}")
        _require(
            self.nearby in ("auto", "off") or self.nearby.startswith("/"),
            f"--nearby must be auto, off or an absolute path, got {self.nearby!r}",
        )


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Validation and logging, in steps."""

    validation: ValidationPlace = "loop"
    """Where validation runs. loop: all workers pause for it. beside: in a process of its own, on the checkpoint
    that is then taken, while training goes on; if need be it shares the cores of training, and only where that
    is impossible the workers pause. auto: beside where the cluster has a free core (with --device cuda a free
    GPU), else the workers pause. With beside and auto a result counts from the next validation on,
    wherever it was found."""
    valid_interval: int = 5000
    """Steps between validations."""
    valid_examples: int = 50
    """Validation examples, spread evenly over the validation set; 0 turns validation off."""
    valid_metrics: str = "loss,mse,sad"
    """What a validation measures, separated by commas: loss, and of the alpha sad, mse, grad and conn."""
    log_loss_interval: int = 10
    """Steps between training rows in metrics/."""
    log_images_interval: int = 2000
    """Steps between image grids."""
    logger: str | None = None
    """MODULE:NAME of a logger of your own, beside metrics/ and tensorboard/: what makes one of the run's
    store and the number of the attempt (raymat.train.observability.logger says what it is told)."""

    def __post_init__(self) -> None:
        _check_kinds(self)
        _require(
            self.logger is None or re.fullmatch(r"[\w.]+:[\w.]+", self.logger) is not None,
            f"--logger must be MODULE:NAME, got {self.logger!r}",
        )
        for name in ("valid_interval", "log_loss_interval", "log_images_interval"):
            value = getattr(self, name)
            _require(value > 0, f"--{name.replace('_', '-')} must be at least 1, got {value}")
        _require(
            self.valid_examples >= 0,
            f"--valid-examples must not be negative, got {self.valid_examples}",
        )
        unknown = [name for name in self.valid_metrics.split(",") if name not in METRICS]
        _require(
            not unknown,
            f"--valid-metrics must be some of {','.join(METRICS)}, got {self.valid_metrics!r}",
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """The --valid-metrics beside the loss, which is always measured; each once."""
        return tuple(dict.fromkeys(n for n in self.valid_metrics.split(",") if n != "loss"))


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """Who trains."""

    workers: Range = Range(1, 1)
    """Data-parallel workers: N, or MIN:MAX for an elastic run."""
    device: Device = "auto"
    """auto, cpu or cuda."""
    threads: int = 1
    """CPU threads of each worker's arithmetic. Kept with the run: another number gives other
    roundings."""
    max_failures: int = 100
    """Restarts after failures of workers (not of preempted nodes) before the run gives up."""
    stuck_after: Duration = Duration(300.0)
    """A time: a worker that is at the same thing for so long (a step, a read, a collective) tells its
    stack, and the workers are started anew."""
    decode_tasks: int | None = None
    """Read tasks at the same time. Default: the cluster's CPUs less the workers', at least 1."""
    spares: bool = True
    """Keep processes ready for the next start of the workers: seconds less after a loss, for some 0.4 GB
    of memory a worker."""

    def __post_init__(self) -> None:
        _check_kinds(self)
        _require(self.threads > 0, f"--threads must be at least 1, got {self.threads}")
        _require(
            self.max_failures >= 0, f"--max-failures must not be negative: {self.max_failures}"
        )
        _require(
            self.decode_tasks is None or self.decode_tasks > 0,
            f"--decode-tasks must be at least 1, got {self.decode_tasks}",
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One stage's run. The same `storage` and `name` are the same run."""

    stage: Stage
    name: str
    """Name of the run: its folder below --storage."""
    storage: str = "./runs"
    """Where runs live: any fsspec URL."""
    take_over: bool = False
    """If another driver trains this run: have it commit and leave, and go on in its place."""
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    length: LengthConfig
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)

    def __post_init__(self) -> None:
        _check_kinds(self)
        _require(self.stage in ("base", "refine"), f"stage must be base or refine: {self.stage!r}")
        _require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) is not None,
            f"--name may hold letters, digits, '.', '_' and '-', got {self.name!r}",
        )
        _require(bool(self.storage), "--storage must not be empty")
        self._check_shares()
        if self.stage == "base":
            _require("refiner" not in self.optim.frozen, "--freeze refiner: base has no refiner")
        self._require_metric("--best-metric", self.checkpoint.best_metric)
        self._check_schedules()

    def _check_shares(self) -> None:
        workers, batch, chunks = self.workers.workers, self.data.batch_size, self.optim.accumulate
        _require(
            batch % chunks == 0,
            f"--accumulate {chunks} does not divide --batch-size {batch}: its chunks are equal",
        )
        share = batch // chunks
        _require(
            chunks == 1 or share > 1,
            f"--accumulate {chunks} leaves 1 example in a chunk, of which batch norm learns nothing: "
            f"use at most {batch // 2}, or a larger --batch-size",
        )
        what = "batch" if chunks == 1 else "chunk (--batch-size over --accumulate)"
        _require(
            workers.high <= share,
            f"--workers {workers} is more than the {share} examples of a {what}: "
            f"use --workers {Range(min(workers.low, share), share)} or a larger --batch-size",
        )

    @property
    def schedules(self) -> dict[str, ScheduleKind]:
        """The schedule of each part of the stage's network."""
        parts = ("backbone", "aspp", "decoder", *(("refiner",) if self.stage == "refine" else ()))
        return {p: getattr(self.optim, f"schedule_{p}") or self.optim.schedule for p in parts}

    def _check_schedules(self) -> None:
        kinds, optim, length = self.schedules.values(), self.optim, self.length
        for kind, needs in (("step", "step_examples"), ("plateau", "plateau_patience")):
            _require(
                kind not in kinds or getattr(optim, needs) is not None,
                f"--schedule {kind} needs --{needs.replace('_', '-')} N, in examples",
            )
        watched = {
            "--schedule plateau": ("--plateau-metric", optim.plateau_metric, "plateau" in kinds),
            "--early-stop-patience": (
                "--early-stop-metric", length.early_stop_metric, length.early_stop_patience > 0
            ),
        }  # fmt: skip
        for flag, (metric_flag, metric, used) in watched.items():
            if used:
                self._require_metric(metric_flag, metric)
            _require(
                not used or self.log.valid_examples > 0,
                f"{flag} needs validation: --valid-examples must not be 0",
            )

    def _require_metric(self, flag: str, name: str) -> None:
        """Refuse a metric that no validation of this run measures."""
        measured = ("loss", *self.log.metrics)
        if self.optim.ema_decay is not None:
            measured += tuple(f"ema_{metric}" for metric in measured)
        _require(
            name in measured,
            f"{flag} must be one of {', '.join(measured)}, got {name!r}: --valid-metrics says what is measured, "
            "--ema-decay adds ema_ and each",
        )


SECTIONS = ("data", "model", "optim", "length", "checkpoint", "log", "workers")

STAGE_DEFAULTS: dict[Stage, dict[str, Any]] = {
    "base": {"epochs": 8.0},
    "refine": {
        "batch_size": 4,
        "resolution": 2048,
        "crop": Range(1024, 2048),
        "epochs": 1.0,
        "checkpoint_interval": 2000,
        "valid_interval": 2000,
        "log_images_interval": 1000,
        "lr_backbone": 5e-5,
        "lr_aspp": 5e-5,
        "lr_decoder": 1e-4,
    },
}

_SECTION_TYPES: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "optim": OptimConfig,
    "length": LengthConfig,
    "checkpoint": CheckpointConfig,
    "log": LogConfig,
    "workers": WorkersConfig,
}


def flat_fields() -> dict[str, tuple[str, dataclasses.Field[Any]]]:
    """Every option by its flat name, with the section that owns it ("" for the run itself)."""
    found: dict[str, tuple[str, dataclasses.Field[Any]]] = {}
    for f in dataclasses.fields(RunConfig):
        if f.name not in SECTIONS and f.name != "stage":
            found[f.name] = ("", f)
    for section, kind in _SECTION_TYPES.items():
        for f in dataclasses.fields(kind):
            found[f.name] = (section, f)
    return found


_PARSED: dict[str, Any] = {
    "crop": Range,
    "workers": Range,
    "max_checkpoint_age": Duration,
    "stuck_after": Duration,
}
"""Options that are written as text and held as a type of their own."""


def build(stage: Stage, options: dict[str, Any]) -> RunConfig:
    """A run's configuration from flat option names over the stage's defaults; unknown names are a
    ConfigError."""
    known = flat_fields()
    unknown = sorted(set(options) - set(known))
    _require(not unknown, f"unknown option {', '.join(unknown)}")
    merged = dict(STAGE_DEFAULTS[stage])
    if options.get("steps") is not None:
        merged.pop("epochs")
    merged |= options
    sections: dict[str, dict[str, Any]] = {name: {} for name in ("", *SECTIONS)}
    for name, value in merged.items():
        if name in _PARSED:
            value = _PARSED[name].parse(value)
        sections[known[name][0]][name] = value
    _require("name" in sections[""], "--name is missing: it names the run's folder below --storage")
    built = {section: _SECTION_TYPES[section](**sections[section]) for section in SECTIONS}
    return RunConfig(stage=stage, **sections[""], **built)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as flat, JSON-able values: `build(d.pop("stage"), d)` gives it back."""
    flat: dict[str, Any] = {"stage": config.stage}
    for name, (section, _) in flat_fields().items():
        owner = getattr(config, section) if section else config
        value = getattr(owner, name)
        flat[name] = str(value) if name in _PARSED else value
    return flat


def from_dict(flat: dict[str, Any]) -> RunConfig:
    """The inverse of `to_dict`."""
    options = dict(flat)
    return build(options.pop("stage"), options)
