"""`raymat demo`: both stages on this machine, with a worker killed on the way.

Procedural pairs, a small network and small images, but the same code as any run: a local Ray
cluster, two workers, Ray Data, checkpoints in a folder, a SIGKILL in the middle, a resume.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import torch

from raymat.analysis.contact_sheet import png, prediction, source_and_truth
from raymat.cluster.driver.cluster_setup import running_ray
from raymat.cluster.driver.launch import fit
from raymat.config.run import RunConfig, build, from_dict
from raymat.console import Display, columns
from raymat.data.batch_maker import make_valid_batch
from raymat.data.composite import Composed
from raymat.model.matting import MattingBase
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.optim.forward import ForwardPass
from raymat.train.run.open_run import open_run
from raymat.train.run.run_file import read_run
from raymat.train.run.selected_weights import build_network, read_weights
from raymat.train.validation.matting_metrics import alpha_metrics

FOLDER = "demo"
PICTURE_SIDE = 224

# From nothing in minutes: the learning rates are several times those of a run that has days.
BASE = {
    "resolution": 96,
    "crop": "64:96",
    "batch_size": 8,
    "steps": 160,
    "checkpoint_interval": 20,
    "valid_interval": 80,
    "lr_backbone": 1e-3,
    "lr_aspp": 2e-3,
    "lr_decoder": 2e-3,
}
REFINE = {
    "resolution": 192,
    "crop": "128:192",
    "batch_size": 4,
    "steps": 60,
    "checkpoint_interval": 20,
    "valid_interval": 60,
    "lr_backbone": 2e-4,
    "lr_aspp": 2e-4,
    "lr_decoder": 4e-4,
    "lr_refiner": 2e-3,
    "refine_sample_pixels": 4800,
    # At half of the size, 64 to 96 pixels, its base works as it was trained.
    "backbone_scale": 0.5,
}
BOTH = {
    "synthetic": 200,
    "backbone": "mobilenetv2",
    "workers": "2",
    "device": "cpu",
    "epoch_examples": 10**9,
    "valid_examples": 16,
    "log_loss_interval": 10,
    "storage": FOLDER,
}


def run_demo() -> int:
    """Run the demo in ./demo, which it makes anew; return the exit code."""
    started = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    os.environ["RAY_ADDRESS"] = "local"  # a worker is killed: that is for no cluster of others
    base = build("base", BOTH | BASE | {"name": "base"})
    refine = build("refine", BOTH | REFINE | {"name": "refine", "init": f"{FOLDER}/base"})
    with running_ray(10**9):
        lines = [_stage(base, kill=True), _stage(refine, kill=False)]
    table = _picture([_begun(base), _begun(refine)])
    print("\n".join(["", *lines, "", table, f"picture: {FOLDER}/matting.png"]))
    print(f"took {time.monotonic() - started:.0f} s")
    return 0


def _stage(config: RunConfig, kill: bool) -> str:
    """Run one stage to its end; return its line of the summary."""
    workers = config.workers.workers
    print(f"{config.stage}: {config.length.steps} steps on {workers} workers", flush=True)
    store = Store.open(config.storage, config.name)
    began = time.monotonic()
    killer = _HalfwayKiller(store, (config.length.steps or 0) // 2)
    if kill:
        killer.start()
    fit(config)
    killer.done.set()
    return _summary(store, config, time.monotonic() - began)


def _summary(store: Store, config: RunConfig, seconds: float) -> str:
    events = read_events(store)
    starts = [event for event in events if event["kind"] == "start"]
    restores = [event["step"] for event in events if event["kind"] == "restore"]
    valid = [row["loss"] for row in read_metrics(store) if row["kind"] == "valid"]
    steps = [row["step"] for row in read_metrics(store) if row["kind"] == "train"]
    resumed = f", resumed at step {restores[-1]}" if restores else ""
    count = len(starts) - 1
    return (
        f"{config.stage:7s}{steps[-1]} steps in {seconds:.0f} s, {count} "
        f"restart{'' if count == 1 else 's'}"
        f"{resumed}, validation loss {valid[0]:.3f} -> {valid[-1]:.3f}"
    )


class _HalfwayKiller(threading.Thread):
    """Sends SIGKILL to a worker of the run as soon as a checkpoint at or past `step` is there."""

    def __init__(self, store: Store, step: int) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self._store = store
        self._step = step

    def run(self) -> None:
        while not self.done.wait(0.2):
            events = read_events(self._store)
            commits = [event["step"] for event in events if event["kind"] == "commit"]
            if not commits or max(commits) < self._step:
                continue
            victim = next(e for e in reversed(events) if e["kind"] == "start")["ranks"][-1]
            time.sleep(2)  # into the steps after the checkpoint
            # Above the line of progress, which another thread draws.
            Display().print(f"killing worker {victim['rank']}, process {victim['pid']}")
            os.kill(victim["pid"], signal.SIGKILL)
            return


def _begun(config: RunConfig) -> RunConfig:
    """Return the configuration that the run was begun with, with absolute paths and nothing left to `auto`."""
    stored = read_run(Store.open(config.storage, config.name))
    assert stored is not None
    return from_dict(stored["config"])


@torch.no_grad()
def _picture(configs: list[RunConfig]) -> str:
    """Draw what the networks make of the same validation pictures; return a table of how far off they are."""
    refine = configs[-1]
    run = open_run(refine, Store.open(refine.storage, refine.name))
    source, batch = run.source.open(), refine.data.batch_size
    shares = [
        make_valid_batch(source, run.order, run.geometry, first, range(batch))
        for first in range(0, refine.log.valid_examples, batch)
    ]
    forward = ForwardPass.of(refine, torch.device("cpu"))
    truths = [forward.compose(share) for share in shares]
    sheet, rows = source_and_truth(truths[0]), [("alpha, same pictures", "SAD", "MSE")]
    for config in configs:
        network = build_network(read_weights(f"{config.storage}/{config.name}"))
        found = [_errors(network, truth) for truth in truths]
        sad, mse = (sum(values) / len(found) for values in zip(*found, strict=True))
        rows.append((config.stage, f"{sad:.2f}", f"{mse:.1f}"))
        sheet.append(prediction(network, truths[0], f"{config.stage} alpha (SAD {sad:.2f})"))
    Path(f"{FOLDER}/matting.png").write_bytes(png(sheet, PICTURE_SIDE))
    return columns(rows)


def _errors(network: MattingBase, truth: Composed) -> tuple[float, float]:
    """Return the mean SAD and MSE of a batch's alphas."""
    found = network(truth.src, truth.bgr)[0]
    each = [alpha_metrics(found[i : i + 1], truth.pha[i : i + 1]) for i in range(len(found))]
    sad, mse = (sum(float(one[name]) for one in each) / len(each) for name in ("sad", "mse"))
    return sad, mse
