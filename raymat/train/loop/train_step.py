"""The optimisation step: a function of the training state and one global batch, whoever holds which part of it.

Everything that crosses workers is summed with its weight. A worker's loss counts n of N, where n is its share of the
step's N examples; so the gradient is that of the mean over the global batch for uneven and for empty shares.

A step whose loss or gradient is not finite leaves the whole state as it was, batch-norm statistics included; only the loss
scale and the cursor go on. All workers find that out from the reduced gradients, which they share: the loss itself is made
the gradient of one more parameter, so that it needs no collective of its own; and so is what one worker wants all to hear.
Nothing in a step makes the host wait for the device; who wants to know reads the result later.

A step may take its batch in several chunks. Each is spread over the workers and has the batch-norm statistics of all its
examples; only after the last one gradients are summed over the workers, clipped and used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raymat.config.sections import OptimConfig, Precision, Stage
from raymat.data.batch import MicroBatch
from raymat.data.composite import Composed
from raymat.data.rng import Draws, Stream
from raymat.distributed.gradient_buckets import GradientSum
from raymat.distributed.sync_batchnorm import RunningStatistics, globalise
from raymat.distributed.world import World
from raymat.model.matting import MattingBase, set_dropout_seeds
from raymat.train.optim.adam import PartAdam
from raymat.train.optim.ema import WeightAverage
from raymat.train.optim.forward import compose, loss_of
from raymat.train.optim.freeze import freeze
from raymat.train.optim.mixed_precision import LossScale, autocast, parameter_dtype
from raymat.train.validation.evaluator import Evaluator


class StepHealth:
    """What became of a step, on its way from the device to the host."""

    def __init__(
        self, loss: Tensor, norm: Tensor, skipped: Tensor, failed: Tensor, heard: Tensor
    ) -> None:
        """Scalars: the loss as the mean over the global batch, the gradient's norm, whether the step was skipped, whether
        that counts as a failure (in fp16 an overflow does not while the loss scale can still go lower), and whether
        any worker has heard of something.
        """
        values = torch.stack([value.double() for value in (loss, norm, skipped, failed, heard)])
        self._done: torch.cuda.Event | None = None
        if values.is_cuda:
            # Copied now: a copy asked for later would wait for all that was queued until then.
            pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = pinned.copy_(values, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()
        self._values = values

    def read(self) -> tuple[float, float, bool, bool, bool]:
        """(loss, norm, skipped, failed, heard); waits for the step's end."""
        if self._done is not None:
            self._done.synchronize()
        loss, norm, skipped, failed, heard = self._values.tolist()
        return loss, norm, bool(skipped), bool(failed), bool(heard)


@dataclass(frozen=True)
class StepResult:
    """What a step gives back."""

    loss_sum: Tensor
    """Sum of the losses of this worker's examples, float64 ()."""
    count: int
    """This worker's examples."""
    health: StepHealth
    pictures: dict[str, Tensor] | None
    """pha, fgr, err, src and bgr of this worker's examples, (n, c, h, w) in 0..1, where they were asked for."""


class TrainStep:
    """The network, its optimiser and all they need to take a step."""

    def __init__(
        self,
        network: MattingBase,
        *,
        stage: Stage,
        precision: Precision,
        seed: int,
        resolution: int,
        world: World,
        device: torch.device,
        channels_last: bool | None = None,
        optim: OptimConfig | None = None,
    ) -> None:
        """Takes `network` over: moved to `device` and its precision, batch norms made global.

        `seed` and `resolution` are the run's. `channels_last` is how weights and pictures lie in memory; by default
        so on cuda. `optim`: what is done beside plain Adam steps (its rates and precision are handed over apart).
        `torch.distributed` must be initialised if `world` is larger than 1.
        """
        optim = optim or OptimConfig()
        self.world, self.device, self.precision = world, device, precision
        self.channels_last = device.type == "cuda" if channels_last is None else channels_last
        memory = torch.channels_last if self.channels_last else torch.contiguous_format
        self._stage: Stage = stage
        self._seed, self._resolution = seed, resolution
        self._dtype = parameter_dtype(precision)
        self._frozen = freeze(network, optim.frozen)
        globalise(network, world)
        network.to(device=device, dtype=self._dtype)
        network.to(memory_format=memory)  # type: ignore[call-overload]
        self.network = network
        self._statistics = RunningStatistics(network, self._frozen)
        decay = optim.ema_decay
        self.ema = None if decay is None else WeightAverage(network, decay)
        """The average of the weights, where the run keeps one."""
        self.optimiser = PartAdam(network, optim.weight_decay)
        self._clip_norm = optim.clip_norm
        self.scale = LossScale(precision, device)
        self.before_update: Callable[[], None] = lambda: None
        """Called in every step before the optimiser changes anything."""
        self._objective = _Objective(network, stage, precision, device)
        trained = [p for p in network.parameters() if p.requires_grad]
        self._gradients = GradientSum(trained, self._objective.probe, world.size)

    def __call__(
        self,
        batch: MicroBatch,
        total: int,
        rates: Mapping[str, float],
        pictures: bool = False,
        heard: bool = False,
    ) -> StepResult:
        """Train on this worker's share `batch` of a step of `total` examples; called by all workers, for the same step.

        A batch of several chunks goes through the network chunk by chunk; their gradients are added up.
        `heard`: this worker wants all of them to hear of something; the result's health says whether any one did.
        """
        self.network.train()
        for module in self._frozen:
            module.eval()
        before = self._statistics.save()
        self._gradients.clear()
        if heard:
            self._objective.heard.fill_(1.0)
        *first, last = batch.by_chunk()
        done = [self._pass(part, total, pictures) for part in first]
        done.append(self._pass(last, total, pictures, last=True))
        self._gradients.finish()
        health = self._apply(rates, before)
        return StepResult(
            loss_sum=torch.stack([loss for loss, _ in done]).sum(),
            count=len(batch.examples),
            health=health,
            pictures=_together([shown for _, shown in done]) if pictures else None,
        )

    def _pass(
        self, batch: MicroBatch, total: int, pictures: bool, last: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the gradients of `batch`; the sum of its examples' losses, float64 (), and its pictures if wanted."""
        composed = self._compose(batch)
        set_dropout_seeds(self.network, self._dropout_seeds(batch))
        weight = len(batch.examples) / total
        scaled, loss, outputs = self._objective(composed, weight, self.scale.value)
        self._gradients.expect(last=last)
        scaled.backward()
        shown = _pictures(outputs, composed) if pictures else {}
        return loss.double() * len(batch.examples), shown

    @torch.no_grad()
    def share_weights(self) -> None:
        """Take rank 0's weights: unlike processors may round initial weights differently. Called by all workers."""
        if self.world.size > 1:
            for tensor in self.network.state_dict().values():
                lead = tensor.contiguous()
                dist.broadcast(lead, src=0)
                tensor.copy_(lead)

    def examiners(self, metrics: Sequence[str]) -> dict[str, Evaluator]:
        """What measures the loss and `metrics` of single examples: of the network (""), and of the average of its
        weights ("ema_") where there is one.
        """
        networks: dict[str, nn.Module] = {"": self.network}
        if self.ema is not None:
            networks["ema_"] = self.ema.network
        return {
            prefix: Evaluator(
                network,
                stage=self._stage,
                precision=self.precision,
                seed=self._seed,
                resolution=self._resolution,
                device=self.device,
                channels_last=self.channels_last,
                metrics=metrics,
            )
            for prefix, network in networks.items()
        }

    @torch.no_grad()
    def _apply(self, rates: Mapping[str, float], before: list[Tensor]) -> StepHealth:
        """Let the optimiser step unless something is not finite; see the module's text."""
        loss = self._objective.loss_sum / self.scale.value
        norm = torch.nn.utils.get_total_norm(self._gradients.flats) / self.scale.value
        bad = ~(torch.isfinite(norm) & torch.isfinite(loss))
        failed = bad & (~torch.isfinite(loss) | self.scale.at_floor())
        if self._clip_norm is not None:
            for flat in self._gradients.flats:
                flat.mul_((self._clip_norm / norm).clamp(max=1.0))
        self.before_update()
        self.optimiser.step(rates, bad, self.scale.value if self.scale.used else None)
        self._statistics.undo(before, bad)
        if self.ema is not None:
            self.ema.update(bad)
        self.scale.update(bad)
        return StepHealth(loss, norm, bad, failed, self._objective.heard > 0)

    def _compose(self, batch: MicroBatch) -> Composed:
        return compose(
            batch,
            seed=self._seed,
            resolution=self._resolution,
            device=self.device,
            dtype=self._dtype,
            channels_last=self.channels_last,
        )

    def _dropout_seeds(self, batch: MicroBatch) -> Tensor:
        seeds = [Draws(self._seed, Stream.DROPOUT, e.number).torch_seed() for e in batch.examples]
        return torch.tensor(seeds, dtype=torch.int64)


class _Objective(nn.Module):
    """Network and loss as one module: all that is differentiated."""

    def __init__(
        self, network: MattingBase, stage: Stage, precision: Precision, device: torch.device
    ) -> None:
        super().__init__()
        self.network = network
        # Always 0. The gradient of its first element is the weighted loss, that of the second what a worker puts there;
        # both are summed over the workers like all others.
        self.probe = nn.Parameter(torch.zeros(2, dtype=parameter_dtype(precision), device=device))
        self._loss = loss_of(stage)
        self._precision: Precision = precision
        self._device = device

    @property
    def loss_sum(self) -> Tensor:
        """The scaled loss as the mean over the global batch, after the backward pass ()."""
        assert self.probe.grad is not None
        return self.probe.grad[0]

    @property
    def heard(self) -> Tensor:
        """How many workers have heard of something, after the backward pass; this one's word before it ()."""
        assert self.probe.grad is not None
        return self.probe.grad[1]

    def forward(
        self, composed: Composed, weight: float, scale: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """What to differentiate (), the loss () as the mean over the share, and the network's outputs."""
        with autocast(self._precision, self._device):
            outputs = self.network(composed.src, composed.bgr)
        loss = self._loss(outputs, composed)
        weighted = loss * weight
        probed = weighted + self.probe[0] * weighted.detach()
        return probed * scale, loss.detach(), tuple(x.detach() for x in outputs)


def _pictures(outputs: tuple[Tensor, ...], composed: Composed) -> dict[str, Tensor]:
    """By the names of the reference; err of a refine network is the coarse one."""
    pha, fgr = outputs[0], outputs[1]
    err = outputs[2] if len(outputs) == 4 else outputs[4]
    return {"pha": pha, "fgr": fgr, "err": err, "src": composed.src, "bgr": composed.bgr}


def _together(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The pictures of all chunks."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
