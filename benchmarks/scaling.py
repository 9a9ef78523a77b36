"""How a run grows from 1 to 512 workers, reckoned from counted and measured costs: nothing here ran on so many.

Each worker has a GPU and always the same examples a step, so that the global batch grows with the workers. Efficiency is a
worker's examples a second beside those of one worker that waits for nothing; the columns before it say what takes the rest, in
milliseconds a step:

    computing    the step on one GPU, or the host's launches where they take longer
    gradients    what of their sum the backward pass does not hide
    statistics   batch norm over all workers, a collective each way in each layer
    feed         what decoding on the worker's cores takes longer than all of these
    goodput      what is left after losses of machines and checkpoints (`raymat plan`)

Counted here, on the networks themselves: parameters, state, layers, launches and collectives of a step. Everything else is an
assumption, printed with where it comes from; each has a flag. Collectives cost what Thakur, Rabenseifner and Gropp (2005) have
for them: a ring for large messages, a tree for small ones.

    python benchmarks/scaling.py [--restart 10] [-o docs/assets/scaling.svg]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from scaling_parts.figure import draw
from scaling_parts.networks import Network, count

from raymat.analysis.planning.advice import make_plan
from raymat.analysis.planning.costs import RunCosts
from raymat.analysis.planning.market import Rates
from raymat.distributed.gradient_buckets import BUCKET_BYTES

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
MEAN_AREA = (1 - 0.5**3) / 3 / 0.5
"""Of a crop between half the side and all of it, beside the largest: the mean of a uniform side's square."""
HIDDEN = 2 / 3
"""Share of a step that is the backward pass, behind which sums of gradients hide."""
DAY = 86_400.0
"""Seconds that the run would take without losses."""
DRAWS = 8


@dataclass(frozen=True)
class Assumed:
    """What is not counted here, with where it comes from."""

    base_seconds: float = 0.030
    """a step of base, 8 x 512 pixels, resnet50, fp16, on an H200 (assumed: a prototype of the step took 0.028)"""
    refine_seconds: float = 0.055
    """the same of refine, 4 x 2048 pixels (assumed: a prototype took 0.042, without augmentation)"""
    launch: float = 5e-6
    """seconds of the host for a kernel's launch (assumed)"""
    gpus: int = 8
    """GPUs a machine, connected by NVLink (p5.48xlarge)"""
    inside: float = 200e9
    """bytes a second between a machine's GPUs, each way (assumed: half of NVLink 4's 450e9)"""
    between: float = 25e9
    """bytes a second between machines, for each GPU (assumed: half of p5's 400 Gbit/s a GPU)"""
    hop_inside: float = 3e-6
    """seconds from GPU to GPU in a machine (assumed)"""
    hop_between: float = 10e-6
    """seconds from machine to machine (assumed: EFA)"""
    cores: int = 16
    """cores a worker, for decoding"""
    base_decode: float = 0.0439
    """CPU seconds of an example of base from 4K originals (measured: benchmarks/data_path.py)"""
    refine_decode: float = 0.0778
    """of refine (measured: benchmarks/data_path.py)"""
    prepared_decode: float = 0.0080
    """of base from copies by `raymat prepare --longest 1024` (measured: benchmarks/data_path.py)"""
    row: float = 0.005
    """CPU seconds of Ray a row, which is a worker's share of a step (assumed; benchmarks/feed_scale.py prints it for a machine)"""
    board: float = 1000.0
    """calls a second that an actor of Ray's answers (assumed)"""
    upload: float = 100e6
    """bytes a second from a worker to its bucket (assumed)"""
    losses: float = 1 / 8
    """of one machine in an hour (assumed, as `raymat plan` does)"""
    back: float = 120.0
    """seconds until a lost machine is replaced (assumed, as `raymat plan` does)"""
    restart: float = 15.0
    """seconds from a loss that is known to the next step (`raymat plan`'s: on one small machine)"""


SMALL = {
    "gpus": 1,
    "between": 1.5e9,
    "hop_between": 30e-6,
    "base_seconds": 8 * 0.030,
    "refine_seconds": 8 * 0.055,
    "cores": 8,
}
"""Machines of one A10G with 25 Gbit/s and TCP (g5.2xlarge), half of it used. The card has an eighth of an H200's memory
bandwidth: a step is assumed to take eight times as long."""


@dataclass(frozen=True)
class Row:
    """A stage on so many workers; seconds a step."""

    workers: int
    computing: float
    gradients: float
    statistics: float
    feed: float
    goodput: float
    step: float
    efficiency: float
    board: float
    """Share of what the blackboard can answer."""
    commit: float
    """Seconds from a snapshot to its commit."""

    @property
    def most(self) -> str:
        """What costs most beside computing."""
        waits = {name: getattr(self, name) for name in ("gradients", "statistics", "feed")}
        waits["losses"] = self.step * (1 / self.goodput - 1)
        return max(waits, key=lambda name: waits[name])


def hops(workers: int, a: Assumed, ring: bool) -> float:
    """Return the seconds that a message's way takes: a ring passes all workers, a tree only as many as it is high."""
    machines = math.ceil(workers / a.gpus)
    here = min(workers, a.gpus)
    if ring:
        return (workers - machines) * a.hop_inside + (
            machines if machines > 1 else 0
        ) * a.hop_between
    return (
        math.ceil(math.log2(here)) * a.hop_inside + math.ceil(math.log2(machines)) * a.hop_between
    )


def bandwidth(workers: int, a: Assumed) -> float:
    """Return the bytes a second of the slowest connection on the way."""
    return a.inside if workers <= a.gpus else a.between


def all_reduce(size: float, workers: int, a: Assumed) -> float:
    """Return the seconds of a sum over all workers: the faster of ring and double tree."""
    if workers == 1:
        return 0.0
    moved = 2 * (workers - 1) / workers * size / bandwidth(workers, a)
    return 2 * min(hops(workers, a, ring=True), hops(workers, a, ring=False)) + moved


def all_gather(size: float, workers: int, a: Assumed) -> float:
    """Return the seconds until all workers have the `size` bytes of each: NCCL's ring."""
    if workers == 1:
        return 0.0
    return hops(workers, a, ring=True) + (workers - 1) * size / bandwidth(workers, a)


def row(network: Network, workers: int, pictures: str, a: Assumed) -> Row:
    """Reckon one stage on so many workers."""
    base = network.stage == "base"
    examples = 8 if base else 4
    single = MEAN_AREA * (a.base_seconds if base else a.refine_seconds)
    launches = network.launches if workers == 1 else network.launches_of_many
    computing = max(single, launches * a.launch)
    statistics = sum(
        all_gather(4 * (2 * channels + 1), workers, a) + all_reduce(8 * channels, workers, a)
        for channels in network.layers
    )
    last = min(BUCKET_BYTES, network.gradient_bytes)
    summing = all_reduce(network.gradient_bytes, workers, a)
    gradients = max(all_reduce(last, workers, a), summing - HIDDEN * computing)
    reduced = computing + gradients + statistics
    decode = (
        (a.prepared_decode if pictures == "prepared" else a.base_decode)
        if base
        else a.refine_decode
    )
    feed = max(0.0, (examples * decode + a.row) / a.cores - reduced)
    step = reduced + feed
    commit = network.state_bytes / workers / a.upload + 1.0
    machines = math.ceil(workers / a.gpus)
    costs = RunCosts(step=step, world=machines, save=commit, restart=a.restart)
    market = Rates(a.losses, a.back)
    goodput = make_plan(costs, int(DAY / step), machines, market, None, DRAWS).goodput.mean
    # Each worker's sign of life every 2 s; rank 0's and the driver's questions are some 8 a second.
    calls = workers / 2 + 8
    efficiency = single / step * goodput
    return Row(
        workers,
        computing,
        gradients,
        statistics,
        feed,
        goodput,
        step,
        efficiency,
        calls / a.board,
        commit,
    )


def show(rows: Sequence[Row]) -> None:
    """Print one stage's table, as Markdown."""
    print(
        "| workers | computing | gradients | statistics | feed | step | goodput | efficiency | commit s | board | costs most |"
    )
    print("|" + " --- |" * 11)
    for r in rows:
        times = " | ".join(
            f"{1e3 * x:.1f}" for x in (r.computing, r.gradients, r.statistics, r.feed, r.step)
        )
        print(
            f"| {r.workers} | {times} | {r.goodput:.1%} | {r.efficiency:.0%} | {r.commit:.1f} | {r.board:.0%} | "
            f"{r.most if r.workers > 1 or r.feed else 'losses'} |"
        )
    print(flush=True)


def show_counted(networks: Sequence[Network]) -> None:
    """Print what was counted."""
    for n in networks:
        print(
            f"{n.stage}, resnet50, counted: gradients {n.gradient_bytes / 1e6:.0f} MB, state {n.state_bytes / 1e6:.0f} MB, "
            f"{len(n.layers)} batch norms, {n.launches} launches on one worker, {n.launches_of_many} on several, "
            f"{n.collectives} collectives a step"
        )
    print()


def show_assumed(a: Assumed) -> None:
    """Print the assumptions, as Markdown."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    print("| assumption | value | |")
    print("| --- | --- | --- |")
    for each in fields(a):
        place = next(i for i, line in enumerate(lines) if line.startswith(f"    {each.name}: "))
        note = lines[place + 1].strip().strip('"')
        print(f"| `{each.name}` | {getattr(a, each.name):g} | {note} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for each in fields(Assumed):
        kind = int if isinstance(each.default, int) else float
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=kind, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, help="where the figure goes")
    options = parser.parse_args()
    given = {f.name: v for f in fields(Assumed) if (v := getattr(options, f.name)) is not None}
    networks = [count("base"), count("refine")]
    show_counted(networks)
    show_assumed(Assumed(**given))
    curves = {}
    for name, assumed in (
        ("8 fast GPUs", Assumed(**given)),
        ("1 small GPU", Assumed(**SMALL | given)),
    ):
        for network in networks:
            pictures = "prepared" if network.stage == "base" else "originals"
            rows = [row(network, workers, pictures, assumed) for workers in WORKERS]
            print(f"{network.stage}, machines of {name}, {pictures}; milliseconds a step")
            print()
            show(rows)
            curves[f"{network.stage}, {name}"] = [(r.workers, r.efficiency) for r in rows]
    print("base from 4K originals, machines of 8 GPUs")
    print()
    show([row(networks[0], workers, "originals", Assumed(**given)) for workers in (1, 8, 64, 512)])
    if options.output:
        title = "Efficiency of 1 to 512 workers, reckoned"
        options.output.write_text(draw(curves, title), encoding="utf-8")


if __name__ == "__main__":
    main()
