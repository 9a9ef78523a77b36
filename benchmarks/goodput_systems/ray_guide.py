"""Ray Train as its guide has it: a checkpoint each so many steps, saved and reported before the next one, Ray's defaults."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from goodput_systems.job import Job, OtherTraining
from ray.train import Checkpoint, ControllerError, FailureConfig, RunConfig, ScalingConfig

from raymat.distributed.world import World


def train(options: dict[str, Any]) -> None:
    """Train as one of Ray Train's workers."""
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    training = OtherTraining(Job(**options["job"]), world)
    step, begin = training.step, 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder, "state.pt"))
        step.network.load_state_dict(state["network"])
        step.optimiser.load_state_dict(state["optimiser"])
        begin = state["done"]
    step.share_weights()
    for done in training.train(begin):
        if done % options["interval"] and done < options["job"]["steps"]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            kept = None
            if world.rank == 0:
                state = {
                    "network": step.network.state_dict(),
                    "optimiser": step.optimiser.state_dict(),
                    "done": done,
                }
                torch.save(state, Path(folder, "state.pt"))
                kept = Checkpoint.from_directory(folder)
            ray.train.report({"step": done}, checkpoint=kept)


def run(job: Job, folder: Path, interval: int, most: int) -> None:
    """Train to the end, on up to `most` workers: the same command again where Ray's controller gives up, as a user would."""
    while True:
        try:
            _fit(job, folder, interval, most)
        except ControllerError as error:
            print(f"given the same command again: {error}", flush=True)
        else:
            return


def _fit(job: Job, folder: Path, interval: int, most: int) -> None:
    trainer = ray.train.torch.TorchTrainer(
        train,
        train_loop_config={"job": asdict(job), "interval": interval},
        scaling_config=ScalingConfig(
            num_workers=(1, most) if most > 1 else 1,
            resources_per_worker={"CPU": 2},  # a machine: two on one would miss losses
        ),
        run_config=RunConfig(
            name="run", storage_path=str(folder), failure_config=FailureConfig(max_failures=-1)
        ),
        torch_config=ray.train.torch.TorchConfig(backend="gloo"),
    )
    trainer.fit()
