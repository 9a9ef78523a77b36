"""CUDA devices without a driver: torch's fake tensors have devices, dtypes, shapes and layouts, and no values.

Whatever mixes devices fails as it would on a GPU. What torch cannot fake is stood in for here, and noted: pinned memory, streams
and events, the number of non-zero values, and the backward pass, of which only the gradients' shapes are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raymat.data.compositing import noise_field
from raymat.train.loop.train_step import TrainStep

CUDA = torch.device("cuda", 0)

NOT_TRIED = {
    "the backward pass": "autograd asks the driver for the current stream as soon as a graph is made, and the process ends",
    "values and rounding": "fake tensors hold none: the compositing, networks, saves and resume of gpu_check.py compare them",
    "kernels": "none is chosen or launched, cuDNN's among them; nor is their memory or time measured",
    "whether streams wait in time": "the order of the calls is looked at, by stand-ins for streams and events",
    "NCCL": "a process group for CUDA needs a card for each worker",
    "torch's choice of a stream for pinned memory": "its allocator is the driver's",
}
"""What no machine without a driver can try, and why."""


@dataclass
class Seen:
    """What was done while a driver was missing."""

    calls: list[str] = field(default_factory=list)
    """What streams and events were asked for, in order."""
    slow_copies: list[str] = field(default_factory=list)
    """Copies between host and device for which the host waits, or that do not come from pinned memory."""
    copies: int = 0
    """Copies between host and device."""
    pinned: set[int] = field(default_factory=set)
    """Addresses of the storages that are pinned memory; their tensors are kept."""
    kept: list[Tensor] = field(default_factory=list)
    hooks: list[tuple[Tensor, Any]] = field(default_factory=list)
    """Parameters, and what is to be called once they have a gradient."""

    def pin(self, tensor: Tensor) -> Tensor:
        self.kept.append(tensor)
        self.pinned.add(tensor.untyped_storage()._cdata)
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.pinned


class _Watched(TorchDispatchMode):
    """Looks at copies between host and device; answers how many values are not zero."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name == "nonzero":
            return args[0].new_zeros((16, args[0].dim()), dtype=torch.int64)
        if name == "_to_copy":
            self._copied(args[0], kwargs.get("device"), kwargs.get("non_blocking", False))
        elif name == "copy_":
            self._copied(args[1], args[0].device, len(args) > 2 and args[2], into=args[0])
        elif name == "_foreach_copy_":
            asynchronous = len(args) > 2 and args[2]
            pairs = list(zip(args[0], args[1], strict=True))
            for target, source in pairs:
                self._copied(source, target.device, asynchronous, into=target)
            if any(target.device != source.device for target, source in pairs):
                return None
        return func(*args, **kwargs)

    def _copied(
        self, source: Tensor, device: torch.device | None, asynchronous: bool, into: Any = None
    ) -> None:
        if device is None or source.device.type == device.type:
            return
        self._seen.copies += 1
        host = source if device.type == "cuda" else into
        if not asynchronous or host is None or not self._seen.is_pinned(host):
            self._seen.slow_copies.append(f"{tuple(source.shape)} to {device}")


class _Stream:
    def __init__(self, seen: Seen, name: str) -> None:
        self.seen, self.name, self.device = seen, name, CUDA

    def record_event(self) -> _Event:
        event = _Event(self.seen)
        self.seen.calls.append(f"{self.name} records")
        return event

    def wait_event(self, event: _Event) -> None:
        self.seen.calls.append(f"{self.name} waits for an event")

    def wait_stream(self, other: _Stream) -> None:
        self.seen.calls.append(f"{self.name} waits for {other.name}")


class _Event:
    device = CUDA

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def record(self) -> None:
        self.seen.calls.append("training records")

    def synchronize(self) -> None:
        self.seen.calls.append("the host waits")


@contextmanager
def without_driver() -> Iterator[Seen]:
    """Let CUDA devices be faked; no graph for a backward pass is made, and `backward` gives each parameter a gradient."""
    seen = Seen()
    with ExitStack() as stack:
        for patch in (*_pinned(seen), *_streams(seen), *_module(seen)):
            stack.enter_context(patch)
        # Autocast asks whether there is a card, and what it can do.
        stack.enter_context(mock.patch.object(torch.cuda, "is_bf16_supported", return_value=True))
        common = torch.cuda.amp.common
        stack.enter_context(
            mock.patch.object(common, "amp_definitely_not_available", return_value=False)
        )
        stack.enter_context(torch.no_grad())
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        # Its answers outlive the mode, and refer to what is gone then.
        fake.cache_enabled = False
        stack.enter_context(fake)
        stack.enter_context(_Watched(seen))
        # Of a device that is no more once this ends.
        stack.callback(noise_field.quantiles_on.cache_clear)
        yield seen


def _pinned(seen: Seen) -> list[Any]:
    empty, numpy = torch.empty, Tensor.numpy

    def new_empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        if not pin_memory:
            return empty(*args, **kwargs)
        # With values: numpy writes into it.
        with unset_fake_temporarily():
            real = seen.pin(empty(*args, **kwargs))
        # What views it is fake, and has another storage.
        seen.pin(real.view(real.shape))
        return real

    def to_numpy(self: Tensor) -> Any:
        with unset_fake_temporarily():
            return numpy(self)

    return [
        mock.patch.object(torch, "empty", new_empty),
        mock.patch.object(Tensor, "numpy", to_numpy),
        mock.patch.object(Tensor, "pin_memory", lambda self: seen.pin(self)),
    ]


def _streams(seen: Seen) -> list[Any]:
    training = [_Stream(seen, "training")]

    @contextmanager
    def stream(chosen: _Stream) -> Iterator[None]:
        training.append(chosen)
        yield
        training.pop()

    def new_stream(device: torch.device) -> _Stream:
        return _Stream(seen, "beside")

    def new_event() -> _Event:
        return _Event(seen)

    def current(device: torch.device | None = None) -> _Stream:
        return training[-1]

    return [
        mock.patch.object(torch.cuda, "Stream", new_stream),
        mock.patch.object(torch.cuda, "Event", new_event),
        mock.patch.object(torch.cuda, "current_stream", current),
        mock.patch.object(torch.cuda, "stream", stream),
        mock.patch.object(
            Tensor, "record_stream", lambda x, s: seen.calls.append(f"a picture is {s.name}'s too")
        ),
    ]


def _module(seen: Seen) -> list[Any]:
    seed_dropout = TrainStep._seed_dropout

    def seed(self: TrainStep, *args: Any) -> None:
        with unset_fake_temporarily():
            seed_dropout(self, *args)

    def backward(self: Tensor) -> None:
        assert self.device == CUDA
        for parameter, _ in seen.hooks:
            parameter.grad = torch.zeros_like(parameter)
        for parameter, hook in seen.hooks:
            hook(parameter)

    return [
        mock.patch.object(nn.Module, "_apply", _apply),
        mock.patch.object(nn.Parameter, "__deepcopy__", _copied_parameter),
        mock.patch.object(Tensor, "__deepcopy__", lambda self, memo: self.clone()),
        # The seeds are numbers of the host's.
        mock.patch.object(TrainStep, "_seed_dropout", seed),
        mock.patch.object(Tensor, "backward", backward),
        mock.patch.object(
            Tensor,
            "register_post_accumulate_grad_hook",
            lambda self, hook: seen.hooks.append((self, hook)),
        ),
    ]


def _copied_parameter(self: nn.Parameter, memo: Any) -> nn.Parameter:
    """As nn.Parameter's own, which looks for the values: with fake tensors that ends the process."""
    return nn.Parameter(self.detach().clone(), self.requires_grad)


def _apply(self: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """As nn.Module's own, which swaps a parameter's storage: fake tensors cannot."""
    for child in self.children():
        child._apply(function)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            moved = function(parameter.detach())
            self._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = function(buffer)
    return self


def devices_of(tree: Any) -> set[torch.device]:
    """Return where the tensors of a nested structure are."""
    return {leaf.device for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
