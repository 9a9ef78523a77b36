"""Freezing of parts of the network."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from raymat.errors import ConfigError


def freeze(network: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """Take the gradients from the modules of these names (`backbone`, `backbone.features.0`); return the modules.

    The caller keeps them in evaluation mode while it trains: with fixed statistics and without dropout a frozen part is
    one fixed function, the same that is deployed.

    Raises:
        ConfigError: the network has no module of such a name, or nothing is left to train.
    """
    frozen = [_find(network, name) for name in names]
    for module in frozen:
        module.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError("--freeze leaves nothing to train: name fewer parts")
    return frozen


def _find(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError:
        known = ", ".join(child for child, _ in network.named_children())
        raise ConfigError(
            f"--freeze {name}: the network has no such part; it has {known}, and what lies below them"
        ) from None
