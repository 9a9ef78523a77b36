"""Training steps: from the feed's batch to the updated weights, and what is recorded of each step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from raymat.data.batch import MicroBatch
from raymat.data.feed import Feed
from raymat.data.sample_order import Cursor, digest_lanes, digest_text
from raymat.errors import TrainingError
from raymat.train.loop.attempt import Attempt
from raymat.train.loop.preemption import PreemptionHandler
from raymat.train.loop.ready_batches import ReadyBatch, lane_of, ready_batches
from raymat.train.loop.reporter import Reporter
from raymat.train.loop.saving.checkpointing import AsyncSaver
from raymat.train.loop.startup import StartingPoint
from raymat.train.loop.state import RunState
from raymat.train.loop.train_step import StepResult
from raymat.train.observability.progress import StepClock
from raymat.train.observability.training_events import StepSkipped
from raymat.train.optim.first_batch import CheckedCompositing
from raymat.train.optim.lr_schedule import rates
from raymat.train.optim.step_health import BadStep, NonfiniteStepCounter
from raymat.train.validation.evaluator import finite


class TrainingSteps:
    """One worker's part. All workers call every method at the same steps."""

    def __init__(
        self,
        attempt: Attempt,
        feed: Feed,
        start: StartingPoint,
        reporter: Reporter,
        preemption: PreemptionHandler,
        saver: AsyncSaver,
    ) -> None:
        self._attempt, self._feed, self._reporter = attempt, feed, reporter
        self._preemption, self._saver = preemption, saver
        self.step, self.state = start.step, start.state
        self._lane, self._compose = lane_of(attempt.device), CheckedCompositing(start.step.forward)
        self._clock, self._substitutes = StepClock(), Substitutes(attempt, start.state)
        self._nonfinite = NonfiniteStepCounter(
            attempt.config.optim.max_bad_steps, attempt.device, start.state.bad_steps
        )
        self.data_wait = 0.0
        """Seconds that the worker which waited longest has waited for data in this attempt, after its first step;
        as of the newest row or save."""

    @property
    def heard(self) -> bool:
        """Whether any worker has heard of a preemption in the newest step whose health was read."""
        return self._nonfinite.heard

    @property
    def seconds(self) -> float:
        """Seconds that a step takes lately, its wait for data included; 0 before the first of this attempt."""
        return self._clock.step_seconds

    def batches(self, end: int) -> Iterator[ReadyBatch]:
        """Yield this worker's batches up to completed step `end`, as the feed gives them."""
        batches = ready_batches(self._feed.train(self.state.step, end), self._compose, self._lane)
        while True:
            self._attempt.record_activity("waiting for a batch", self.state.step)
            self._clock.batch_awaited()
            batch = next(batches, None)
            if batch is None:
                return
            self._clock.batch_arrived()
            self._reporter.batch_arrived()
            yield batch

    def train(self, ready: ReadyBatch) -> None:
        """Take one step on its batch, and record it.

        Raises:
            TrainingError: it is another step's batch, too many steps in a row were not finite, or too many examples were
                trained with substitutes.
        """
        attempt, state, schedule = self._attempt, self.state, self._attempt.schedule
        batch = ready.batch
        attempt.record_activity("training", state.step)
        if batch.step != state.step:
            raise TrainingError(f"the feed gave step {batch.step}, expected {state.step}")
        self._reporter.replaced.add(batch.replaced)
        self._substitutes.add(batch)
        self._reporter.mattes.add(batch)
        numbers = attempt.run.order.step_numbers(batch.step)
        rate = rates(attempt.config, state.cursor.next_example, state.rates)
        done = batch.step + 1
        result = self.step(
            batch,
            len(numbers),
            rate,
            pictures=attempt.group.leads and schedule.draws_images(done),
            heard=self._preemption.heard(),
            before_update=self._saver.wait_for_copy,
            composed=ready.pictures,
        )
        state.step, state.cursor = done, Cursor(schedule.examples(done))
        attempt.record_activity("training", done)
        self._require_finite(self._nonfinite.push(done, numbers, result.health))
        self._clock.step_ended(len(numbers))
        self._reporter.step_ended(done)
        self._preemption.step_ended()
        if result.pictures is not None:
            self._reporter.images(done, result.pictures)
        if schedule.logs(done):
            self._log_row(batch, result, rate)
            self._substitutes.require_few()

    def read_health(self) -> None:
        """Wait for the health of all steps: a checkpoint says how many in a row have failed, and how many used substitutes.

        Raises:
            TrainingError: too many steps in a row were not finite.
        """
        self._require_finite(self._nonfinite.drain())
        self.state.bad_steps = self._nonfinite.in_a_row
        group = self._attempt.group
        (substitutes,) = group.sums([self._substitutes.take()])
        self.state.substitutes += int(substitutes)
        (self.data_wait,) = group.largest([self._clock.data_wait])

    def _require_finite(self, found: list[BadStep]) -> None:
        for bad in found:
            skipped = StepSkipped(
                step=bad.step,
                examples=[bad.first_example, bad.last_example],
                loss=str(bad.loss),
                gradient_norm=str(bad.gradient_norm),
            )
            self._attempt.emit(skipped)
        self._nonfinite.require_finite()

    def _log_row(self, batch: MicroBatch, result: StepResult, rate: dict[str, float]) -> None:
        group, mattes = self._attempt.group, self._reporter.mattes
        lanes = digest_lanes(batch.examples).tolist()
        total, count, substitutes, *sums = group.sums(
            [result.loss_sum, result.count, self._substitutes.take(), *lanes, *mattes.numbers()]
        )
        self.state.substitutes += int(substitutes)
        digest = digest_text(sums[: len(lanes)])
        mattes.say(sums[len(lanes) :])
        # After the sums, which wait for the device: the step's time is known only now.
        columns, waited = self._clock.read()
        memory = device_memory(self._attempt.device)
        waited, memory, self.data_wait = group.largest([waited, memory, self._clock.data_wait])
        measured = columns | {"data_wait": waited, "memory": int(memory)}
        loss = finite(total / count)
        self._reporter.row("train", self.state.step, loss, digest=digest, lr=rate, **measured)


class Substitutes:
    """One worker's part. The count is of all workers and attempts, and part of the state: a kill does not change it."""

    def __init__(self, attempt: Attempt, state: RunState) -> None:
        self._attempt, self._state = attempt, state
        self._own = 0
        """This worker's that were not yet taken."""

    def add(self, batch: MicroBatch) -> None:
        """Note a batch that is trained on."""
        self._own += len({replaced.number for replaced in batch.replaced})

    def take(self) -> int:
        """Return how many this worker has had since the last call."""
        taken, self._own = self._own, 0
        return taken

    def require_few(self) -> None:
        """Raise a TrainingError, on all workers, if more were counted than --max-replaced allows."""
        limit, found = self._attempt.config.data.max_replaced, self._state.substitutes
        trained = self._state.cursor.next_example
        if limit is None or found <= limit.of(max(trained, self._attempt.schedule.epoch_examples)):
            return
        raise TrainingError(
            f"{found:,} of {trained:,} examples were trained with a substitute for a picture that cannot be read, more than "
            f"--max-replaced {limit} allows: mend the files, which the run's events name (`replaced`), or allow more"
        )


def device_memory(device: torch.device) -> float:
    """Return bytes: on a GPU the most that was allocated since the last call, on the CPU this process's resident memory."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return float(peak)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
