"""The host waits for nothing in a training step: on `meta`, whose tensors hold no values, all of it runs.

What would wait for a GPU is answered with made-up values, counted and named by the code that asked. The pictures of a batch are
augmented together there, as on a GPU.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from raymat.config.sections import ModelConfig, OptimConfig, Stage
from raymat.data.batch import MicroBatch
from raymat.data.sample_order import Example
from raymat.distributed.batchnorm_kernels import FUSED_ON
from raymat.distributed.world import World
from raymat.model.matting import build
from raymat.train.loop.train_step import TrainStep
from raymat.train.optim import forward
from raymat.train.optim.forward import ForwardPass
from tests.support import fused_batchnorm

META = torch.device("meta")
RATES = {"backbone": 1e-4, "aspp": 5e-4, "decoder": 5e-4, "refiner": 3e-4}
SIDE, EXAMPLES = 64, 4

KNOWN: dict[Stage, dict[str, int]] = {
    "base": {},
    # How many patches have an error decides the size of what comes after.
    "refine": {"raymat.model.refiner.forward: nonzero": 1},
}
"""What a step with one chunk waits for."""


class Constants(TorchFunctionMode):
    """Counts what is sent to the device as a constant, for which torch waits: no operator tells."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and result.device == META:
            self._found[f"{_asked()}: a constant"] += 1
        return result


class Waits(TorchDispatchMode):
    """Counts what the host would wait for, by who asked, and answers in the device's place."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in ("nonzero", "_local_scalar_dense") and args[0].device == META:
            self._note(name)
            shape = (16, args[0].dim())
            return torch.zeros(shape, dtype=torch.int64, device=META) if name == "nonzero" else 1
        if name in ("_to_copy", "copy_"):
            source, target = _ends(name, args, kwargs)
            if source.device != target and META in (source.device, target):
                return self._copied(func, args, kwargs, source, target)
        return func(*args, **kwargs)

    def _copied(
        self, func: Any, args: Any, kwargs: dict[str, Any], source: Tensor, target: torch.device
    ) -> Any:
        """Copy between host and device: to the device without waiting, if that was asked for."""
        to_device = target == META
        asynchronous = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        if not (to_device and asynchronous):
            self._note("copied to the device" if to_device else "copied to the host")
        if to_device:
            return func(*args, **kwargs)
        return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)

    def _note(self, what: str) -> None:
        self._found[f"{_asked()}: {what}"] += 1


def _asked() -> str:
    """Return the module and the function of raymat's that are being run."""
    frame = sys._getframe(1)
    while not frame.f_globals["__name__"].startswith("raymat.") and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"


def _ends(name: str, args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, torch.device]:
    """Return what is copied, and the device that it is copied to."""
    if name == "copy_":
        return args[1], args[0].device
    return args[0], kwargs.get("device") or args[0].device


def waits_of(work: Callable[[], object]) -> dict[str, int]:
    found: Counter[str] = Counter()
    with Constants(found), Waits(found):
        work()
    return dict(found)


def batch(chunks: int = 1) -> MicroBatch:
    rng = np.random.default_rng(0)
    examples = tuple(Example(i, i, i) for i in range(EXAMPLES))
    fgr, bgr = (rng.integers(0, 256, (EXAMPLES, SIDE, SIDE, 3), np.uint8) for _ in range(2))
    pha = rng.integers(0, 256, (EXAMPLES, SIDE, SIDE), np.uint8)
    sizes = (EXAMPLES // chunks,) * chunks
    return MicroBatch(0, examples, fgr, pha, bgr, (), train=True, chunks=sizes)


def new_step(
    stage: Stage, backbone: Any, world: World | None = None, optim: OptimConfig | None = None
) -> TrainStep:
    """A step in fp16, but for the narrowing itself, which torch has on no device without values."""
    network = build(stage, ModelConfig(backbone=backbone, refine_sample_pixels=1600), 0)
    way = ForwardPass(
        stage=stage, precision="fp16", seed=0, resolution=SIDE, device=META, channels_last=True
    )
    return TrainStep(network, way, world or World(), optim)


@pytest.fixture(autouse=True)
def _without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "autocast", lambda precision, device: nullcontext())


@pytest.fixture(scope="module", autouse=True)
def _with_the_table_of_noise() -> None:
    """It is sent once a process."""
    way = ForwardPass(stage="base", precision="fp32", seed=0, resolution=SIDE, device=META)
    way.compose(batch())


@pytest.mark.parametrize("backbone", ["mobilenetv2", "resnet50"])
@pytest.mark.parametrize("stage", ["base", "refine"])
def test_a_step_waits_only_for_how_many_patches_there_are(stage: Stage, backbone: Any) -> None:
    """From a batch's pixels to the optimiser: composing, both passes, statistics, loss scale and health."""
    step = new_step(stage, backbone)
    assert waits_of(lambda: step(batch(), EXAMPLES, RATES)) == KNOWN[stage]


def test_what_may_be_added_to_a_step_waits_for_nothing_more() -> None:
    optim = OptimConfig(ema_decay=0.99, clip_norm=1.0, weight_decay=0.01)
    step = new_step("refine", "mobilenetv2", optim=optim)
    found = waits_of(lambda: step(batch(chunks=2), EXAMPLES, RATES, pictures=True, heard=True))
    assert found == {"raymat.model.refiner.forward: nonzero": 2}


def test_a_worker_among_others_waits_for_nothing_more() -> None:
    kernels = fused_batchnorm.install("meta")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        step = new_step("refine", "mobilenetv2", World(0, 2))
        found = waits_of(lambda: step(batch(), 2 * EXAMPLES, RATES))
    finally:
        dist.destroy_process_group()
        FUSED_ON.discard("meta")
        del kernels
    assert found == KNOWN["refine"]


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool((x > 0).any()), "_local_scalar_dense"),
        (lambda x: x.cpu(), "copied to the host"),
        (lambda x: torch.zeros(4).copy_(x), "copied to the host"),
        (lambda x: x.nonzero(), "nonzero"),
        (Tensor.tolist, "copied to the host"),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), "a constant"),
        (lambda x: x.new_tensor([1.0]), "a constant"),
        (lambda x: x.copy_(torch.ones(4)), "copied to the device"),
    ],
)
def test_whatever_waits_is_found(ask: Callable[[Tensor], object], answer: str) -> None:
    found = waits_of(lambda: ask(torch.ones(4, device=META)))
    assert [name.rpartition(": ")[2] for name in found] == [answer]


@pytest.mark.parametrize("ask", [lambda x: x[x > 0], torch.unique, lambda x: x.long().bincount()])
def test_whatever_else_needs_values_cannot_run(ask: Callable[[Tensor], object]) -> None:
    with pytest.raises((NotImplementedError, RuntimeError)):
        waits_of(lambda: ask(torch.ones(4, device=META)))
