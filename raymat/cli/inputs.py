"""Options that several commands share."""

from __future__ import annotations

import torch

from raymat.config.sections import Device
from raymat.errors import ConfigError
from raymat.json_lines import tell


def device_of(name: Device) -> torch.device:
    """Return the device that --device names; auto is cuda if torch finds one. Raises ConfigError."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfigError("--device cuda: torch finds no CUDA device here, use --device cpu")
    return torch.device("cuda" if there and name == "auto" else "cpu" if name == "auto" else name)


def print_note(note: str) -> None:
    """Print a note to stderr, beside a command's result."""
    tell(f"note: {note}", "warning")
