"""Creation of a run's loggers: metrics/, tensorboard/, and the user's own."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence

from raymat.distributed.collectives import Group
from raymat.errors import ConfigError
from raymat.storage.store import Store
from raymat.train.observability.logger import ClosableLogger, Logger
from raymat.train.observability.merging.background_merge import BackgroundMerge
from raymat.train.observability.merging.events_merge import EventsMerge
from raymat.train.observability.merging.metrics_merge import MetricsMerge
from raymat.train.observability.metrics_log import MetricsLog
from raymat.train.observability.services.mlflow_service import MlflowService
from raymat.train.observability.services.service_logger import LoggedRun, Service, ServiceLogger
from raymat.train.observability.services.wandb_service import WandbService

SERVICES: dict[str, Callable[[LoggedRun], Service]] = {
    "wandb": WandbService,
    "mlflow": MlflowService,
}
"""By their names for `--logger`, which are those of their packages and of raymat's extras."""


def make_loggers(run: LoggedRun, attempt: int, names: str | None, group: Group) -> list[Logger]:
    """Make the loggers on rank 0, and none on the other workers. Called by all workers; raises on all of them.

    `names`: of more loggers, one a line: a service's, or MODULE:NAME of the user's class or function, called with the run's
    store and `attempt`.

    Raises:
        ConfigError: there is no such module, or no such name in it, or a service's package or address is missing.
    """

    def make() -> list[Logger]:
        if not group.leads:
            return []
        # Imported here: half a second that only rank 0 needs.
        from raymat.train.observability.tensorboard_log import TensorBoardLog

        store = run.store
        # The first: whatever a service lacks is read from it.
        loggers: list[Logger] = [MetricsLog(store, attempt), TensorBoardLog(store, attempt)]
        named = [name for name in (names or "").split("\n") if name]
        services = [_service(name, run) for name in named if name in SERVICES]
        own = [_make(name, store, attempt) for name in named if name not in SERVICES]
        # Only now: what is refused leaves no thread behind.
        return [*loggers, *own, *(ServiceLogger(service, run) for service in services)]

    return group.on_all(make)


def _service(name: str, run: LoggedRun) -> Service:
    if importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"--logger {name}: the package is missing on the workers: pip install 'raymat[{name}]'"
        )
    if name == "mlflow" and not run.environment.get("MLFLOW_TRACKING_URI"):
        raise ConfigError(
            "--logger mlflow: MLFLOW_TRACKING_URI is not set on the workers: give the address of a server or a database"
        )
    return SERVICES[name](run)


def close_loggers(loggers: Sequence[Logger]) -> None:
    """Close those that have something to do at the end of a complete run."""
    for logger in loggers:
        if isinstance(logger, ClosableLogger):
            logger.close()


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
