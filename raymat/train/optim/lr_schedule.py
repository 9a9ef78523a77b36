"""Learning rates by part of the network: constant, cosine, step or plateau, after a warm-up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from raymat.config.run import RunConfig
from raymat.config.sections import OptimConfig, ScheduleKind
from raymat.errors import ConfigError, NewerFormatError
from raymat.storage.fields import Count, parse_fields


@dataclass(frozen=True)
class RateState:
    """What the learning rates depend on beside configuration and examples; part of a run's state."""

    cosine_examples: Count | None = None
    """Where the cosine ends, in examples; None without one. Fixed when a run begins: a longer run keeps its curve."""
    reductions: Count = 0
    """How often a plateau has lowered the rates."""
    reductions_before: Count = 0
    """How many of them came from validations with an earlier validation set, which were displaced since."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, JSON-able."""
        return {"format": 2, **asdict(self)}

    @classmethod
    def load_state_dict(cls, state: Mapping[str, Any]) -> RateState:
        """Load what `state_dict` returned; runs from before there were schedules get the default.

        Raises:
            NewerFormatError: this raymat does not know the format.
        """
        if state.get("format") == 1:
            return cls()
        if state.get("format") != 2:
            raise NewerFormatError(
                f"expected a schedule of format 2, got {state.get('format')!r}: "
                "resume with the raymat that wrote the checkpoint"
            )
        return parse_fields(cls, state)


def rates(config: RunConfig, examples: int, state: RateState | None = None) -> dict[str, float]:
    """Return Adam's learning rate of each part of the network, in the step that begins after `examples` examples."""
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


def fix_cosine_end(config: RunConfig, total_examples: int, begun: RateState) -> RateState:
    """Return `begun` with the end of the cosine, if there is one: --schedule-examples, or the run's length when it began.

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
    """Return the factor on a part's rate beside the warm-up, in 0..1."""
    if kind == "cosine":
        # Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts, from the warm-up's end on.
        assert state.cosine_examples is not None, "fix_cosine_end was not called"
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
