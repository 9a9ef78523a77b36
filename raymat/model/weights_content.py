"""The network's tensors in what a weights file holds, whatever they are wrapped in and whatever stands before their names.

Training programs save a state dict inside a dictionary (`state_dict`, `model`, ...), beside optimisers and averages, and
wrappers of the network put their own names before its tensors' (`module.`, `_orig_mod.`, `model.`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raymat.errors import WeightsError

_ANCHOR = "backbone."
"""Every network has tensors below this name: what stands before it stands before the others too."""

_WRAPPERS = re.compile(
    r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""Names that PyTorch's wrappers put anywhere into a tensor's name, and that no network here uses."""


def tensors_in(content: Any, source: str) -> dict[str, Tensor]:
    """Return the tensors of a file's content under this project's names, ignoring everything else.

    Dictionaries may be nested. What stands before `backbone.` (keys of dictionaries and prefixes alike) is taken from the
    names that begin with it, and tensors without it are left out; an average (`ema`) is left out where the weights
    themselves are there. Without any such tensor, those at the top are returned as they are.

    Raises:
        WeightsError: it is no dictionary, holds no tensor that could be a network's, or holds several networks.
    """
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{source} holds a {type(content).__name__}, expected a state dict: "
            "give a published .pth or a DeepLabV3 checkpoint"
        )
    found = _flatten(content, source)
    prefixes = {name[: name.rfind(_ANCHOR)] for name in found if _ANCHOR in name}
    prefix = _choose(prefixes, source)
    if not prefixes:
        found = {name: tensor for name, tensor in found.items() if name in content}
        if not found:
            raise WeightsError(f"nothing in {source} is a network: {_keys_of(content)}")
    return _rename_deeplab(
        {n.removeprefix(prefix): tensor for n, tensor in found.items() if n.startswith(prefix)}
    )


def nonfinite(tensors: Mapping[str, Tensor]) -> str | None:
    """Say how many tensors hold NaN or infinity, as float32, and which is the first; None if none does."""
    bad = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all())
    ]
    if not bad:
        return None
    first = tensors[bad[0]]
    values = int((~first.float().isfinite()).sum())
    return (
        f"{len(bad)} of {len(tensors)} tensors hold NaN or infinity, the first {bad[0]} "
        f"({values} of {first.numel()} values)"
    )


def abbreviate(names: Sequence[str]) -> str:
    """Return the first names, and "..." if there are more."""
    shown = ", ".join(names[:3])
    return f"{shown}, ..." if len(names) > 3 else shown


def _flatten(content: Mapping[Any, Any], source: str) -> dict[str, Tensor]:
    """Return all tensors under their names with the keys of the dictionaries around them, without wrappers' names."""
    found: dict[str, Tensor] = {}
    for full, tensor in _leaves(content, "", set()):
        name = _WRAPPERS.sub("", full)
        if name in found:
            raise WeightsError(
                f"{source} holds two tensors for {name}, one of them as {full}: save one network's state dict alone"
            )
        found[name] = tensor
    return found


def _leaves(
    content: Mapping[Any, Any], prefix: str, visited: set[int]
) -> Iterator[tuple[str, Tensor]]:
    # An unpickled dictionary may hold itself, and one state dict may stand under two keys.
    visited.add(id(content))
    for key, value in content.items():
        if not isinstance(key, str) or (isinstance(value, Mapping) and key.startswith("optim")):
            continue
        if isinstance(value, Tensor) and _plain(value):
            yield prefix + key, value
        elif isinstance(value, Mapping) and id(value) not in visited:
            yield from _leaves(value, f"{prefix}{key}.", visited)


def _plain(tensor: Tensor) -> bool:
    """Return whether it can be copied into a parameter: dense, real, not quantized, with its data."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_complex()
        and not tensor.is_quantized
    )


def _choose(prefixes: set[str], source: str) -> str:
    """Return what stands before the network's names."""
    if not prefixes or "" in prefixes:
        return ""
    weights = {p for p in prefixes if "ema" not in re.split("[^a-z]+", p.lower())} or prefixes
    if len(weights) > 1:
        names = abbreviate([f"{prefix}{_ANCHOR}" for prefix in sorted(weights)])
        raise WeightsError(
            f"{source} holds {len(weights)} networks, {names}: save one network's state dict alone"
        )
    (prefix,) = weights
    return prefix


def _keys_of(content: Mapping[Any, Any]) -> str:
    if not content:
        return "it is empty"
    inner = [name for name, _ in _leaves(content, "", set())]
    held = f"its tensors are named {abbreviate(inner)}" if inner else "it holds no tensors"
    return f"{held}; its keys are {abbreviate([str(key) for key in content])}"


def _rename_deeplab(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a DeepLabV3 state dict (github.com/VainF/DeepLabV3Plus-Pytorch) to this project's names.

    `classifier.classifier.0` becomes `aspp`. A MobileNetV2's `backbone.low_level_features.i`
    becomes `backbone.features.i`; its `high_level_features.j` begin at features[4], numbered from 0
    or, where a slice of the original kept its numbers, from 4. Other names stay.
    """
    pattern = re.compile(r"backbone\.high_level_features\.(\d+)\.")
    numbers = [int(found[1]) for name in state if (found := pattern.match(name))]
    shift = 4 - min(numbers, default=4)
    return {
        pattern.sub(lambda found: f"backbone.features.{int(found[1]) + shift}.", name)
        .replace("backbone.low_level_features.", "backbone.features.")
        .replace("classifier.classifier.0.", "aspp."): tensor
        for name, tensor in state.items()
    }
