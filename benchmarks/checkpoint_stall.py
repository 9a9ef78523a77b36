"""What a training step loses to a checkpoint: raymat's saver, torch.save and torch.distributed.checkpoint.

The state is that of refine with resnet50 and Adam (about 483 MB in 991 tensors), the steps are real
ones. In each round every way takes its turn in the same process: one save, then some steps; what it
costs is the time of that window less the mean of the windows without a save before and after it. So
whatever runs beside the steps and takes their processor or their memory's bandwidth is counted too.
"no save" is a window without a save treated alike: how far the machine's own unrest reaches.

Then runs of 60 steps, without saving and saving every 10 steps, in turns: how much longer the second take,
and how many CPU seconds the writing took beside the training thread.

    python benchmarks/checkpoint_stall.py [--device cuda] [--rounds 20] [--folder DIR]

On the CPU training has --threads of the machine's cores; give it all of them and the writing must
take its share from the steps. malloc is told to keep what is freed: steps that fault their memory in
again and again vary by more than a save costs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from raymat.config.run import RunConfig, build
from raymat.data.batch import Geometry
from raymat.data.batch_maker import make_train_batch
from raymat.data.dataset.source import SourceSpec
from raymat.data.sample_order import Cursor, SampleOrder
from raymat.distributed.world import World
from raymat.model import matting
from raymat.storage.store import Store
from raymat.train.loop.attempt import begin_attempt
from raymat.train.loop.interfaces import Host, Worker
from raymat.train.loop.saving.checkpointing import AsyncSaver
from raymat.train.loop.state import ResumeContract, RunState, capture
from raymat.train.loop.train_step import TrainStep
from raymat.train.optim.forward import ForwardPass
from raymat.train.optim.lr_schedule import rates
from raymat.train.run.open_run import open_run


class Training:
    """The step of a real run, on one batch again and again."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device, self.record = config, device, RunState()
        self.before_update: Callable[[], None] = lambda: None
        data = config.data
        order = SampleOrder(
            seed=0,
            pairs=16,
            backgrounds=16,
            batch_size=data.batch_size,
            crop=data.crop,
            total_examples=10**9,
        )
        source = SourceSpec.synthetic(count=16, seed=0, size=data.resolution, valid_count=0).open()
        self._batch = make_train_batch(
            source, order, Geometry("refine", data.resolution), 0, range(data.batch_size)
        )
        self.step = TrainStep(
            matting.build("refine", config.model, 0),
            ForwardPass(
                stage="refine",
                precision="fp16" if device.type == "cuda" else "fp32",
                seed=0,
                resolution=data.resolution,
                device=device,
                channels_last=device.type == "cuda",
            ),
            World(),
        )

    def run(self, steps: int, after: Callable[[int], None] = lambda step: None) -> float:
        """Seconds for `steps` steps and what is called after each, until the device is done."""
        self._synchronize()
        began = time.perf_counter()
        for number in range(1, steps + 1):
            size = self.config.data.batch_size
            rate = rates(self.config, 0)
            self.step(self._batch, size, rate, before_update=self.before_update)
            self.record.step += 1
            self.record.cursor = Cursor(self.record.step * self.config.data.batch_size)
            after(number)
        self._synchronize()
        return time.perf_counter() - began

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Savers:
    """The ways to save, each as a call that returns when training may go on."""

    def __init__(self, training: Training, folder: Path) -> None:
        self.training, self.folder = training, folder
        store = Store.open(str(folder), "run")
        run = open_run(training.config, store)
        attempt = begin_attempt(run, Worker(World(), training.device), store, Host())
        attempt.events.write_in_background()
        self.contract = attempt.contract
        self.saver = AsyncSaver(attempt, Host(), loggers=[])
        training.before_update = self.saver.wait_for_copy

    def none(self) -> None:
        """No save."""

    def raymat(self) -> None:
        """A snapshot; written, digested and synced to the disk beside the steps."""
        self.saver.save(self.training.step, self.training.record, {})

    def torch_save(self) -> None:
        """`torch.save` of the same tensors."""
        torch.save(self._state(), self.folder / f"state-{self.training.record.step}.pt")

    def dcp(self) -> None:
        """`torch.distributed.checkpoint.save` of the same tensors, its defaults, one process."""
        import torch.distributed.checkpoint as dcp

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(
                self._state(),
                checkpoint_id=self.folder / f"dcp-{self.training.record.step}",
                no_dist=True,
            )

    def finish(self) -> None:
        """Wait for what is on its way, and clear the disk."""
        while self.saver._writer.load().alive:
            time.sleep(0.01)
        self.saver.poll()
        for path in self.folder.glob("*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        os.sync()

    def _state(self) -> dict[str, Any]:
        return capture(self.training.step, self.training.record, self.contract)[0]


def milliseconds(values: list[float]) -> str:
    return f"median {1e3 * statistics.median(values):7.1f} ms, worst {1e3 * max(values):7.1f} ms"


def window(training: Training, steps: int, save: Callable[[], None]) -> float:
    """Seconds for a save and the steps after it."""
    began = time.perf_counter()
    save()
    return time.perf_counter() - began + training.run(steps)


def per_save(training: Training, savers: Savers, rounds: int, steps: int) -> None:
    ways = {
        "no save": savers.none,
        "raymat": savers.raymat,
        "torch.save": savers.torch_save,
        "dcp.save": savers.dcp,
    }
    lost: dict[str, list[float]] = {name: [] for name in ways}
    plain = [window(training, steps, savers.none)]
    for number in range(rounds + 1):
        for name, save in ways.items():
            seconds = window(training, steps, save)
            savers.finish()
            plain.append(window(training, steps, savers.none))
            if number:  # the first round pays for buffers and warm-up
                lost[name].append(seconds - statistics.mean(plain[-2:]))
    print(
        f"a step takes {1e3 * statistics.median(plain) / steps:.1f} ms; a save costs the steps, of {rounds}:"
    )
    base = statistics.median(lost["torch.save"])
    for name, values in lost.items():
        print(
            f"  {name:11} {milliseconds(values)}, {statistics.median(values) / base:6.3f} of torch.save's"
        )


def whole_run(training: Training, savers: Savers, times: int = 3) -> None:
    """60 steps without and with a save every 10, in turns; the median of each."""
    plain, saved, beside = [], [], []
    for _ in range(times):
        savers.finish()
        plain.append(training.run(60))
        cpu, own = time.process_time(), time.thread_time()
        saved.append(training.run(60, lambda step: savers.raymat() if step % 10 == 0 else None))
        beside.append(time.process_time() - cpu - (time.thread_time() - own))
    savers.finish()
    without, with_saves, writing = map(statistics.median, (plain, saved, beside))
    print(
        f"60 steps: {without:.2f} s; saving every 10: {with_saves:.2f} s, "
        f"{100 * (with_saves / without - 1):+.2f}%; writing took {writing:.2f} CPU s beside the "
        f"training thread: {100 * (with_saves - without - writing) / without:+.2f}% beyond those"
    )
    print(f"saves: {savers.saver.counts}")


def keep_freed_memory() -> None:
    """Begin again under a malloc that gives nothing back to the system."""
    settings = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    if not settings.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, help="in a window; default 6 on the CPU, 40 on CUDA")
    parser.add_argument("--resolution", type=int, help="default 64 on the CPU, 2048 on CUDA")
    parser.add_argument("--threads", type=int, default=1, help="of training on the CPU")
    parser.add_argument("--folder", type=Path, help="on the disk to save to")
    options = parser.parse_args()
    keep_freed_memory()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    cuda = device.type == "cuda"
    side = options.resolution or (2048 if cuda else 64)
    config = build(
        "refine",
        {
            "synthetic": 16, "name": "run", "steps": 10**6, "resolution": side, "crop": side,
            "batch_size": 4 if cuda else 2, "refine_sample_pixels": 80_000 if cuda else 400,
            "threads": options.threads, "device": device.type,
            "precision": "fp16" if cuda else "fp32",
        },
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="raymat-stall-", dir=options.folder))
    try:
        training = Training(config, device)
        state = capture(training.step, RunState(), ResumeContract(config, "none"))[0]
        size = sum(t.numel() * t.element_size() for t in state.values())
        print(f"{len(state)} tensors, {size / 1e6:.0f} MB, {device}, {options.threads} threads")
        training.run(40)  # on the CPU a step takes a quarter longer in the first thirty
        savers = Savers(training, folder)
        per_save(training, savers, options.rounds, options.steps or (40 if cuda else 6))
        whole_run(training, savers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
