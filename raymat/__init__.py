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

from raymat.version import __version__

if TYPE_CHECKING:
    from raymat.cluster.driver.launch import RunResult, fit
    from raymat.config.run import RunConfig, build
    from raymat.errors import (
        CheckpointError,
        ClusterError,
        ConfigError,
        DataError,
        ExportError,
        LeaseError,
        LeaseLostError,
        RaymatError,
        StoppedError,
        StorageError,
        TrainingError,
        WeightsError,
    )
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
    "RaymatError",
    "RunConfig",
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

_MODULES = {
    "RunConfig": "config.run",
    "RunResult": "cluster.driver.launch",
    "Store": "storage.store",
    "build": "config.run",
    "build_network": "train.run.selected_weights",
    "export_network": "export.exporter",
    "fit": "cluster.driver.launch",
    "read_events": "train.observability.events",
    "read_metrics": "train.observability.metrics_log",
    "read_state": "train.run.selected_weights",
    "read_weights": "train.run.selected_weights",
}
"""Where each name is defined, below raymat; errors are in raymat.errors."""


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'raymat' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"raymat.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
