"""How a network with selected weights refines: as its run had it, unless options say otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raymat.config.sections import ModelConfig
from raymat.errors import ConfigError
from raymat.model.matting import MattingBase, MattingRefine
from raymat.train.run.selected_weights import Selected, build_network

OVERRIDES = ("refine_mode", "backbone_scale", "refine_sample_pixels", "refine_threshold")
"""Fields of `ModelConfig` that change no weight."""


def refining_as(selected: Selected, overrides: Mapping[str, Any]) -> ModelConfig:
    """Return how the network is to refine: as its run had it (a file: the defaults), with `overrides`, by name.

    Raises:
        ConfigError: an override has no meaning for this network, or a wrong value.
    """
    if overrides and selected.stage == "base":
        flags = ", ".join("--" + name.replace("_", "-") for name in overrides)
        raise ConfigError(
            f"{flags}: only a refine network refines, {selected.what} is a base network"
        )
    model = replace(selected.config.model if selected.config else ModelConfig(), **overrides)
    for name, mode in (("refine_sample_pixels", "sampling"), ("refine_threshold", "thresholding")):
        if name in overrides and model.refine_mode != mode:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{flag}: for --refine-mode {mode} alone, here it is {model.refine_mode}"
            )
    return model


def configured(selected: Selected, model: ModelConfig) -> MattingBase:
    """Build the network in evaluation mode, without gradients, refining as `model` says. Raises WeightsError."""
    network = build_network(selected).requires_grad_(False)
    if isinstance(network, MattingRefine):
        network.backbone_scale = model.backbone_scale
        network.refiner.mode = model.refine_mode
        network.refiner.sample_pixels = model.refine_sample_pixels
        network.refiner.threshold = model.refine_threshold
    return network
