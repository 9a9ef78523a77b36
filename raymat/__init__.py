"""Training background-matting networks on machines that may vanish at any moment.

What a program uses is here, and each name is imported when it is first asked for: `import raymat` loads neither torch
nor Ray.

    build, RunConfig            a run's configuration, checked
    fit, RunResult              train or resume a run, and what came of it
    Store                       a run's folder at any fsspec URL
    read_metrics, read_events   a run's curves, and what happened to it
    read_state, read_weights    a checkpoint, whole or its weights alone, by the references that commands take
    build_network               the network with such weights
    export_network              that network as weights, TorchScript or ONNX
    RaymatError and below       every error that raymat raises on purpose; raymat/errors.py draws the tree
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raymat.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DataError,
    ExportError,
    LeaseError,
    LeaseLostError,
    NewerFormatError,
    RayLostError,
    RaymatError,
    RunGoneError,
    StoppedError,
    StorageError,
    TrainingError,
    WeightsError,
)
from raymat.version import __version__

if TYPE_CHECKING:
    from raymat.cluster.driver.launch import RunResult, fit
    from raymat.config.run import RunConfig, build
    from raymat.export.exporter import export_network
    from raymat.storage.store import Store
    from raymat.train.observability.events import read_events
    from raymat.train.observability.metrics_log import read_metrics
    from raymat.train.run.selected_weights import build_network, read_state, read_weights

__all__ = [
    "CheckpointError",
    "ClusterError",
    "ConfigError",
    "DataError",
    "ExportError",
    "LeaseError",
    "LeaseLostError",
    "NewerFormatError",
    "RayLostError",
    "RaymatError",
    "RunConfig",
    "RunGoneError",
    "RunResult",
    "StoppedError",
    "StorageError",
    "Store",
    "TrainingError",
    "WeightsError",
    "__version__",
    "build",
    "build_network",
    "export_network",
    "fit",
    "read_events",
    "read_metrics",
    "read_state",
    "read_weights",
]

_LATE = {
    "raymat.cluster.driver.launch": ("RunResult", "fit"),
    "raymat.config.run": ("RunConfig", "build"),
    "raymat.export.exporter": ("export_network",),
    "raymat.storage.store": ("Store",),
    "raymat.train.observability.events": ("read_events",),
    "raymat.train.observability.metrics_log": ("read_metrics",),
    "raymat.train.run.selected_weights": ("build_network", "read_state", "read_weights"),
}
"""Modules that are imported when one of these names is first asked for."""


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for (PEP 562)."""
    for module, names in _LATE.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(module), name)
            return value
    raise AttributeError(f"module 'raymat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
