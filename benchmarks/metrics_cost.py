"""What it costs a run to be watched: CPU time of each hook, by row of metrics, and memory that stays.

    python benchmarks/metrics_cost.py

CPU time, not wall time: it holds on a machine that has other work, too. With wandb or mlflow installed (`raymat[wandb]`,
`raymat[mlflow]`), what their threads take is measured as well, offline and with a local folder. `share` is that of steps of 0.1 s,
with a row every 10 steps.
"""

from __future__ import annotations

import importlib.util
import io
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray

from raymat.cluster.monitoring.notifier import Notifier
from raymat.cluster.monitoring.run_metrics import MetricsExporter
from raymat.cluster.monitoring.webhook import Webhooks
from raymat.cluster.ray_internals import apply_settings
from raymat.config.run import build, to_dict
from raymat.json_lines import JsonLines, LogContext
from raymat.storage.store import Store
from raymat.train.observability.logger import Row
from raymat.train.observability.logger_setup import SERVICES
from raymat.train.observability.progress import Progress
from raymat.train.observability.services.service_logger import LoggedRun, ServiceLogger

ROWS = 5_000
ROW_SECONDS = 1.0
"""Of training between two rows: 10 steps of 0.1 s."""
CONFIG = build("base", {"name": "cost", "synthetic": 8})
PROGRESS = Progress(
    stage="base",
    step=0,
    total_steps=10**6,
    examples_left=10**7,
    examples_per_second=80.0,
    loss=0.5,
    valid_loss=0.5,
    commit_step=0,
    commit_time=1e9,
    world=4,
    attempt=2,
    step_seconds=0.1,
    save_stall=0.1,
    goodput=0.97,
)


def row(step: int) -> Row:
    """A training row as a run writes it."""
    return {
        "kind": "train",
        "step": step,
        "examples": 8 * step,
        "epoch": step / 1000,
        "time": 1e9 + step,
        "loss": 0.5,
        "digest": "0123456789abcdef",
        "lr": {"backbone": 1e-4, "aspp": 5e-4, "decoder": 5e-4},
        "step_seconds": 0.1,
        "data_wait": 0.01,
        "examples_per_second": 80.0,
        "memory": 10**9,
        "goodput": 0.97,
    }


def resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def measure(what: str, hook: Callable[[int], None], rows: int = ROWS) -> None:
    """Print CPU time of `hook` by row, in this thread, and what memory has grown from the first half to the end."""
    for step in range(1, rows // 2 + 1):
        hook(step)
    held, began = resident_bytes(), time.thread_time()
    for step in range(rows // 2 + 1, rows + 1):
        hook(step)
    seconds = (time.thread_time() - began) / (rows - rows // 2)
    grown = (resident_bytes() - held) / 1e6
    print(
        f"{what:<58} {1e6 * seconds:8.1f} us  {seconds / ROW_SECONDS:8.4%}  {grown:6.1f} MB",
        flush=True,
    )


@contextmanager
def own_ray() -> Iterator[None]:
    """A Ray of this process's own."""
    apply_settings()
    ray.init(
        address="local", include_dashboard=False, object_store_memory=10**8, log_to_driver=False
    )
    try:
        yield
    finally:
        ray.shutdown()


class Slow:
    """A service that takes nothing until it is told to, so that rows wait."""

    name = "slow"

    def __init__(self) -> None:
        self.open = threading.Event()

    def connect(self) -> None:
        """Wait."""
        self.open.wait()

    def send(self, rows: object) -> None:
        """Take them."""

    def close(self) -> None:
        """End."""


def logged(folder: str) -> LoggedRun:
    """A run in a folder."""
    return LoggedRun(
        run_id=f"cost{time.time_ns()}",
        name="cost",
        config=to_dict(CONFIG),
        store=Store.open(folder, "cost"),
        environment=os.environ,
        emit=lambda event: print(event.line),
    )


def log_rows(logger: ServiceLogger) -> Callable[[int], None]:
    """What the training thread and the checkpoint's thread do: a row, and a commit every 10 rows."""

    def hook(step: int) -> None:
        logger.row(row(step))
        if step % 10 == 0:
            logger.cut(step)
            logger.flush(step)

    return hook


def measure_service(name: str, folder: str) -> None:
    """Print the CPU time of a service's thread and of all threads of its package in this process, by row."""
    logger = ServiceLogger(SERVICES[name](logged(folder)), logged(folder))
    hook = log_rows(logger)
    hook(1)
    logger.cut(1)
    logger.flush(1)
    time.sleep(20)  # it is imported, and the run there has begun
    began, rows = time.process_time(), 1000
    for step in range(2, rows + 2):
        hook(step)
        time.sleep(0.01)
    logger.close(60)
    seconds = (time.process_time() - began) / rows
    print(
        f"{name + ', all its threads in the worker':<58} {1e6 * seconds:8.1f} us  {seconds / ROW_SECONDS:8.4%}"
    )


def main() -> None:
    """Print the table."""
    print(f"{'hook':<58} {'CPU a row':>11}  {'share':>8}  {'memory':>9}")
    with tempfile.TemporaryDirectory() as folder:
        measure("rank 0: row, cut and flush for a service that is slow", log_rows(
            ServiceLogger(Slow(), logged(folder))
        ), 4 * ROWS)  # fmt: skip
        stream = JsonLines(io.StringIO(), LogContext("cost", step=lambda: 1))
        stream._stream = open(os.devnull, "w")  # noqa: SIM115
        measure("driver: a line as JSON", lambda step: stream.record("base 120/800  loss 0.4312"))
        notifier = Notifier(CONFIG, Webhooks([], print))
        measure(
            "driver: look for alarms", lambda step: notifier.look(replace(PROGRESS, step=step), [])
        )
        os.environ |= {"WANDB_MODE": "offline", "MLFLOW_ALLOW_FILE_STORE": "true"}
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"file://{folder}/mlflow")
        for name in SERVICES:
            if importlib.util.find_spec(name) is None:
                print(f"{name}: not installed")
            else:
                measure_service(name, folder)
        with own_ray():
            exporter = MetricsExporter(CONFIG)
            measure(
                "driver: set all gauges",
                lambda step: exporter.look(replace(PROGRESS, step=step), []),
            )


if __name__ == "__main__":
    main()
