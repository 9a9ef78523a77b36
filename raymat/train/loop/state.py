"""The state of a run between two steps, to and from named tensors and one JSON-able dictionary.

Tensors: `model/NAME` for each entry of the network's state dict (weights and batch-norm statistics), `optimizer/MOMENT/NAME` for
each of Adam's moments of each parameter. All else is in `extra`. Nothing here depends on the number of workers, so
that any number of them can resume from it. If the run keeps an average of the weights, it is `ema/NAME`, for the same names
as `model/NAME`, statistics included.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from raymat.checkpoint.state_dict import (
    EMA,
    FORMAT,
    MODEL,
    OPTIMIZER,
    below,
    copy_same,
    require_state,
)
from raymat.config.fixed_options import DATASET, refuse_changes
from raymat.config.run import RunConfig, from_dict, to_dict
from raymat.data.lineage import NO_LINEAGE, Lineage
from raymat.data.sample_order import Cursor
from raymat.errors import CheckpointError, ConfigError, DataError
from raymat.train.loop.train_step import TrainStep
from raymat.train.optim.lr_schedule import RateState
from raymat.train.run.arithmetic import Arithmetic
from raymat.train.run.commit_interval import Experience
from raymat.train.run.schedule import Schedule
from raymat.train.validation.criteria import (
    Validation,
    best_of,
    plateau_reductions,
    stop_reason,
    validations_of,
)
from raymat.version import __version__


@dataclass
class RunState:
    """What a run remembers beside its tensors; equal on all workers, but for the times of its experience."""

    step: int = 0
    """Completed steps."""
    cursor: Cursor = field(default_factory=Cursor)
    """Examples consumed."""
    bad_steps: int = 0
    """Steps in a row, up to this one, whose loss or gradient was not finite."""
    substitutes: int = 0
    """Examples trained with a substitute for a picture that cannot be read, since the run began."""
    validations: list[Validation] = field(default_factory=list)
    """The validations that count by now."""
    pending_validation: int | None = None
    """The step whose validation has begun and does not count yet; None: there is none."""
    rates: RateState = field(default_factory=RateState)
    stopped: str | None = None
    """Why training ends before the run's length, by the validations so far."""
    experience: Experience = field(default_factory=Experience)
    """Its seconds are each worker's own; rank 0's are saved."""

    @property
    def valid_loss(self) -> float | None:
        """The loss of the newest validation."""
        return self.validations[-1].loss if self.validations else None

    def complete(self, schedule: Schedule) -> bool:
        """Whether the run ends here: at its length, or early."""
        return self.step >= schedule.total_steps or self.stopped is not None

    def add_validation(self, validation: Validation, since: int) -> None:
        """Add one. The first after step `since` displaces those up to it, which were of another validation set."""
        if validation.step > since:
            kept = [kept for kept in self.validations if kept.step > since]
            if len(kept) < len(self.validations):
                self.rates = replace(self.rates, reductions_before=self.rates.reductions)
            self.validations = kept
        self.validations.append(validation)

    def judge(self, config: RunConfig, lineage: Lineage, total_steps: int) -> None:
        """Set what follows from the validations so far: the plateau's reductions, and whether the run stops early."""
        reductions = plateau_reductions(config, self.validations, lineage)
        reductions += self.rates.reductions_before
        self.rates = replace(self.rates, reductions=reductions)
        self.stopped = self.stop_reason(config, lineage) if self.step < total_steps else None

    def stop_reason(self, config: RunConfig, lineage: Lineage) -> str | None:
        """Return why the run stops early now; None if it does not, or if a validation is pending."""
        pending = self.pending_validation is not None
        return None if pending else stop_reason(config, self.validations, lineage)

    def best(self, config: RunConfig) -> Validation | None:
        """Return the best validation by the run's --best-metric, the earliest of equals."""
        kept = config.checkpoint
        return best_of(self.validations, kept.best_metric, kept.best_mode)


@dataclass(frozen=True)
class ResumeContract:
    """What a run's weights depend on: a checkpoint made under another contract cannot be resumed."""

    config: RunConfig
    listing_digest: str
    """Of the dataset."""
    lineage: Lineage = NO_LINEAGE
    """The run's earlier datasets, and where it had ended before."""
    arithmetic: Arithmetic | None = None
    """What the last bits of the weights depend on."""

    def refuse(self, extra: Mapping[str, Any]) -> None:
        """Raise unless the checkpoint with this `extra` was made under the same contract.

        Raises:
            ConfigError: an option differs, or, with --same-bits strict, what bits depend on. DataError: the dataset differs.
            CheckpointError: `extra` is not a state's.
        """
        require_state(extra)
        # The dataset may have moved; what counts is that its listings are the same. The first weights count no more.
        refuse_changes(from_dict(extra["config"]), self.config, "the run", but=(*DATASET, "init"))
        used = Cursor.load_state_dict(extra["cursor"]).next_example
        was = Lineage.from_dict(extra.get("past")).listings(used, extra["listing_digest"])
        now = self.lineage.listings(used, self.listing_digest)
        if was != now:
            raise DataError(
                f"the dataset is not the one that the run was begun with (its listing was {_told(was)}, "
                f"is {_told(now)}): restore it, or use another --name; more data needs --grow-dataset"
            )
        before = Arithmetic.read(extra.get("arithmetic"))
        difference = before and self.arithmetic and self.arithmetic.difference(before)
        if difference and self.config.workers.same_bits == "strict":
            raise ConfigError(
                f"--same-bits strict: step {extra['step']} would be resumed on {difference}; resume it on machines and "
                "with versions as before, or with --same-bits say to let bits differ from here on"
            )


def capture(
    step: TrainStep, state: RunState, contract: ResumeContract
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state as (tensors, extra). The tensors are the live ones: copy them before the next step."""
    tensors = {MODEL + name: tensor for name, tensor in step.network.state_dict().items()}
    tensors |= {OPTIMIZER + name: t for name, t in step.optimiser.state_dict().items()}
    best = state.best(contract.config)
    extra = {
        "format": FORMAT,
        "step": state.step,
        "cursor": state.cursor.state_dict(),
        "schedule": state.rates.state_dict(),
        "scaler": step.scale.state_dict(),
        "bad_steps": state.bad_steps,
        "attempts": state.experience.store(),
        "substitutes": state.substitutes,
        "best": asdict(best) if best else None,
        "stopped": state.stop_reason(contract.config, contract.lineage),
        # Not by `asdict`, which copies all of it: a long run has many, and training stands meanwhile.
        "validations": [
            {"step": v.step, "loss": v.loss, "metrics": v.metrics} for v in state.validations
        ],
        "pending_validation": state.pending_validation,
        "config": to_dict(contract.config),
        "precision": step.forward.precision,
        "channels_last": step.forward.channels_last,
        "threads": torch.get_num_threads(),
        "listing_digest": contract.listing_digest,
        "past": contract.lineage.to_dict(),
        "versions": {
            "raymat": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    if contract.arithmetic is not None:
        extra["arithmetic"] = contract.arithmetic.store()
    if step.ema is not None:
        tensors |= {EMA + name: tensor for name, tensor in step.ema.tensors().items()}
        extra["ema"] = step.ema.state_dict()
    return tensors, extra


def lasting(step: TrainStep) -> frozenset[str]:
    """Name the tensors of `capture` that only the optimiser changes: forward and backward passes leave them alone."""
    parameters = {f"{MODEL}{name}" for name, _ in step.network.named_parameters()}
    moments = {f"{OPTIMIZER}{name}" for name in step.optimiser.state_dict()}
    # The average's statistics too: no forward pass in training mode goes through it.
    averages = {f"{EMA}{name}" for name in (step.ema.tensors() if step.ema is not None else ())}
    return frozenset(parameters | moments | averages)


def install(step: TrainStep, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> RunState:
    """Put a captured state into a fresh `step`, to the bit; return what the run remembers.

    If the state has no average of the weights, the average begins with the weights.

    Raises:
        CheckpointError: it is not the state of such a network, or of a format that this raymat does not know.
    """
    require_state(extra)
    copy_same(step.network.state_dict(), below(MODEL, tensors), "model")
    step.optimiser.load_state_dict(below(OPTIMIZER, tensors))
    step.scale.load_state_dict(extra["scaler"])
    if step.ema is not None:
        if extra.get("ema") is None:
            step.ema.restart()
        else:
            step.ema.load(below(EMA, tensors), extra["ema"])
    return RunState(
        step=int(extra["step"]),
        cursor=Cursor.load_state_dict(extra["cursor"]),
        bad_steps=int(extra["bad_steps"]),
        substitutes=int(extra.get("substitutes", 0)),
        validations=validations_of(extra),
        pending_validation=extra.get("pending_validation"),
        rates=RateState.load_state_dict(extra["schedule"]),
        experience=Experience.read(extra.get("attempts")),
    )


def require_place(state: RunState, schedule: Schedule) -> None:
    """Raise a CheckpointError if the checkpoint has consumed other examples than its step has in this run.

    Only the driver makes a run longer, and records where it had ended: this happens only if run.json is wrong.
    """
    due, used = schedule.examples(state.step), state.cursor.next_example
    if due != used and used < schedule.total_examples:
        raise CheckpointError(
            f"step {state.step} of the run is at {due} examples, its checkpoint at {used}: the run ended there, but its "
            "run.json does not say so; restore that file, or start a new run with --init"
        )


def _told(listings: list[tuple[int, str]]) -> str:
    """Format listings' digests with the examples from which they hold."""
    return ", ".join(f"{digest} from {start}" if start else digest for start, digest in listings)
