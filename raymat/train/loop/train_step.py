"""The optimisation step: a function of the training state and one global batch, however the workers share it.

Everything that crosses workers is summed with its weight. A worker's loss counts n of N, where n is its share of the
step's N examples; so the gradient is that of the mean over the global batch for uneven and for empty shares.

A step whose loss or gradient is not finite leaves the whole state as it was, batch-norm statistics included; only the loss
scale and the cursor go on. All workers find that out from the reduced gradients, which they share. What else they must
share rides along with the gradients and needs no collective of its own: the piggyback, a parameter that is always 0.

    worker 0:  gradients ... | its share of the loss | 1: it has heard of a preemption
    worker 1:  gradients ... | its share of the loss | 0
               ------------------- all_reduce -------------------
    all:       gradients ... | the mean loss         | how many have heard

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

from raymat.config.sections import OptimConfig
from raymat.data.batch import MicroBatch
from raymat.data.composite import Composed
from raymat.data.rng import Draws, Stream
from raymat.distributed.gradient_buckets import GradientSum
from raymat.distributed.sync_batchnorm import RunningStatistics, StatisticsGroup, globalise
from raymat.distributed.world import World
from raymat.model.matting import MattingBase, set_dropout_seeds
from raymat.train.optim.adam import PartAdam
from raymat.train.optim.ema import WeightAverage
from raymat.train.optim.forward import ForwardPass
from raymat.train.optim.freeze import freeze
from raymat.train.optim.mixed_precision import LossScale, parameter_dtype
from raymat.train.optim.step_health import StepHealth
from raymat.train.validation.evaluator import Evaluator


@dataclass(frozen=True)
class StepResult:
    """What a step returns."""

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
        forward: ForwardPass,
        world: World,
        optim: OptimConfig | None = None,
    ) -> None:
        """Take `network` over: moved to the device and precision of `forward`, batch norms made global.

        `optim`: what is done beside plain Adam steps; of its rates and precision nothing is read here.
        `torch.distributed` must be initialised if `world` is larger than 1.
        """
        optim = optim or OptimConfig()
        self.forward, self._world = forward, world
        self._frozen = freeze(network, optim.frozen)
        globalise(network, world, StatisticsGroup() if world.size > 1 else None, forward.kernels)
        self.network = forward.place(network)
        self._statistics = RunningStatistics(network, self._frozen)
        decay = optim.ema_decay
        self.ema = None if decay is None else WeightAverage(network, decay)
        """The average of the weights, where the run keeps one."""
        self.optimiser = PartAdam(network, optim.weight_decay)
        self._clip_norm = optim.clip_norm
        self.scale = LossScale(forward.precision, forward.device)
        self._objective = _Objective(network, forward)
        trained = [p for p in network.parameters() if p.requires_grad]
        self._gradients = GradientSum(trained, self._objective.piggyback, world.size)

    def __call__(
        self,
        batch: MicroBatch,
        total: int,
        rates: Mapping[str, float],
        pictures: bool = False,
        heard: bool = False,
        before_update: Callable[[], None] = lambda: None,
        composed: Sequence[Composed] | None = None,
    ) -> StepResult:
        """Train on this worker's share `batch` of a step of `total` examples; called by all workers, for the same step.

        A batch of several chunks goes through the network chunk by chunk; their gradients are added up.
        `composed`: the chunks' pictures, where they are made already.
        `heard`: this worker has heard of a preemption; the result's health says whether any worker has.
        `before_update` is called before the optimiser changes anything.
        """
        self.network.train()
        for module in self._frozen:
            module.eval()
        before = self._statistics.save()
        self._gradients.clear()
        if heard:
            self._objective.heard.fill_(1.0)
        parts = batch.by_chunk()
        made: Sequence[Composed | None] = composed or [None] * len(parts)
        done = [
            self._pass(part, ready, total, pictures, last=part is parts[-1])
            for part, ready in zip(parts, made, strict=True)
        ]
        self._gradients.finish()
        health = self._apply(rates, before, before_update)
        return StepResult(
            loss_sum=torch.stack([loss for loss, _ in done]).sum(),
            count=len(batch.examples),
            health=health,
            pictures=_concatenate([shown for _, shown in done]) if pictures else None,
        )

    def _pass(
        self, batch: MicroBatch, made: Composed | None, total: int, pictures: bool, *, last: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the gradients of `batch`; return the sum of its examples' losses, float64 (), and its pictures if wanted."""
        composed = self.forward.compose(batch) if made is None else made
        self._seed_dropout(self.network, batch)
        weight = len(batch.examples) / total
        scaled, loss, outputs = self._objective(composed, weight, self.scale.value)
        # Told before the backward pass: its hooks send a bucket as soon as the last chunk has filled it.
        self._gradients.expect(last=last)
        scaled.backward()
        self._statistics.update()
        shown = _pictures(outputs, composed) if pictures else {}
        return loss.double() * len(batch.examples), shown

    @torch.no_grad()
    def share_weights(self) -> None:
        """Take rank 0's weights: unlike processors may round initial weights differently. Called by all workers."""
        if self._world.size > 1:
            for tensor in self.network.state_dict().values():
                lead = tensor.contiguous()
                dist.broadcast(lead, src=0)
                tensor.copy_(lead)

    def evaluators(self, metrics: Sequence[str]) -> dict[str, Evaluator]:
        """Return evaluators of the loss and `metrics`: of the network (""), and of the average of its weights ("ema_")
        where there is one.
        """
        networks: dict[str, nn.Module] = {"": self.network}
        if self.ema is not None:
            networks["ema_"] = self.ema.network
        return {
            prefix: Evaluator(network, self.forward, metrics)
            for prefix, network in networks.items()
        }

    @torch.no_grad()
    def _apply(
        self, rates: Mapping[str, float], before: list[Tensor], before_update: Callable[[], None]
    ) -> StepHealth:
        """Let the optimiser step unless something is not finite; see the module's text."""
        loss = self._objective.loss_sum / self.scale.value
        norm = torch.nn.utils.get_total_norm(self._gradients.flats) / self.scale.value
        bad = ~(torch.isfinite(norm) & torch.isfinite(loss))
        failed = bad & (~torch.isfinite(loss) | self.scale.at_floor())
        if self._clip_norm is not None:
            for flat in self._gradients.flats:
                flat.mul_((self._clip_norm / norm).clamp(max=1.0))
        # A snapshot may still be copied while the passes run; only from here on its tensors change.
        before_update()
        self.optimiser.step(rates, bad, self.scale.value if self.scale.used else None)
        self._statistics.undo(before, bad)
        # After the optimiser and the statistics: it averages what the step leaves.
        if self.ema is not None:
            self.ema.update(bad)
        # Last: all above is divided by the scale that the passes were multiplied with.
        self.scale.update(bad)
        return StepHealth(loss, norm, bad, failed, self._objective.heard > 0)

    def _seed_dropout(self, network: nn.Module, batch: MicroBatch) -> None:
        seed = self.forward.seed
        seeds = [Draws(seed, Stream.DROPOUT, e.number).torch_seed() for e in batch.examples]
        host_bits = self.forward.recipe not in ("1", "2")
        set_dropout_seeds(network, torch.tensor(seeds, dtype=torch.int64), host_bits)


class _Objective(nn.Module):
    """Network and loss as one module: all that is differentiated."""

    def __init__(self, network: MattingBase, forward: ForwardPass) -> None:
        super().__init__()
        self.network = network
        # Always 0, see the module's text: the gradient of its first element is the weighted loss, that of the second
        # whatever a worker puts there; the workers sum both like all other gradients.
        dtype = parameter_dtype(forward.precision)
        self.piggyback = nn.Parameter(torch.zeros(2, dtype=dtype, device=forward.device))
        self._forward = forward

    @property
    def loss_sum(self) -> Tensor:
        """The scaled loss as the mean over the global batch, after the backward pass ()."""
        assert self.piggyback.grad is not None
        return self.piggyback.grad[0]

    @property
    def heard(self) -> Tensor:
        """How many workers have heard of a preemption, after the backward pass; before it whether this one has ()."""
        assert self.piggyback.grad is not None
        return self.piggyback.grad[1]

    def forward(
        self, composed: Composed, weight: float, scale: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return what to differentiate (), the loss () as the mean over the share, and the network's outputs."""
        loss, outputs = self._forward(self.network, composed)
        weighted = loss * weight
        probed = weighted + self.piggyback[0] * weighted.detach()
        return probed * scale, loss.detach(), tuple(x.detach() for x in outputs)


def _pictures(outputs: tuple[Tensor, ...], composed: Composed) -> dict[str, Tensor]:
    """Name the pictures as the reference does; err of a refine network is the coarse one."""
    pha, fgr = outputs[0], outputs[1]
    err = outputs[2] if len(outputs) == 4 else outputs[4]
    return {"pha": pha, "fgr": fgr, "err": err, "src": composed.src, "bgr": composed.bgr}


def _concatenate(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the pictures of all chunks."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
