"""Creation of a run's loggers: metrics/, tensorboard/, and the user's own."""

from __future__ import annotations

import importlib

from raymat.distributed.collectives import Group
from raymat.errors import ConfigError
from raymat.storage.store import Store
from raymat.train.observability.logger import Logger
from raymat.train.observability.merging.background_merge import BackgroundMerge
from raymat.train.observability.merging.events_merge import EventsMerge
from raymat.train.observability.merging.metrics_merge import MetricsMerge
from raymat.train.observability.metrics_log import MetricsLog


def make_loggers(store: Store, attempt: int, own: str | None, group: Group) -> list[Logger]:
    """Make the loggers on rank 0, and none on the other workers. Called by all workers; raises on all of them.

    `own`: MODULE:NAME of the user's class or function, called with `store` and `attempt`.

    Raises:
        ConfigError: there is no such module, or no such name in it.
    """

    def make() -> list[Logger]:
        if not group.leads:
            return []
        # Imported here: half a second that only rank 0 needs.
        from raymat.train.observability.tensorboard_log import TensorBoardLog

        loggers: list[Logger] = [MetricsLog(store, attempt), TensorBoardLog(store, attempt)]
        return [*loggers, _make(own, store, attempt)] if own else loggers

    return group.on_all(make)


def make_background_merge(store: Store, attempt: int, group: Group) -> BackgroundMerge:
    """Make what merges the objects of metrics, events and TensorBoard: on rank 0; on the other workers it does nothing."""
    if not group.leads or not store.may_delete:  # the same would be merged again and again
        return BackgroundMerge(())
    from raymat.train.observability.merging.curves_merge import CurvesMerge

    return BackgroundMerge(
        [MetricsMerge(store, attempt), EventsMerge(store, attempt), CurvesMerge(store, attempt)]
    )


def _make(own: str, store: Store, attempt: int) -> Logger:
    module_name, _, name = own.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"--logger {own}: {error}; the workers must be able to import it"
        ) from error
    if not hasattr(module, name):
        raise ConfigError(f"--logger {own}: the module {module_name} has no {name}")
    logger: Logger = getattr(module, name)(store, attempt)
    return logger
