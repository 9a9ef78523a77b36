"""Training steps: from the feed's batch to the updated weights, and what is recorded of each step."""

from __future__ import annotations

from collections.abc import Iterator

from raymat.data.batch import MicroBatch
from raymat.data.feed import Feed
from raymat.data.sample_order import Cursor, digest_lanes, digest_text
from raymat.errors import TrainingError
from raymat.train.loop.attempt import Attempt
from raymat.train.loop.checkpointing import AsyncSaver
from raymat.train.loop.preemption import PreemptionHandler
from raymat.train.loop.reporter import Reporter
from raymat.train.loop.startup import StartingPoint
from raymat.train.loop.train_step import StepResult
from raymat.train.observability.training_events import StepSkipped
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
        self._nonfinite = NonfiniteStepCounter(
            attempt.config.optim.max_bad_steps, attempt.device, start.state.bad_steps
        )

    @property
    def heard(self) -> bool:
        """Whether any worker has heard of a preemption in the newest step whose health was read."""
        return self._nonfinite.heard

    def batches(self, end: int) -> Iterator[MicroBatch]:
        """Yield this worker's batches up to completed step `end`, as the feed gives them."""
        batches = self._feed.train(self.state.step, end)
        while True:
            self._attempt.record_activity("waiting for a batch", self.state.step)
            self._reporter.batch_awaited()
            batch = next(batches, None)
            if batch is None:
                return
            self._reporter.batch_arrived()
            yield batch

    def train(self, batch: MicroBatch) -> None:
        """Take one step on its batch, and record it.

        Raises:
            TrainingError: it is another step's batch, or too many steps in a row were not finite.
        """
        attempt, state, schedule = self._attempt, self.state, self._attempt.schedule
        attempt.record_activity("training", state.step)
        if batch.step != state.step:
            raise TrainingError(f"the feed gave step {batch.step}, expected {state.step}")
        self._reporter.replaced.add(batch.replaced)
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
        )
        state.step, state.cursor = done, Cursor(schedule.examples(done))
        attempt.record_activity("training", done)
        self._require_finite(self._nonfinite.push(done, numbers, result.health))
        self._reporter.step_ended(done, len(numbers))
        self._preemption.step_ended()
        if result.pictures is not None:
            self._reporter.images(done, result.pictures)
        if schedule.logs(done):
            self._log_row(batch, result, rate)

    def read_health(self) -> None:
        """Wait for the health of all steps: a checkpoint says how many in a row have failed.

        Raises:
            TrainingError: too many steps in a row were not finite.
        """
        self._require_finite(self._nonfinite.drain())
        self.state.bad_steps = self._nonfinite.in_a_row

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
        lanes = digest_lanes(batch.examples).tolist()
        sums = self._attempt.group.sums([result.loss_sum, float(result.count), *lanes])
        total, count, *summed = sums
        digest = digest_text(summed)
        loss = finite(total / count)
        # After the sums, which wait for the device: the step's time is known only now.
        measured = self._reporter.measurements()
        self._reporter.row("train", self.state.step, loss, digest=digest, lr=rate, **measured)
