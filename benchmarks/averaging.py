"""What an average of checkpoints is worth with averaged batch-norm statistics, and with new ones.

Trains a base network on procedural pairs (mobilenetv2, 64 pixels, in this process), twice from the same
weights and from there on with other pictures, as in fine-tuning; takes the last checkpoints of both and
prints the mean validation loss, and SAD of alpha, of each, of their average with the mean of their
statistics, and of `raymat average` with statistics of 64 training examples.

    python benchmarks/averaging.py [--steps 120] [--tune 60] [--folder DIR]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from raymat.analysis.averaging.soup import WeightSum
from raymat.analysis.run_pictures import RunPictures
from raymat.cli.average import Options, average
from raymat.config.run import RunConfig, build
from raymat.data.feed import LocalFeed
from raymat.distributed.world import World
from raymat.model.matting import MattingBase
from raymat.storage.store import Store
from raymat.train.loop.interfaces import Host, Worker
from raymat.train.loop.trainer import run
from raymat.train.run.open_run import open_run
from raymat.train.run.selected_weights import build_network, read_weights

PAIRS, VALID = 64, 16
CPU = torch.device("cpu")


def train(folder: Path, name: str, steps: int, **options: Any) -> RunConfig:
    """A run in this process; its configuration."""
    defaults: dict[str, Any] = {
        "synthetic": PAIRS,
        "backbone": "mobilenetv2",
        "device": "cpu",
        "precision": "fp32",
        "resolution": 64,
        "crop": "64",
        "batch_size": 8,
        "valid_examples": VALID,
        "valid_interval": 10**6,
        "checkpoint_interval": 10**6,
        "log_images_interval": 10**6,
    }
    config = build(
        "base", defaults | {"storage": str(folder), "name": name, "steps": steps} | options
    )
    store = Store.open(config.storage, config.name)
    prepared = open_run(config, store)
    feed = LocalFeed(prepared.source.open(), prepared.order, prepared.geometry)
    run(prepared, Worker(World(), CPU), feed=feed, store=store, host=Host())
    return config


def main() -> None:
    """Train, average, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--tune", type=int, default=60)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp())
    torch.set_num_threads(1)
    first = train(folder, "first", args.steps)
    start = f"{folder}/first"
    for seed in (1, 2):
        train(folder, f"tuned-{seed}", args.tune, init=start, seed=seed)
    names = [f"{folder}/tuned-{seed}" for seed in (1, 2)]
    pictures = RunPictures.of(first)

    def tell(label: str, network: MattingBase) -> None:
        loss, sad = (pictures.measure(network, metric, CPU) for metric in ("loss", "sad"))
        print(f"{label:<44} loss {loss:.4f}  SAD {sad:.4f}")

    tell("where both began", build_network(read_weights(start)))
    total: WeightSum | None = None
    for name in names:
        selected = read_weights(name)
        network = build_network(selected)
        tell(Path(name).name, network)
        if total is None:
            total = WeightSum(selected.weights, name)
        else:
            total.add(selected.weights, name)
    assert total is not None
    total.mean_into(network.state_dict())
    tell("average, mean of the statistics", network)
    out = str(folder / "average.pth")
    average(Options(what=tuple(names), output=out, examples=64, device="cpu", force=True))
    tell("average, new statistics", build_network(read_weights(out)))


if __name__ == "__main__":
    main()
