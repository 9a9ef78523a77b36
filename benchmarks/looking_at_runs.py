"""What it costs to look at runs in a bucket: `raymat runs` of many, `raymat watch` of one, `raymat report` of one.

Makes --runs runs with checkpoints and thousands of events in a bucket (rclone's S3 server on loopback, behind a proxy that
delays every request by --latency seconds): every tenth trains, every tenth died without a word, the rest has ended. Prints the
seconds and requests of each command, as a process of its own.

    python benchmarks/looking_at_runs.py [--runs 50] [--latency 0.02]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from long_run import start_proxy, start_s3

COMMITS, RESTARTS, WORLD, KEPT = 400, 5, 4, 10
WATCHED_SECONDS = 20
NOW = time.time()


def lines_of(run: int) -> str:
    """Return the events of a run that was restarted some times, and ended a minute ago at the latest."""
    begin = NOW - 60 * (run + 1) - 10 * COMMITS
    found: list[dict[str, Any]] = [{"time": begin, "kind": "launch", "config": {"workers": "4"}}]
    for attempt in range(1, RESTARTS + 1):
        share = COMMITS // RESTARTS
        first = begin + 5 + (attempt - 1) * share * 10
        start = {"kind": "start", "world": WORLD, "total_steps": 100 * COMMITS, "ranks": []}
        resumed = 100 * share * (attempt - 1)
        events = [start | {"stage": "base", "device": "cpu"}, {"kind": "restore", "step": resumed}]
        events += [{"kind": "first_step", "step": resumed + 1, "seconds": 2.0, "batch": 1.5}]
        for number in range(1, share):
            step = resumed + 100 * number
            commit = {"kind": "commit", "checkpoint": f"step-{step:09d}-a{attempt:03d}"}
            events.append(commit | {"step": step, "seconds": 0.5, "stall": 0.01, "bytes": 10**8})
            if number % 10 == 0:
                loss = {"loss": 1 / step, "metrics": {}, "seconds": 1.0, "place": "loop"}
                events.append(
                    {"kind": "validation", "step": step, **loss, "best": True, "waited": 0.0}
                )
        events.append({"kind": "failure", "ranks": {"1": "died"}, "last": {}})
        for number, event in enumerate(events):
            place = {"time": first + 8 * share * number / len(events), "attempt": attempt}
            found.append(place | {"writer": "rank-00000"} | event)
    return "".join(json.dumps(event) + "\n" for event in found)


def make_run(folder: Path, run: int) -> None:
    """Write what a run of the number `run` leaves in storage."""
    for name in ("events", "metrics", "lease"):
        (folder / name).mkdir(parents=True)
    stored: dict[str, Any] = {"format": 1, "run_id": f"{run}", "created": "", "versions": {}}
    stored["listing"] = {"synthetic": 20, "digest": "synthetic-20"}
    stored["config"] = {"stage": "base", "best_metric": "loss"}
    (folder / "run.json").write_text(json.dumps(stored))
    (folder / f"events/a{RESTARTS:03d}-rank-00000-0badcafe-00000.jsonl").write_text(lines_of(run))
    for number in range(1, KEPT + 1):
        place = folder / f"checkpoints/step-{100 * number:09d}-a005"
        place.mkdir(parents=True)
        for rank in range(WORLD):
            (place / f"manifest-{rank:05d}-of-{WORLD:05d}.json").write_text("{}")
            (place / f"shard-{rank:05d}-of-{WORLD:05d}.safetensors").write_text("x")
        (place / "state.json").write_text("{}")
    rows = [
        {"kind": "train", "step": step, "loss": 1 / step, "time": NOW, "lr": {"aspp": 1e-4}}
        for step in range(10, 100 * COMMITS, 10)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"metrics/000000001-{100 * COMMITS:09d}-a005.jsonl").write_text(text)


def lease(folder: Path, renewals: int) -> None:
    """Write the lease of a driver on another machine."""
    owner = {"host": "elsewhere", "pid": 7, "user": "me", "machine": None, "started": None}
    entry = {"name": "000001-0badcafe", "state": "holder", "owner": owner, "since": NOW}
    draft = folder / "draft"
    draft.write_text(json.dumps(entry | {"renewals": renewals, "replaces": None}))
    draft.rename(folder / "lease/000001-0badcafe.json")


def renew(runs: list[Path]) -> None:
    """Renew the leases of these runs as drivers do, for ever."""
    with contextlib.suppress(FileNotFoundError):  # the runs have been removed
        for renewals in range(10**6):
            for folder in runs:
                lease(folder, renewals)
                time.sleep(5.0 / len(runs))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--latency", type=float, default=0.02)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="looking-at-runs-"))
    runs = [folder / f"bucket/runs/run-{number:02d}" for number in range(args.runs)]
    for number, run in enumerate(runs):
        make_run(run, number)
    for run in runs[1::10]:
        lease(run, 0)
        os.utime(run / "lease/000001-0badcafe.json", (NOW - 3600, NOW - 3600))
    threading.Thread(target=renew, args=(runs[::10],), daemon=True).start()
    server, port = start_s3(folder)
    try:
        measure(port, args.latency, folder)
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder)


def cpu() -> float:
    """Return the CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(port: int, latency: float, folder: Path) -> None:
    """Run the commands against the server, and print what each costs."""
    requests: list[float] = []
    proxy = start_proxy(port, latency, lambda: requests.append(time.monotonic()))
    environment = os.environ | {
        "AWS_ACCESS_KEY_ID": "ACCESSKEY",
        "AWS_SECRET_ACCESS_KEY": "SECRETKEY",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy}",
    }
    for words in (
        ["runs", "s3://bucket/runs"],
        ["watch", "s3://bucket/runs/run-00"],
        ["report", "s3://bucket/runs/run-02", "-o", str(folder / "report.html")],
    ):
        requests.clear()
        began, before = time.perf_counter(), cpu()
        command = [str(Path(sys.executable).parent / "raymat"), *words]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            if words[0] == "watch":  # which would go on
                run.stdout.readline()
                requests.clear()
                time.sleep(WATCHED_SECONDS)
                print(f"raymat watch: {len(requests) / WATCHED_SECONDS:.1f} requests a second")
                run.terminate()
            last = run.stdout.read().splitlines()[-1:]
        took = time.perf_counter() - began
        used = f"{took:.1f} s, {cpu() - before:.1f} s of CPU, {len(requests)} requests"
        print(f"raymat {' '.join(words)}: {used}\n{''.join(last)}\n", flush=True)


if __name__ == "__main__":
    main()
