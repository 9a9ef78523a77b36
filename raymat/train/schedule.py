"""What happens when, and at which learning rates, as pure functions of the number of completed steps or examples.

Everything counts completed steps over the whole run, from 1: an interval of 10 is due at 10, 20, 30, ... The
reference counts most intervals anew in each epoch; here they do not depend on where an epoch ends, nor on restarts.
Lengths are in examples, so that another batch size keeps a run's length, epochs and learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from raymat.config import OptimConfig, RunConfig, ScheduleKind
from raymat.data.order import SampleOrder
from raymat.data.past import Steps
from raymat.errors import CheckpointError, ConfigError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a run logs, validates, commits and ends."""

    batch_size: int
    """Examples in every step but the last, and those at `ends`."""
    total_examples: int
    """Examples in the whole run."""
    epoch_examples: int
    """Examples in one virtual epoch."""
    checkpoint_interval: int
    valid_interval: int
    valid_examples: int
    """0: no validation at all."""
    validates_late: bool = False
    """Whether a validation's result counts from the next validation point on: it may be found beside training."""
    log_loss_interval: int
    log_images_interval: int
    ends: tuple[int, ...] = ()
    """Where the run had ended and went on, in examples."""

    @classmethod
    def of(cls, config: RunConfig, order: SampleOrder) -> Schedule:
        """The schedule of a run whose dataset and length are settled in `order`.

        Raises:
            ConfigError: batches of one example, of which batch norm learns no statistics where the network pools.
        """
        if order.batch_size == 1:
            raise ConfigError(
                "--batch-size 1 cannot be trained: batch norm needs at least 2 examples in a step"
            )
        return cls(
            batch_size=order.batch_size,
            total_examples=order.total_examples,
            epoch_examples=config.length.epoch_examples or order.first_pairs,
            checkpoint_interval=config.checkpoint.checkpoint_interval,
            valid_interval=config.log.valid_interval,
            valid_examples=order.valid_examples,
            validates_late=config.log.validation != "loop",
            log_loss_interval=config.log.log_loss_interval,
            log_images_interval=config.log.log_images_interval,
            ends=order.past.ends,
        )

    @property
    def total_steps(self) -> int:
        return self._steps.count(self.total_examples)

    @property
    def _steps(self) -> Steps:
        return Steps(self.batch_size, self.ends)

    def examples(self, step: int) -> int:
        """Examples consumed after `step` completed steps."""
        return min(self._steps.examples(step), self.total_examples)

    def stops(self, step: int) -> bool:
        """Whether the run ends after `step` steps, or had ended there before it was made longer."""
        return step == self.total_steps or self.examples(step) in self.ends

    def epoch(self, step: int) -> float:
        """Virtual epochs completed after `step` steps, with their fraction."""
        return self.examples(step) / self.epoch_examples

    def ends_epoch(self, step: int) -> bool:
        """Whether a virtual epoch's last example was consumed in this step."""
        before, after = self.examples(step - 1), self.examples(step)
        return after // self.epoch_examples > before // self.epoch_examples

    def commits(self, step: int) -> bool:
        """Whether a checkpoint is due: on the interval, at each virtual epoch's end, at the run's end; and where it is
        what a validation beside training reads."""
        return (
            step % self.checkpoint_interval == 0
            or self.ends_epoch(step)
            or self.stops(step)
            or (self.validates_late and self.validates(step))
        )

    def validates(self, step: int) -> bool:
        """Whether a validation is due: on the interval and at the run's end."""
        due = step % self.valid_interval == 0 or self.stops(step)
        return self.valid_examples > 0 and due

    def logs(self, step: int) -> bool:
        """Whether a training row is due: on the interval and at the run's end."""
        return step % self.log_loss_interval == 0 or self.stops(step)

    def draws_images(self, step: int) -> bool:
        """Whether image grids are due."""
        return step % self.log_images_interval == 0

    def segment_end(self, step: int) -> int:
        """The next step after `step` at which training pauses for a validation or ends."""
        if self.valid_examples == 0:
            return self.total_steps
        due = (step // self.valid_interval + 1) * self.valid_interval
        later = (self._steps.count(end) for end in self.ends)
        return min(self.total_steps, due, *(end for end in later if end > step))


@dataclass(frozen=True)
class RateState:
    """What the learning rates depend on beside the configuration and the examples; part of a run's state."""

    cosine_examples: int | None = None
    """Where the cosine ends, in examples; None without one. Settled when a run begins: a longer run keeps its curve."""
    reductions: int = 0
    """How often a plateau has lowered the rates."""
    reductions_before: int = 0
    """So many of them by validations that were displaced since: with another validation set."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"format": 2, **asdict(self)}

    @classmethod
    def load_state_dict(cls, state: Mapping[str, Any]) -> RateState:
        """The inverse of `state_dict`; runs from before there were schedules have the default.

        Raises:
            CheckpointError: a format that this raymat does not know.
        """
        if state.get("format") == 1:
            return cls()
        if state.get("format") != 2:
            raise CheckpointError(
                f"expected a schedule of format 2, got {state.get('format')!r}: "
                "resume with the raymat that wrote the checkpoint"
            )
        return cls(
            state["cosine_examples"], int(state["reductions"]), int(state["reductions_before"])
        )


def rates(config: RunConfig, examples: int, state: RateState | None = None) -> dict[str, float]:
    """Adam's learning rate of each part of the stage's network in the step that begins after `examples` examples."""
    optim, state = config.optim, state or RateState()
    full = {
        "backbone": optim.lr_backbone,
        "aspp": optim.lr_aspp,
        "decoder": optim.lr_decoder,
        "refiner": optim.lr_refiner,
    }
    warm = min(1.0, examples / optim.warmup_examples) if optim.warmup_examples else 1.0
    return {
        part: full[part] * warm * _factor(kind, optim, examples, state)
        for part, kind in config.schedules.items()
    }


def settle_cosine(config: RunConfig, total_examples: int, begun: RateState) -> RateState:
    """`begun`, with the end of the cosine where it has one: --schedule-examples, or the run's length when it began.

    Raises:
        ConfigError: the run would go on after the cosine with rates of 0, or is over before its warm-up.
    """
    optim, kinds = config.optim, set(config.schedules.values())
    if "cosine" not in kinds:
        return begun
    end = optim.schedule_examples or begun.cosine_examples or total_examples
    if end <= optim.warmup_examples:
        raise ConfigError(
            f"the cosine schedule ends after {end} examples, its warm-up only after {optim.warmup_examples}: "
            "use fewer --warmup-examples or more --schedule-examples"
        )
    if kinds == {"cosine"} and not optim.schedule_floor and total_examples > end:
        raise ConfigError(
            f"all learning rates are 0 from {end} examples on, where the cosine schedule ends, but the run has {total_examples}: "
            f"give a new run --schedule-examples {total_examples} or a --schedule-floor (from this one's weights: --init)"
        )
    return replace(begun, cosine_examples=end)


def _factor(kind: ScheduleKind, optim: OptimConfig, examples: int, state: RateState) -> float:
    """What a part's rate is multiplied with, beside the warm-up; in 0..1."""
    if kind == "cosine":
        # Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts, from the warm-up's end on.
        assert state.cosine_examples is not None, "settle_cosine was not called"
        first, end = optim.warmup_examples, state.cosine_examples
        done = min(1.0, max(0.0, (examples - first) / (end - first)))
        floor = optim.schedule_floor
        return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
    if kind == "step":
        assert optim.step_examples is not None
        return float(optim.step_factor ** (examples // optim.step_examples))
    if kind == "plateau":
        return float(max(optim.schedule_floor, optim.plateau_factor**state.reductions))
    return 1.0
