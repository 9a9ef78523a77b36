"""What a run's options leave open: a resumed run keeps what it was begun with, a new one takes the defaults."""

from __future__ import annotations

import math
from dataclasses import replace

from raymat.config.run import RunConfig
from raymat.config.sections import RECIPES, LengthConfig, Precision, Stage
from raymat.config.values import Interval

EPOCHS: dict[Stage, float] = {"base": 8.0, "refine": 1.0}
FEW = 4000
"""With fewer pairs a new run whose length is left open is as long as with this many.

Not synthetic pictures: they are for trials, and as many as they are told to be.
"""
INTERVALS: dict[Stage, tuple[int, int]] = {"base": (5000, 2000), "refine": (2000, 1000)}
"""Steps between two validations and image grids, if the run is long enough."""
OFTEN = 10
"""In how many parts these divide a shorter run."""
LEAST = 100
"""Steps that are between two of them even so: a trial of some steps shall not spend its time on them."""


def as_begun(config: RunConfig, begun: RunConfig) -> RunConfig:
    """Settle what `config` leaves open as the run was `begun`: recipe, batch norm, precision, length and intervals."""
    optim = replace(config.optim, precision=config.optim.precision or begun.optim.precision)
    return with_pace_of(begun, with_recipe(replace(config, optim=optim), begun))


def precision_on(device_type: str, precision: Precision | None = None) -> Precision:
    """Return `precision`, or the device type's default where it is None: fp16 on cuda, fp32 on cpu."""
    return precision or ("fp16" if device_type == "cuda" else "fp32")


def with_recipe(config: RunConfig, begun: RunConfig | None) -> RunConfig:
    """Settle recipe and batch norm where `config` leaves them open: as a run was `begun`, or the newest of each."""
    data, optim = config.data, config.optim
    recipe = data.recipe or (RECIPES[-1] if begun is None else begun.data.recipe)
    batch_norm = optim.batch_norm or ("fused" if begun is None else begun.optim.batch_norm)
    return replace(
        config, data=replace(data, recipe=recipe), optim=replace(optim, batch_norm=batch_norm)
    )


def with_pace_of(begun: RunConfig, config: RunConfig) -> RunConfig:
    """Settle length and intervals where `config` leaves them open as the run was `begun`."""
    length = config.length
    if length.epochs is None and length.steps is None:
        length = replace(
            length,
            epochs=begun.length.epochs,
            steps=begun.length.steps,
            epoch_examples=length.epoch_examples or begun.length.epoch_examples,
        )
    saves, log = begun.checkpoint.checkpoint_interval, begun.log
    settled = replace(config, length=length)
    return _with_intervals(settled, saves, log.valid_interval, log.log_images_interval)


def with_pace(config: RunConfig, pairs: int) -> RunConfig:
    """Settle length and intervals of a new run with this many `pairs` where `config` leaves them open."""
    length, size = config.length, config.data.batch_size
    if length.epochs is None and length.steps is None:
        few = pairs < FEW and config.data.dataset is not None and length.epoch_examples is None
        length = _length(length, EPOCHS[config.stage], few, size)
    epochs = length.epochs or 0.0
    steps = length.steps or math.ceil(epochs * (length.epoch_examples or pairs) / size)
    validations, images = (
        min(most, max(LEAST, steps // OFTEN)) for most in INTERVALS[config.stage]
    )
    return _with_intervals(replace(config, length=length), Interval(), validations, images)


def _length(length: LengthConfig, epochs: float, few: bool, batch_size: int) -> LengthConfig:
    if few:
        return replace(length, steps=math.ceil(epochs * FEW / batch_size))
    return replace(length, epochs=epochs)


def _with_intervals(
    config: RunConfig, saves: Interval | None, validations: int | None, images: int | None
) -> RunConfig:
    """Settle the intervals that `config` leaves open."""
    checkpoint, log = config.checkpoint, config.log
    return replace(
        config,
        checkpoint=replace(checkpoint, checkpoint_interval=checkpoint.checkpoint_interval or saves),
        log=replace(
            log,
            valid_interval=log.valid_interval or validations,
            log_images_interval=log.log_images_interval or images,
        ),
    )
