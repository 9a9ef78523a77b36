"""MLflow: one run there for a run here, however often it restarts.

Its id lies in the run's folder, and the run there has a tag with this run's id: if a process dies between the two, the next finds
it. MLflow keeps whatever it is sent, also twice; so it is asked for each metric how far that goes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from raymat.train.observability.logger import Row, scalars
from raymat.train.observability.services.service_logger import LoggedRun, ServiceError

FILE = "loggers/mlflow.json"
TAG = "raymat.run"
MOST_METRICS = 1000
"""In one request; the service refuses more."""
MOST_PARAMS = 100


class MlflowService:
    """A run of MLflow. Its own variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...) choose the rest."""

    name = "mlflow"

    def __init__(self, run: LoggedRun) -> None:
        self._run = run
        self._client: Any = None
        self._id = ""
        self._have: dict[str, int] = {}
        """The newest step that is there, by metric."""

    def connect(self) -> None:
        """Find the run there, or begin it."""
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self._have = {}
        try:
            self._client = MlflowClient(self._run.environment["MLFLOW_TRACKING_URI"])
            self._id = self._found() or self._begun()
            self._client.update_run(self._id, status="RUNNING")
            if not self._client.get_run(self._id).data.params:
                self._log_params()
        except (MlflowException, OSError) as error:
            raise ServiceError(f"MLflow: {error}") from error

    def send(self, rows: Sequence[Row]) -> None:
        """Log the numbers of each row, as many as a request takes at a time."""
        from mlflow.exceptions import MlflowException

        try:
            for batch in _batches(list(self._lacking(rows)), MOST_METRICS):
                self._client.log_batch(self._id, metrics=batch)
                for metric in batch:
                    self._have[metric.key] = metric.step
        except (MlflowException, OSError) as error:
            raise ServiceError(f"MLflow: {error}") from error

    def close(self) -> None:
        """Mark the run as finished."""
        from mlflow.exceptions import MlflowException

        try:
            if self._id:
                self._client.set_terminated(self._id)
        except (MlflowException, OSError) as error:
            raise ServiceError(f"MLflow: {error}") from error

    def _lacking(self, rows: Sequence[Row]) -> Iterator[Any]:
        from mlflow.entities import Metric

        for row in rows:
            for key, value in scalars(row).items():
                if row["step"] > self._newest(key):
                    yield Metric(key, value, int(1000 * row["time"]), row["step"])

    def _newest(self, key: str) -> int:
        if key not in self._have:
            history = self._client.get_metric_history(self._id, key)
            self._have[key] = max((metric.step for metric in history), default=-1)
        return self._have[key]

    def _found(self) -> str | None:
        """Return the id of this run there; None if there is none yet."""
        from mlflow.exceptions import MlflowException

        known = self._stored()
        if known is not None:
            try:
                return str(self._client.get_run(known).info.run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        marked = f"tags.`{TAG}` = '{self._run.run_id}'"
        found = self._client.search_runs([self._experiment()], filter_string=marked)
        if not found:
            return None
        self._store_id(found[0].info.run_id)
        return str(found[0].info.run_id)

    def _begun(self) -> str:
        tags = {TAG: self._run.run_id}
        begun = self._client.create_run(self._experiment(), tags=tags, run_name=self._run.name)
        self._store_id(begun.info.run_id)
        return str(begun.info.run_id)

    def _experiment(self) -> str:
        name = self._run.environment.get("MLFLOW_EXPERIMENT_NAME", "raymat")
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _log_params(self) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)[:6000]) for key, value in self._run.config.items()]
        for batch in _batches(params, MOST_PARAMS):
            self._client.log_batch(self._id, params=batch)

    def _stored(self) -> str | None:
        content = self._run.store.try_read(FILE)
        try:
            return None if content is None else str(json.loads(content)["run"])
        except (ValueError, KeyError, TypeError):
            return None  # damaged; the tag has it as well

    def _store_id(self, run: str) -> None:
        self._run.store.write(FILE, json.dumps({"format": 1, "run": run}).encode())


def _batches(items: list[Any], most: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]
