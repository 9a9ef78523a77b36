"""The reference's habit: processes that save their weights now and then, and a loop that starts them again.

Given to it freely: it goes on at the step of its newest weights (the reference begins the epoch anew), starts with as many
machines as there are, and takes in new ones right after it has saved. What it loses is what the habit loses: the steps since
the weights were saved, and Adam's moments.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from goodput_systems.job import Job, OtherTraining
from goodput_systems.machines import Places

from raymat.distributed.world import World

GROWS = 3
"""Exit status of workers that make room for more machines."""


class PlainLoop:
    """Starts the workers again until the job is done. `run` is called in a thread of its own."""

    def __init__(self, job: Job, folder: Path, interval: int) -> None:
        self._job, self._folder, self._interval = job, folder, interval
        self.places = Places()

    def run(self) -> None:
        """Train to the end."""
        while True:
            before = self.places.lost
            while not self.places.processes:
                time.sleep(0.1)
            codes = self._attempt(len(self.places.processes))
            if codes == {0}:
                return
            if max(codes) > 0 and codes != {GROWS} and self.places.lost == before:
                raise RuntimeError(f"workers failed, though no machine went: {codes}")

    def _attempt(self, world: int) -> set[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        wanted = self._folder / "machines"
        wanted.write_text(str(world), encoding="utf-8")
        job = json.dumps(asdict(self._job))
        workers = []
        for rank in range(world):
            arguments = [job, self._folder, self._interval, rank, world, port]
            command = [sys.executable, "-m", "goodput_systems.plain_loop", *map(str, arguments)]
            worker = subprocess.Popen(command)
            workers.append(worker)
            if rank < len(self.places.processes):
                self.places.processes[rank] = worker.pid
            else:  # that machine has gone meanwhile
                worker.kill()
        try:
            while all(worker.poll() is None for worker in workers):
                wanted.write_text(str(len(self.places.processes)), encoding="utf-8")
                time.sleep(0.05)
            if any(worker.poll() == 0 for worker in workers):
                for worker in workers:
                    worker.wait(60)
        finally:  # as torchrun does: one that failed takes the others with it
            for worker in workers:
                worker.kill()
        return {worker.wait() for worker in workers}


def work(job: Job, folder: Path, interval: int, world: World, port: int) -> int:
    """Train as one worker; return the exit status."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if world.size > 1:
        dist.init_process_group("gloo", rank=world.rank, world_size=world.size)
    training = OtherTraining(job, world)
    network = training.step.network
    newest = max(folder.glob("weights-*.pth"), default=None)
    if newest is not None:
        network.load_state_dict(torch.load(newest))
    training.step.share_weights()
    for done in training.train(int(newest.stem[8:]) if newest else 0):
        if done % interval:
            continue
        if world.rank == 0:
            part = folder / "part"
            torch.save(network.state_dict(), part)
            part.rename(folder / f"weights-{done:08}.pth")
        machines = torch.tensor(int((folder / "machines").read_text() or 0))
        if world.size > 1:
            dist.broadcast(machines, 0)
        if done < job.steps and int(machines) > world.size:
            return GROWS
    return 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=json.loads)
    parser.add_argument("folder", type=Path)
    for name in ("interval", "rank", "world", "port"):
        parser.add_argument(name, type=int)
    given = parser.parse_args()
    place = World(given.rank, given.world)
    sys.exit(work(Job(**given.job), given.folder, given.interval, place, given.port))


if __name__ == "__main__":
    main()
