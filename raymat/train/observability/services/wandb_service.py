"""Weights & Biases: one run there for a run here, however often it restarts.

Online, the service says how far its history goes, and rows up to there are not sent again. Offline nobody can be asked, and of
several offline folders of one run `wandb sync` keeps only what it has sent last. So each attempt writes the whole past into its
own, from metrics/, and the newest folder is the run.
"""

from __future__ import annotations

import os.path
import tempfile
from collections.abc import Sequence
from typing import Any

from raymat.train.observability.logger import Row, scalars
from raymat.train.observability.services.service_logger import LoggedRun, ServiceError

INIT_SECONDS = 60.0


class WandbService:
    """A run of W&B. Its own variables (WANDB_MODE, WANDB_PROJECT, WANDB_DIR, WANDB_API_KEY, ...) choose the rest."""

    name = "wandb"

    def __init__(self, run: LoggedRun) -> None:
        self._run = run
        self._there: Any = None
        self._next = 0
        """The first step that a training row may have."""
        self._valid = -1
        """The newest step of a validation that is there."""

    def connect(self) -> None:
        """Resume the run there, or begin it."""
        import wandb

        environment, run = self._run.environment, self._run
        try:
            self._there = wandb.init(
                id=f"raymat-{run.run_id}",
                name=run.name,
                project=None if "WANDB_PROJECT" in environment else "raymat",
                dir=None if "WANDB_DIR" in environment else self._folder(),
                config=dict(run.config),
                allow_val_change=True,
                resume="allow",
                settings=wandb.Settings(
                    console="off",
                    disable_git=True,
                    save_code=False,
                    silent=True,
                    reinit="create_new",
                    init_timeout=INIT_SECONDS,
                    x_disable_stats=True,
                ),
            )
            self._there.define_metric("valid_*", step_metric="valid_step")
            self._next = self._there.step
            self._valid = self._there.summary.get("valid_step", -1)
        except (wandb.errors.Error, OSError) as error:
            raise ServiceError(f"W&B: {error}") from error

    def send(self, rows: Sequence[Row]) -> None:
        """Log each row at its step; one of a validation that comes late, at the step that W&B is at, which never goes back."""
        import wandb

        try:
            for row in rows:
                self._log(row)
        except (wandb.errors.Error, OSError) as error:
            raise ServiceError(f"W&B: {error}") from error

    def close(self) -> None:
        """Have W&B send what it holds, and mark the run as finished."""
        if self._there is not None:
            self._there.finish(exit_code=0)

    def _log(self, row: Row) -> None:
        step, values = int(row["step"]), scalars(row) | {"_timestamp": row["time"]}
        if row["kind"] == "valid":
            if step > self._valid:
                self._valid, at = step, max(step, self._next - 1, 0)
                self._there.log(values | {"valid_step": step}, step=at)
        elif step >= self._next:
            self._next = step + 1
            self._there.log(values, step=step)

    def _folder(self) -> str:
        """Return where W&B keeps its files: beside the run, if that is on a disk."""
        store = self._run.store
        if store.url.startswith("file://") or "://" not in store.url:
            return store.url.removeprefix("file://")
        return os.path.join(tempfile.gettempdir(), f"raymat-{self._run.run_id}")
