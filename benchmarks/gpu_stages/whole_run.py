"""Stages of the whole trainer: a run on the device under Ray whose worker is killed, and how fast pictures are decoded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from raymat.config.values import Range
from raymat.data.batch import Geometry
from raymat.data.batch_maker import make_train_batch
from raymat.data.dataset.discovery import build_listing
from raymat.data.dataset.source import FolderSource
from raymat.data.sample_order import SampleOrder
from raymat.storage.store import Store
from raymat.train.observability.events import read_events


def trainer(device: torch.device, side: int) -> dict[str, Any]:
    """Two runs of 40 steps, one of which loses its worker: the same weights, and what the restart took."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        whole = _train(folder, "whole", device)
        assert whole.wait() == 0
        seconds = time.time() - began
        killed = _train(folder, "killed", device)
        store = Store.open(folder, "killed")
        while killed.poll() is None:
            events = read_events(store)
            if any(e["kind"] == "commit" and e["step"] >= 20 for e in events):
                (start,) = [e for e in events if e["kind"] == "start"]
                os.kill(start["ranks"][0]["pid"], signal.SIGKILL)
                break
            time.sleep(0.1)
        assert killed.wait() == 0
        diff = [sys.executable, "-m", "raymat", "diff", f"{folder}/whole", f"{folder}/killed"]
        told = subprocess.run(diff, capture_output=True, text=True, check=False)
        starts = sum(e["kind"] == "start" for e in read_events(store))
        found = {"run_s": round(seconds, 1), "starts": starts, "diff": told.stdout.splitlines()[-1]}
        assert starts == 2, found
        # Without deterministic kernels the weights may differ on CUDA: said, and no failure.
        assert told.returncode == 0 or device.type == "cuda", found
        return found


def _train(folder: str, name: str, device: torch.device) -> subprocess.Popen[bytes]:
    options = {
        "synthetic": 64, "steps": 40, "batch-size": 8, "resolution": 64, "crop": 64, "device": device.type,
        "backbone": "mobilenetv2", "valid-examples": 0, "checkpoint-interval": 10, "storage": folder, "name": name,
    }  # fmt: skip
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    environment = {**os.environ, "RAY_ADDRESS": "local", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    command = [sys.executable, "-m", "raymat", "base", *flags]
    with Path(folder, f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def decoding(device: torch.device, side: int) -> dict[str, Any]:
    """Examples a second from 4K JPEGs with PNG alphas, by one core and by all of them."""
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.Generator(np.random.Philox(key=[1, 2]))
        coarse = rng.integers(0, 256, (54, 96, 3), np.uint8)
        scene = cv2.resize(coarse, (3840, 2160), interpolation=cv2.INTER_CUBIC)
        for split in ("train", "valid"):
            for path, picture in (
                (f"data/{split}/fgr/a.jpg", scene),
                (f"data/{split}/pha/a.png", scene[..., 0]),
                (f"walls/{split}/b.jpg", scene),
            ):
                Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(f"{folder}/{path}", picture)
        source = FolderSource(build_listing(f"{folder}/data", f"{folder}/walls"))
        found: dict[str, Any] = {}
        for resolution in (512, 2048):
            order = SampleOrder(
                seed=0, pairs=1, backgrounds=1, batch_size=1, total_examples=10**6,
                crop=Range(resolution // 2, resolution),
            )  # fmt: skip
            geometry = Geometry("base", resolution)

            def make(step: int, order: Any = order, geometry: Any = geometry) -> None:
                make_train_batch(source, order, geometry, step, range(1))

            for cores in (1, os.cpu_count() or 1):
                with ThreadPoolExecutor(cores) as pool:
                    began, count = time.perf_counter(), 4 * cores
                    list(pool.map(make, range(count)))
                    rate = count / (time.perf_counter() - began)
                found[f"{resolution}, {cores} cores"] = round(rate, 1)
        return found
