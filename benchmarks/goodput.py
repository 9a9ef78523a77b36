"""What comes of a job on machines that vanish: by raymat, by the reference's habit, and by Ray Train as its guide has it.

The same job (network, examples, arithmetic) on the same machines, which come and go as a recording or as drawn losses have it;
a share of the losses is announced. Each machine is a node of a Ray cluster on this one, with room for one worker; for the
habit a process. Beside raymat stand weights saved every --habit-interval steps and a loop that starts the workers again, and
`ray.train.report` with a checkpoint every --guide-interval steps. raymat chooses its own interval, or has --interval.
Each worker waits --device-seconds for an example, as for a device of its own.

Printed for each: wall seconds from the first step to the last; seconds that the same steps take, at this system's own pace, if
machines come and go at no cost; the difference, which is what the losses cost; goodput, the share that counts; steps that were
done again; and how long after a loss training was further than before, median and worst. Of raymat also where its ledger
says that the time went, how far the ledger is from the clock, and what `raymat plan` expects, with the costs that this run's
events tell, on the very machines that came and went.

    python benchmarks/goodput.py --trace FILE [--begin 456] [--speedup 20] [--most 2]
    python benchmarks/goodput.py --machines 2 --mean 60 [--back 20] [--noticed 0.5] [--seed 0]

With a recording the intervals stand for those that fit its real pace: one in 5,000 steps of a day is one in 250 at 20 times
the speed. raymat's own choice in real time, a commit a minute or so, is then one in a few seconds: left to itself it would
expect the losses of a day. Restarts are not sped up, so every figure here is worse than in real time: `raymat plan` says what
that is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Workers of all three import the systems by name, the processes of Ray among them.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent)])
os.environ["RAY_ADDRESS"] = "local"
sys.path.insert(0, str(HERE))

from goodput_systems import ray_guide  # noqa: E402
from goodput_systems.job import DEVICE, STEPS_LOG, Job, train_on_device  # noqa: E402
from goodput_systems.machines import (  # noqa: E402
    Loss,
    Machines,
    Played,
    RayNodes,
    drawn,
    play,
    recommended_settings,
    recorded,
)
from goodput_systems.outcome import Outcome, pace, read_steps  # noqa: E402
from goodput_systems.plain_loop import PlainLoop  # noqa: E402

from raymat.analysis.goodput.ledger import make_ledger  # noqa: E402
from raymat.analysis.planning.costs import RunCosts, measure  # noqa: E402
from raymat.analysis.planning.replay import Setting, replay  # noqa: E402
from raymat.cluster.driver import trainer_setup  # noqa: E402
from raymat.cluster.driver.launch import fit  # noqa: E402
from raymat.storage.store import Store  # noqa: E402
from raymat.train.observability.events import read_events  # noqa: E402

SYSTEMS = ("raymat", "habit", "guide")


def play_one(system: str, options: argparse.Namespace, folder: Path) -> None:
    """Let one system do the job; write the steps, the losses and the machines to `folder`."""
    job = Job(options.steps, options.side, options.device_seconds)
    os.environ[DEVICE] = str(job.device)
    os.environ[STEPS_LOG] = str(folder / "steps.jsonl")
    os.environ["RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING"] = "0"
    changes = (
        recorded(options.trace, options.begin, options.speedup, options.noticed, options.most)
        if options.trace
        else drawn(options.machines, options.mean, options.back, options.noticed, options.seed)
    )
    most = max(change.machines for change in changes)
    nodes: Machines
    if system == "habit":
        loop = PlainLoop(job, folder, options.habit_interval)
        nodes, run = loop.places, loop.run
    else:
        nodes = RayNodes(recommended_settings() if system == "raymat" else {})
        run = _raymat(job, folder, options.interval, most)
        if system == "guide":
            run = _guide(job, folder, options.guide_interval, most)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            run()
        except BaseException as error:
            failed.append(error)

    training = threading.Thread(target=work, daemon=True)

    def ended() -> bool:
        return not training.is_alive()

    losses, history = play(changes, nodes, options.notice, training.start, ended)
    if failed:
        raise failed[0]
    content = {
        "losses": [vars(x) for x in losses],
        "history": history,
        "wall": [history[0][0], time.time()],
    }
    (folder / "machines.json").write_text(json.dumps(content), encoding="utf-8")
    if isinstance(nodes, RayNodes):
        nodes.stop()


def _raymat(job: Job, folder: Path, interval: str, most: int) -> Callable[[], None]:
    trainer_setup.train_worker = train_on_device
    config = job.config(
        name="run", storage=str(folder), workers=f"1:{most}", logger="goodput_systems.job:LiveLog",
        checkpoint_interval=interval,
    )  # fmt: skip
    return lambda: fit(config) and None


def _guide(job: Job, folder: Path, interval: int, most: int) -> Callable[[], None]:
    return lambda: ray_guide.run(job, folder / "ray", interval, most)


def outcome(folder: Path) -> Outcome:
    """Return what a system made of its machines."""
    steps = read_steps(folder / "steps.jsonl")
    found = json.loads((folder / "machines.json").read_text(encoding="utf-8"))
    losses = [Loss(**loss) for loss in found["losses"]]
    return Outcome.of(steps, losses, found["history"], pace(steps))


def show(system: str, found: Outcome) -> None:
    """Print a line of the table."""
    back = found.recoveries
    times = f"{statistics.median(back):6.1f} {max(back):6.1f}" if back else "     -      -"
    print(
        f"{system:8} {found.wall:7.1f} {found.ideal:7.1f} {found.lost:7.1f} {100 * found.ideal / found.wall:6.1f}% "
        f"{found.again:6} {times}  of {len(back)}",
        flush=True,
    )


def show_ledger(folder: Path) -> None:
    """Print where raymat's time went, and how far its ledger is from the clock."""
    ledger = make_ledger(read_events(Store.open(str(folder), "run")))
    by_cause = sorted(ledger.by_cause.items(), key=lambda item: -item[1])
    print("raymat's ledger: " + ", ".join(f"{cause} {seconds:.1f}" for cause, seconds in by_cause))
    found = json.loads((folder / "machines.json").read_text(encoding="utf-8"))
    began, ended = found["wall"]
    print(f"from the command to its end {ended - began:.1f} s")


def show_plan(folder: Path, steps: int) -> None:
    """Print what a plan with the run's own costs says of the machines that it had, beside its ledger."""
    events = read_events(Store.open(str(folder), "run"))
    found = json.loads((folder / "machines.json").read_text(encoding="utf-8"))
    played = Played.of(found["history"], [Loss(**loss) for loss in found["losses"]])
    most = max(change.machines for change in played.told)
    commits = [e["step"] for e in events if e["kind"] == "commit"]
    interval = statistics.median(b - a for a, b in itertools.pairwise(commits))
    costs = RunCosts(**measure(events))
    plan = replay(costs, steps, Setting(1, most, 0, round(interval)), played, seed=0)
    ledger = make_ledger(events)
    there = ledger.slot_seconds - ledger.by_cause.get("capacity", 0.0)
    goodput = ledger.by_cause.get("training", 0.0) / there
    shown = ", ".join(f"{name} {value:.1f}" for name, value in plan.by_cause.items() if value)
    print(f"the plan for these machines: {shown}")
    print(
        f"goodput of the machines that were there: plan {100 * plan.goodput:.1f}%, ledger {100 * goodput:.1f}%; "
        f"seconds: plan {plan.wall:.1f}, ledger {ledger.slot_seconds / most:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--trace", help="a recording of how many machines there were")
    parser.add_argument("--begin", type=int, default=0, help="entry of the recording")
    parser.add_argument("--speedup", type=float, default=20.0)
    parser.add_argument("--most", type=int, help="of its machines; default: all")
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--mean", type=float, default=60.0, help="seconds between losses")
    parser.add_argument("--back", type=float, default=20.0, help="seconds until one is replaced")
    parser.add_argument("--noticed", type=float, default=0.5, help="share of announced losses")
    parser.add_argument("--notice", type=float, default=10.0, help="seconds before them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device-seconds", type=float, default=0.05, help="for an example")
    parser.add_argument("--interval", default="auto", help="of raymat's")
    parser.add_argument("--habit-interval", type=int, default=250)
    parser.add_argument("--guide-interval", type=int, default=50)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--one", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where everything is kept; default: nowhere")
    options = parser.parse_args()
    if options.one:
        play_one(options.one, options, options.folder)
        return
    root = options.folder or Path(tempfile.mkdtemp(prefix="goodput"))
    print(
        f"{'':8} {'wall':>7} {'ideal':>7} {'lost':>7} {'goodput':>7} {'again':>6} {'back':>6} {'worst':>6}"
    )
    found: dict[str, Outcome] = {}
    for system in options.systems:
        folder = root / system
        folder.mkdir(parents=True)
        command = [sys.executable, __file__, *sys.argv[1:], "--one", system]
        with (folder / "log").open("w") as log:
            code = subprocess.run(
                [*command, "--folder", str(folder)], stdout=log, stderr=log, check=False
            ).returncode
        if code:
            sys.exit(f"{system} failed: see {folder}/log")
        found[system] = outcome(folder)
        show(system, found[system])
    for other in [system for system in found if system != "raymat" and "raymat" in found]:
        print(f"raymat's lost time : {other}'s = {found['raymat'].lost / found[other].lost:.2f}")
    if "raymat" in found:
        show_ledger(root / "raymat")
        show_plan(root / "raymat", options.steps)
    if options.folder is None:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
