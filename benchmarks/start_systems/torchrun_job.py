"""The same training under torchrun, one worker: the same network, examples and arithmetic, without Ray and checkpoints.

torchrun --nproc-per-node N -m start_systems.torchrun_job STEPS SIDE LOG
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch.distributed as dist
from goodput_systems.job import Job, OtherTraining

from raymat.distributed.world import World


def main() -> None:
    """Train, and write a line with the time, the loss and this process for each step."""
    steps, side, log = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    if world.size > 1:
        dist.init_process_group("gloo")
    training = OtherTraining(Job(steps, side), world)
    training.step.share_weights()
    with log.with_name(f"{log.name}-{world.rank}").open("a", encoding="utf-8") as file:
        for done, loss in training.losses():
            line = {"time": time.time(), "step": done, "loss": loss, "pid": os.getpid()}
            file.write(json.dumps(line) + "\n")
            file.flush()
    if world.size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
