"""Sections of a run's configuration; every field is a flag and a YAML key of the same name."""

# No `from __future__ import annotations`: the checks in the annotations use names of this module.
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from raymat.config.options import (
    ADDABLE,
    FACTOR,
    FIXED,
    FIXED_BY_PLATEAU,
    FRACTION,
    FREE,
    GROWABLE,
    LENGTH,
    MORE_THAN_0,
    MULTIPLE_OF_4,
    NOT_NEGATIVE,
    REPEATABLE,
    THREADS,
    Check,
    OptionGroup,
    at_least,
    matches,
    require,
)
from raymat.config.values import Duration, Interval, Limit, Numbers, Range

Stage = Literal["base", "refine"]
Backbone = Literal["resnet50", "resnet101", "mobilenetv2"]
Precision = Literal["fp16", "bf16", "fp32", "fp64"]
Device = Literal["auto", "cpu", "cuda"]
RefineMode = Literal["full", "sampling", "thresholding"]
Mode = Literal["min", "max"]
SameBits = Literal["say", "strict"]
BatchNorm = Literal["fused", "plain"]
ValidationPlace = Literal["loop", "beside", "auto"]
ScheduleKind = Literal["constant", "cosine", "step", "plateau"]

Recipe = Literal["1", "2", "3", "4"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)
"""Versions of how pictures are augmented, the newest last. A run keeps the one that it was begun with."""

METRICS = ("loss", "mse", "sad", "grad", "conn")
"""Metrics that a validation can measure."""

_LOGGER = r"(wandb|mlflow|[\w.]+:[\w.]+)"
LOGGERS = matches(rf"{_LOGGER}(\n{_LOGGER})*", "must be wandb, mlflow or MODULE:NAME")

PARTS = ("backbone", "aspp", "decoder", "refiner")
"""Parts of a network; a base network has no refiner."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(OptionGroup):
    """The training data, and how a sample is cut from it."""

    dataset: Annotated[str | None, GROWABLE, REPEATABLE] = None
    """Folder (any fsspec URL) with train/ and valid/, each holding fgr/ and pha/ with the same relative paths below. Given more
    than once: all of them together; some may lack valid/."""
    backgrounds: Annotated[str | None, GROWABLE, REPEATABLE] = None
    """Folder (any fsspec URL) with train/ and valid/. Given more than once: all of them together."""
    pair_suffix: Annotated[
        str, FIXED, matches(r"[^/\0]*", "must be an ending of names, as _alpha")
    ] = ""
    """Ending of the mattes' names that their foregrounds' lack: with _alpha, fgr/a.jpg and pha/a_alpha.png are a pair."""
    skip_unpaired: Annotated[bool, FIXED] = False
    """Leave out files without a partner, and say which, instead of refusing the dataset."""
    synthetic: Annotated[int | None, GROWABLE, at_least(1)] = None
    """Make N procedural pairs and backgrounds instead of reading --dataset and --backgrounds."""
    resolution: Annotated[int, FIXED, MULTIPLE_OF_4] = 512
    """Side in pixels of the square that samples are warped to."""
    crop: Annotated[
        Range, FIXED, Check(lambda r: r.low % 4 == r.high % 4 == 0, "must be multiples of 4")
    ] = Range(256, 512)
    """Range of the random crop in pixels, multiples of 4, one size per step (MAX excluded unless MIN = MAX)."""
    batch_size: Annotated[int, FIXED, at_least(1)] = 8
    """GLOBAL batch in examples, the same for any number of workers."""
    grow_dataset: Annotated[bool, FREE] = False
    """Include what was added to the dataset, the backgrounds or --synthetic since the run began. The current pass over the
    data is finished without it."""
    seed: Annotated[int, FIXED, Check(lambda n: 0 <= n < 2**63, "must be in 0..2**63-1")] = 0
    """Determines every random draw of the run."""
    max_replaced: Annotated[Limit | None, FREE] = None
    """End the run when more than N examples were trained with a substitute for a picture that cannot be read, or more than N%
    of the examples so far (of an epoch's, in the first). Looked at with each training row. Default: never."""
    scaled_decode: Annotated[bool, FIXED] = True
    """Decode JPEGs at 1/2, 1/4 or 1/8 where the warp shrinks by more. Off: closer to the reference's pictures, slower."""

    recipe: Annotated[Recipe | None, FIXED] = None
    """Version of the augmentation. 4: a GPU composes by fused kernels where it can; 3: by torch's operations; 2: noise and
    dropout are what torch's generator of the device draws, not the same on every device; 1: and the captured background is
    jittered as foregrounds are, which changes it about half as much. Default: 4, or what the run was begun with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        folders = (self.dataset is not None) + (self.backgrounds is not None)
        require(
            (folders > 0) != (self.synthetic is not None),
            "give either --dataset and --backgrounds, or --synthetic N",
        )
        require(folders != 1, "--dataset and --backgrounds go together: one of them is missing")
        require(
            self.crop.high <= self.resolution,
            f"--crop {self.crop} is larger than --resolution {self.resolution}",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig(OptionGroup):
    """The network."""

    backbone: Annotated[Backbone, FIXED] = "resnet50"
    """Encoder."""
    init: Annotated[str | None, FIXED] = None
    """Weights to start from: a published .pth or .safetensors, a DeepLabV3 .pth, or a raymat run: STORAGE/NAME (its newest
    checkpoint), NAME@1200 (at step 1200), NAME@best (its best validation), NAME/checkpoints/step-...; append @ema for the
    averaged weights. Only the weights are taken: the optimiser, the schedule and the position in the data start anew."""
    backbone_scale: Annotated[
        float, FIXED, Check(lambda scale: 0 < scale <= 0.5, "must be in (0, 0.5]")
    ] = 0.25
    """Refine only: scale of the picture at which the base network works, at most 0.5."""
    refine_mode: Annotated[RefineMode, FIXED] = "sampling"
    """Refine only: which patches are refined."""
    refine_sample_pixels: Annotated[int, FIXED, at_least(1)] = 80_000
    """Refine only: pixels refined per picture when sampling."""
    refine_threshold: Annotated[float, FIXED] = 0.1
    """Refine only: error above which a patch is refined when thresholding."""
    refine_kernel_size: Annotated[Literal[1, 3], FIXED] = 3
    """Refine only: kernel size of the refiner's convolutions."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig(OptionGroup):
    """Adam, with a learning rate and a schedule for each part of the network."""

    lr_backbone: Annotated[float, FIXED, FRACTION] = 1e-4
    """Adam's learning rate for the backbone."""
    lr_aspp: Annotated[float, FIXED, FRACTION] = 5e-4
    """Adam's learning rate for the ASPP."""
    lr_decoder: Annotated[float, FIXED, FRACTION] = 5e-4
    """Adam's learning rate for the decoder."""
    lr_refiner: Annotated[float, FIXED, FRACTION] = 3e-4
    """Adam's learning rate for the refiner (refine only)."""
    schedule: Annotated[ScheduleKind, FIXED] = "constant"
    """Course of all learning rates after the warm-up; plateau lowers them when a validation metric stops improving."""
    schedule_backbone: Annotated[ScheduleKind | None, FIXED] = None
    """The backbone's schedule, if not --schedule."""
    schedule_aspp: Annotated[ScheduleKind | None, FIXED] = None
    """The ASPP's schedule, if not --schedule."""
    schedule_decoder: Annotated[ScheduleKind | None, FIXED] = None
    """The decoder's schedule, if not --schedule."""
    schedule_refiner: Annotated[ScheduleKind | None, FIXED] = None
    """The refiner's schedule, if not --schedule (refine only)."""
    warmup_examples: Annotated[int, FIXED, NOT_NEGATIVE] = 0
    """Examples over which all learning rates rise linearly from 0, with any schedule."""
    schedule_examples: Annotated[int | None, FIXED, at_least(1)] = None
    """Cosine: examples until its end, warm-up included. Default: the run's length when it began."""
    schedule_floor: Annotated[float, FIXED, FRACTION] = 0.0
    """Cosine, plateau: lowest fraction of its learning rate that any part reaches."""
    step_examples: Annotated[int | None, FIXED, at_least(1)] = None
    """Step: examples between multiplications of the learning rates by --step-factor."""
    step_factor: Annotated[float, FIXED, FACTOR] = 0.1
    """Step: factor for the learning rates."""
    plateau_metric: Annotated[str, FIXED] = "loss"
    """Plateau: validation metric to watch (one of --valid-metrics, or ema_ and one)."""
    plateau_mode: Annotated[Mode, FIXED] = "min"
    """Plateau: whether a lower (min) or a higher (max) --plateau-metric is better."""
    plateau_patience: Annotated[int | None, FIXED, at_least(1)] = None
    """Plateau: examples without a better validation before the learning rates are multiplied by --plateau-factor."""
    plateau_min_delta: Annotated[float, FIXED, NOT_NEGATIVE] = 0.0
    """Plateau: change of the metric, in its own units, that must be exceeded to count as better."""
    plateau_factor: Annotated[float, FIXED, FACTOR] = 0.1
    """Plateau: factor for the learning rates."""
    precision: Annotated[Precision | None, FIXED] = None
    """fp16 (autocast with a gradient scaler), bf16, fp32, or fp64 to prove equality. Default: fp16 on cuda, fp32 on cpu."""
    batch_norm: Annotated[BatchNorm | None, FIXED] = None
    """Batch norm of several workers on GPUs: CUDA's own kernels, or torch's operations. Default: fused, or as the run began."""
    max_bad_steps: Annotated[int, FREE, at_least(1)] = 10
    """Consecutive steps with a non-finite loss or gradient to skip before training stops."""
    ema_decay: Annotated[float | None, ADDABLE, FACTOR] = None
    """Keep an exponential moving average of the weights with this decay per step (0.999), warmed up as min(it, (1 + t) / (10
    + t)) over t steps. Default: none."""
    clip_norm: Annotated[float | None, FIXED, MORE_THAN_0] = None
    """Clip the gradient's norm, over all parameters and the whole batch. Default: never."""
    weight_decay: Annotated[float, FIXED, FRACTION] = 0.0
    """Decoupled weight decay (AdamW): each step subtracts this times the learning rate from every weight; biases and norms
    have none."""
    freeze: Annotated[
        str | None,
        FIXED,
        Check(
            lambda names: all(name.strip().split(".")[0] in PARTS for name in names.split(",")),
            f"takes {', '.join(PARTS)} or modules in them (backbone.features.0), separated by commas",
        ),
    ] = None
    """Parts not to train, as in backbone,aspp or backbone.features.0: their weights, moments and batch-norm statistics stay
    as they are, and they work as in evaluation."""
    accumulate: Annotated[int, FIXED, at_least(1)] = 1
    """Equal chunks that a step processes one after another, each with its own batch-norm statistics: N chunks need an N-th of
    the memory for activations."""

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names in `freeze`."""
        return () if self.freeze is None else tuple(n.strip() for n in self.freeze.split(","))


@dataclass(frozen=True, kw_only=True)
class LengthConfig(OptionGroup):
    """The length of a run."""

    epochs: Annotated[float | None, LENGTH, MORE_THAN_0] = None
    """Stop after this many virtual epochs; may be fractional. Default: 8 (base) or 1 (refine); a dataset of fewer than 4000
    pairs is trained on for as many steps as one of 4000 would be."""
    epoch_examples: Annotated[int | None, LENGTH, MORE_THAN_0] = None
    """Examples in a virtual epoch. Default: the size of the dataset when the run began."""
    steps: Annotated[int | None, LENGTH, MORE_THAN_0] = None
    """Stop after this many steps instead of --epochs."""
    early_stop_patience: Annotated[int, LENGTH, NOT_NEGATIVE] = 0
    """Stop early after this many examples without a better validation; 0: never."""
    early_stop_metric: Annotated[str, LENGTH] = "loss"
    """Early stopping: validation metric to watch (one of --valid-metrics, or ema_ and one)."""
    early_stop_mode: Annotated[Mode, LENGTH] = "min"
    """Early stopping: whether a lower (min) or a higher (max) --early-stop-metric is better."""
    early_stop_min_delta: Annotated[float, LENGTH, NOT_NEGATIVE] = 0.0
    """Early stopping: change of the metric, in its own units, that must be exceeded to count as better."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = (self.epochs is not None) + (self.steps is not None)
        require(given < 2, "give --epochs or --steps, not both")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(OptionGroup):
    """Checkpoints: how often, and which are kept."""

    checkpoint_interval: Annotated[Interval | None, FREE] = None
    """Steps between checkpoints. There is one more at the run's end, and one at the end of each virtual epoch before which none
    was due for a tenth of this interval. Default: auto, what loses least, by what a checkpoint has cost and how often workers
    were lost without notice so far."""
    keep: Annotated[int, FREE, at_least(1)] = 3
    """Newest committed checkpoints to keep, besides the best."""
    keep_every: Annotated[int | None, FREE, at_least(1)] = None
    """Take and keep also a checkpoint at each multiple of this many steps."""
    checkpoint_at_loss: Annotated[Numbers | None, FREE] = None
    """Take and keep also the first checkpoint whose validation loss is at or below each of these, separated by commas."""
    best_metric: Annotated[str, FREE] = "loss"
    """Validation metric (one of --valid-metrics) by which a checkpoint is the best."""
    best_mode: Annotated[Mode, FREE] = "min"
    """Whether the lowest (min) or the highest (max) value of --best-metric is the best."""
    max_checkpoint_age: Annotated[Duration, FREE] = Duration(1800.0)
    """End the attempt when storage has accepted no checkpoint for this time (90s, 30m, 1.5h) since one was due. Until then,
    failed uploads are retried while training goes on."""
    nearby: Annotated[
        str, FREE, matches("(?s)auto|off|/.*", "must be auto, off or an absolute path")
    ] = "auto"
    """Folder on each worker's own disk for copies of its newest shards, which a restart reads instead of storage. off: none;
    auto: in the temporary folder, unless --storage is itself a folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.checkpoint_at_loss or self.best_metric == "loss",
            f"--checkpoint-at-loss goes by the loss, --best-metric by {self.best_metric}: leave one of them out",
        )


@dataclass(frozen=True, kw_only=True)
class LogConfig(OptionGroup):
    """Validation and logging."""

    validation: Annotated[ValidationPlace, FIXED_BY_PLATEAU] = "loop"
    """Where validation runs. loop: all workers pause for it. beside: in a process of its own, on the checkpoint taken for it,
    while training goes on; it shares training's cores if it must, and the workers pause only if even that is impossible.
    auto: beside if the cluster has a free core (with --device cuda: a free GPU), else loop. With beside and auto, a result
    counts from the next validation on, wherever it was computed."""
    valid_interval: Annotated[int | None, FIXED_BY_PLATEAU, at_least(1)] = None
    """Steps between validations. Default: a tenth of the run, from 100 to 5000 (base) or 2000 (refine)."""
    valid_examples: Annotated[int, FIXED_BY_PLATEAU, NOT_NEGATIVE] = 50
    """Validation examples, spread evenly over the validation set; 0: no validation."""
    valid_metrics: Annotated[
        str,
        FREE,
        Check(
            lambda names: {*names.split(",")} <= {*METRICS}, f"must be some of {','.join(METRICS)}"
        ),
    ] = "loss,mse,sad"
    """Metrics of a validation, separated by commas: loss, and sad, mse, grad and conn of the alpha."""
    log_loss_interval: Annotated[int, FREE, at_least(1)] = 10
    """Steps between training rows in metrics/."""
    log_images_interval: Annotated[int | None, FREE, at_least(1)] = None
    """Steps between image grids. Default: a tenth of the run, from 100 to 2000 (base) or 1000 (refine)."""
    logger: Annotated[str | None, FREE, REPEATABLE, LOGGERS] = None
    """Where else rows go, besides metrics/ and tensorboard/: wandb, mlflow (docs/curves.md), or MODULE:NAME of your own logger: a
    callable that makes one from the run's store and the attempt's number (see raymat.train.observability.logger)."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The --valid-metrics besides the loss, which is always measured; each once."""
        return tuple(dict.fromkeys(n for n in self.valid_metrics.split(",") if n != "loss"))


@dataclass(frozen=True, kw_only=True)
class WorkersConfig(OptionGroup):
    """The workers that train."""

    workers: Annotated[Range, FREE] = Range(1, 1)
    """Data-parallel workers: N, or MIN:MAX for an elastic run."""
    device: Annotated[Device, FREE] = "auto"
    """Device to train on."""
    threads: Annotated[int, FIXED, THREADS] = 1
    """CPU threads for each worker's arithmetic. Fixed for a run: another number rounds differently."""
    same_bits: Annotated[SameBits, FREE] = "say"
    """If a checkpoint was made on another processor or card, or with other versions: say so, or (strict) refuse to go on."""
    max_failures: Annotated[int, FREE, NOT_NEGATIVE] = 100
    """Restarts after worker failures (not preempted nodes) before the run gives up."""
    stuck_after: Annotated[Duration, FREE] = Duration(300.0)
    """When a worker stays in one activity (a step, a read, a collective) for this time (90s, 30m, 1.5h), it prints its stack
    and the workers restart."""
    decode_tasks: Annotated[int | None, FREE, at_least(1)] = None
    """Concurrent read tasks of all workers together, at least 1 each. Default: the cluster's CPUs minus the workers'."""
    spares: Annotated[bool, FREE] = True
    """Keep processes ready for the workers' next start: seconds saved after a loss, for some 0.4 GB of memory per worker."""
