"""The schedule of a run: when it logs, validates, commits and ends, as pure functions of completed steps.

Steps are counted over the whole run, from 1: an interval of 10 is due at 10, 20, 30, ... The reference restarts most
counts in each epoch; here they depend neither on where an epoch ends nor on restarts. Lengths are in examples, so that
another batch size keeps a run's length, epochs and learning rates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raymat.config.run import RunConfig
from raymat.data.feed import Stretch
from raymat.data.lineage import Steps
from raymat.data.sample_order import SampleOrder
from raymat.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a run logs, validates, commits and ends."""

    batch_size: int
    """Examples in every step but the last, and those at `ends`."""
    total_examples: int
    """Examples in the whole run."""
    epoch_examples: int
    """Examples in one virtual epoch."""
    checkpoint_interval: int | None
    """None: when a checkpoint is due is chosen while the run trains (see `raymat.train.run.commit_interval`)."""
    keep_every: int | None = None
    """Steps between two checkpoints that are kept for good."""
    valid_interval: int
    valid_examples: int
    """0: no validation at all."""
    validates_late: bool = False
    """Whether a result counts only from the next validation point on: it may be found beside training."""
    log_loss_interval: int
    log_images_interval: int
    ends: tuple[int, ...] = ()
    """Where the run had ended before it was made longer, in examples."""

    @classmethod
    def of(cls, config: RunConfig, order: SampleOrder) -> Schedule:
        """Make the schedule of a run whose dataset and length `order` holds.

        Raises:
            ConfigError: the batch size is 1, from which batch norm learns no statistics where the network pools.
        """
        if order.batch_size == 1:
            raise ConfigError(
                "--batch-size 1 cannot be trained: batch norm needs at least 2 examples in a step"
            )
        interval, log = config.checkpoint.checkpoint_interval, config.log
        assert interval and log.valid_interval and log.log_images_interval, "not settled"
        return cls(
            batch_size=order.batch_size,
            total_examples=order.total_examples,
            epoch_examples=config.length.epoch_examples or order.first_pairs,
            checkpoint_interval=interval.steps,
            keep_every=config.checkpoint.keep_every,
            valid_interval=log.valid_interval,
            valid_examples=order.valid_examples,
            validates_late=log.validation != "loop",
            log_loss_interval=log.log_loss_interval,
            log_images_interval=log.log_images_interval,
            ends=order.lineage.ends,
        )

    @property
    def total_steps(self) -> int:
        return self._steps.count(self.total_examples)

    @property
    def _steps(self) -> Steps:
        return Steps(self.batch_size, self.ends)

    def examples(self, step: int) -> int:
        """Return the examples consumed after `step` completed steps."""
        return min(self._steps.examples(step), self.total_examples)

    def stops(self, step: int) -> bool:
        """Whether the run ends after `step` steps, or had ended there before it was made longer."""
        return step == self.total_steps or self.examples(step) in self.ends

    def epoch(self, step: int) -> float:
        """Return the virtual epochs completed after `step` steps, a fraction."""
        return self.examples(step) / self.epoch_examples

    def ends_epoch(self, step: int) -> bool:
        """Whether a virtual epoch's last example was consumed in this step."""
        before, after = self.examples(step - 1), self.examples(step)
        return after // self.epoch_examples > before // self.epoch_examples

    def commits(self, step: int) -> bool:
        """Whether a checkpoint is due by the step's number: on the intervals, at the run's end, for a validation beside
        training, which reads it, and at a virtual epoch's end unless one was due within a tenth of the interval before."""
        interval = self.checkpoint_interval
        return (
            self.stops(step)
            or self.keeps(step)
            or (self.validates_late and self.validates(step))
            or (interval is not None and self._commits_on(interval, step))
        )

    def keeps(self, step: int) -> bool:
        """Whether a checkpoint is due that is kept for good."""
        return self.keep_every is not None and step % self.keep_every == 0

    def _commits_on(self, interval: int, step: int) -> bool:
        at_end = self.ends_epoch(step) and self._commits_at_epoch_end(interval, step)
        return step % interval == 0 or at_end

    def _commits_at_epoch_end(self, interval: int, step: int) -> bool:
        """Whether no checkpoint is due within a tenth of the interval before `step`, at which an epoch ends.

        By the numbers of the steps alone: whether the ones before were committed depends on storage and on kills.
        """
        before = (step - 1) // interval * interval
        if self.validates_late and self.valid_examples > 0:
            before = max(before, (step - 1) // self.valid_interval * self.valid_interval)
        ended = (self._steps.count(end) for end in self.ends)
        due = max((before, *(end for end in ended if end < step)))
        while due < step:
            due = self._next_epoch_end(due + -(-interval // 10))
        return due == step

    def _next_epoch_end(self, step: int) -> int:
        """Return the first step from `step` on at which a virtual epoch ends."""
        epochs = self._steps.examples(step - 1) // self.epoch_examples
        return self._steps.count((epochs + 1) * self.epoch_examples)

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
        """Return the next step after `step` at which training pauses for a validation or ends."""
        if self.valid_examples == 0:
            return self.total_steps
        due = (step // self.valid_interval + 1) * self.valid_interval
        later = (self._steps.count(end) for end in self.ends)
        return min(self.total_steps, due, *(end for end in later if end > step))

    def stretches(self, step: int) -> Iterator[Stretch]:
        """Yield what an attempt that begins at `step` asks its feed for, as far as the steps' numbers tell."""
        validation = Stretch("valid")
        if step == 0 and self.valid_examples:
            yield validation
        while step < self.total_steps:
            end = self.segment_end(step)
            yield Stretch("train", step, end)
            step = end
            # One that may run beside training needs the feed only where no place is found for it.
            if self.validates(step) and (not self.validates_late or self.stops(step)):
                yield validation
