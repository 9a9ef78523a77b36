"""What a step loses to listening for notices, and to giving signs of life.

In turns, in one process: steps of the tiny network as they are, and the same steps with all that a
worker on Ray does beside them: the listener's thread (the cluster's state and the driver's wish
twice a second, a sign of life with the stack every 2 s), the heartbeat, the question in each step, and
what follows from it. Printed: the ratio of the medians, and the same from the seconds that the
listening itself takes, which no other unrest of the machine touches.

    python benchmarks/listening.py [--rounds 40] [--steps 10]
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time

import ray
import torch

from raymat.cluster.blackboard import Blackboard
from raymat.cluster.worker.notice_listener import NoticeListener
from raymat.config.run import build
from raymat.data.batch import Geometry
from raymat.data.batch_maker import make_train_batch
from raymat.data.dataset.source import SourceSpec
from raymat.data.sample_order import SampleOrder
from raymat.distributed.world import World
from raymat.model import matting
from raymat.train.loop.train_step import TrainStep
from raymat.train.loop.watchdog import Heartbeat
from raymat.train.optim.forward import ForwardPass
from raymat.train.optim.lr_schedule import rates


class Training:
    """The tiny base network's steps on one batch."""

    def __init__(self) -> None:
        flat = {
            "storage": "/nowhere",
            "name": "run",
            "synthetic": 16,
            "backbone": "mobilenetv2",
            "resolution": 48,
            "crop": "32:48",
            "batch_size": 8,
            "steps": 40,
        }
        self.config = build("base", flat)
        data = self.config.data
        order = SampleOrder(
            seed=0, pairs=16, backgrounds=16, batch_size=data.batch_size, crop=data.crop,
            total_examples=10**9,
        )  # fmt: skip
        source = SourceSpec.synthetic(count=16, seed=0, size=data.resolution, valid_count=0).open()
        self._batch = make_train_batch(
            source, order, Geometry("base", data.resolution), 0, range(data.batch_size)
        )
        self._step = TrainStep(
            matting.build("base", self.config.model, 0),
            ForwardPass(
                stage="base",
                precision="fp32",
                seed=0,
                resolution=data.resolution,
                device=torch.device("cpu"),
            ),
            World(),
        )

    def step(self, heard: bool = False) -> None:
        size = self.config.data.batch_size
        self._step(self._batch, size, rates(self.config, 0), False, heard)


def plain(training: Training, steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        training.step()
    return time.perf_counter() - began


def listening(
    training: Training, steps: int, listener: NoticeListener, heartbeat: Heartbeat
) -> float:
    began = time.perf_counter()
    for number in range(steps):
        heartbeat.record_activity("waiting for a batch", number)
        heartbeat.record_activity("training", number)
        training.step(listener.notice() is not None)
    return time.perf_counter() - began


def thread_seconds(listener: NoticeListener, seconds: float) -> float:
    """CPU seconds that the listener's thread takes in so many seconds."""
    clock = time.pthread_getcpuclockid(listener._thread.ident or threading.get_ident())
    before = time.clock_gettime(clock)
    time.sleep(seconds)
    return time.clock_gettime(clock) - before


def question_seconds(listener: NoticeListener, heartbeat: Heartbeat) -> float:
    """Of the training thread, in each step."""
    times = 100_000
    began = time.perf_counter()
    for number in range(times):
        heartbeat.record_activity("waiting for a batch", number)
        heartbeat.record_activity("training", number)
        listener.notice()
    return (time.perf_counter() - began) / times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=10, help="in a window")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=10**8)
    board, training = Blackboard.start(), Training()
    plain(training, 30)
    without, within = [], []
    for _ in range(options.rounds):
        without.append(plain(training, options.steps))
        listener, heartbeat = NoticeListener(board, 0), Heartbeat()
        listener.register_heartbeat(heartbeat)
        within.append(listening(training, options.steps, listener, heartbeat))
        listener.stop()
    a, b = statistics.median(without), statistics.median(within)
    print(f"{options.steps / a:.2f} steps/s; listening {options.steps / b:.2f}: ratio {a / b:.4f}")
    listener, heartbeat = NoticeListener(board, 0), Heartbeat()
    listener.register_heartbeat(heartbeat)
    thread, question = thread_seconds(listener, 20.0) / 20.0, question_seconds(listener, heartbeat)
    lost = thread + question * options.steps / a
    print(
        f"the listener takes {1e3 * thread:.2f} ms of CPU a second, the questions {1e6 * question:.1f} us a "
        f"step: ratio {1 / (1 + lost):.4f} if none of it ran beside the steps"
    )
    listener.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
