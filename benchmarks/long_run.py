"""What a long run leaves in metrics/, events/ and tensorboard/, and what reading it costs.

Makes the records of a run of many commits, as they were before objects were merged and as they are now, in a local folder and
in a bucket (rclone's S3 server on loopback, behind a proxy that delays every request by --latency seconds). Prints for
each the number of objects, and the seconds to list them, to read all metrics, to read all events and to find the next attempt's
number, with the peak memory of the process that does. Before: objects one after another, the first 1,000 measured and
scaled; from S3 for a tenth of the run, as this server takes minutes to list more. The merging is timed too.

    python benchmarks/long_run.py [--commits 100000] [--rows 10] [--latency 0.02]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raymat.storage.store import Store
from raymat.train.observability.events import highest_attempt, read_events
from raymat.train.observability.merging.curves_merge import CurvesMerge
from raymat.train.observability.merging.events_merge import EventsMerge
from raymat.train.observability.merging.metrics_merge import MetricsMerge
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.observability.tensorboard_log import TensorBoardLog

FOLDERS = ("metrics", "events", "tensorboard")
SAMPLE = 1_000


def row(step: int) -> dict[str, Any]:
    place = {"kind": "train", "step": step, "examples": 8 * step, "epoch": step / 30_000}
    rates = {"backbone": 1e-4, "aspp": 5e-4, "decoder": 5e-4}
    return place | {"time": 1.8e9 + step / 7, "loss": 1 / step, "digest": "0" * 16, "lr": rates}


def make_run(run: Path, commits: int, rows: int) -> None:
    """Write the records of a run as they were before objects were merged."""
    for folder in FOLDERS:
        (run / folder).mkdir(parents=True)
    log = TensorBoardLog(Store.open(str(run.parent), "sample"), 1)
    for step in range(1, rows + 1):
        log.row(row(step))
    log.cut(rows)
    log.flush(rows)
    (sample,) = (run.parent / "sample/tensorboard").iterdir()
    curve = sample.read_bytes()
    events: list[str] = []
    steps, size, number = 10 * rows, 0, 0
    for commit in range(1, commits + 1):
        last = commit * steps
        lines = [json.dumps(row(step)) for step in range(last - steps + 10, last + 1, 10)]
        name = f"{last - steps + 1:09d}-{last:09d}-a001.jsonl"
        (run / "metrics" / name).write_text("\n".join(lines) + "\n")
        (run / "tensorboard" / f"events.out.tfevents.{last:09d}.a001").write_bytes(curve)
        place = {"time": 1.8e9 + commit, "attempt": 1, "writer": "rank-00000", "kind": "commit"}
        what = {"checkpoint": f"step-{last:09d}-a001", "step": last, "seconds": 1.25}
        events.append(json.dumps(place | what | {"stall": 0.0125, "bytes": 123_456_789}) + "\n")
        size += len(events[-1])
        if size > 2**16 or commit == commits:
            path = run / "events" / f"a001-rank-00000-0badcafe-{number:05d}.jsonl"
            path.write_text("".join(events))
            events, size, number = [], 0, number + 1


def merge(store: Store) -> None:
    """Merge as a run does beside training."""
    for each in (MetricsMerge(store, 1), EventsMerge(store, 1), CurvesMerge(store, 1)):
        while each():
            pass


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def read_one_by_one(store: Store, folder: str) -> float:
    """Return the seconds to read all objects in sequence, scaled from some of them."""
    paths = [file.path for file in store.list(folder)]
    some = paths[:SAMPLE]
    return seconds(lambda: [store.read(path) for path in some]) * len(paths) / len(some)


def measure(url: str, what: str) -> dict[str, float]:
    """Do one thing to the run in this process, for its time and its peak memory."""
    options = json.loads(os.environ.get("S3_OPTIONS", "{}"))
    store = Store.open(url, "run", options=options)
    store.list("lease")  # connect
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calls: dict[str, Callable[[], Any]] = {
        "list": lambda: [store.list(folder) for folder in FOLDERS],
        "metrics": lambda: read_metrics(store),
        "events": lambda: read_events(store),
        "attempt": lambda: highest_attempt(store),
        "merge": lambda: merge(store),
    }
    if what in calls:
        took = seconds(calls[what])
    else:
        took = read_one_by_one(store, what.removeprefix("all-"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": took, "megabytes": (peak - before) / 1024}


def measured(url: str, what: str, options: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", url, what]
    environment = os.environ | {"S3_OPTIONS": json.dumps(options)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def print_table(name: str, url: str, options: dict[str, Any], *, merged: bool) -> None:
    store = Store.open(url, "run", options=options)
    counts = [len(store.list(folder)) for folder in FOLDERS]
    metrics, events = ("metrics", "events") if merged else ("all-metrics", "all-events")
    print(f"{name}: {', '.join(f'{f} {n}' for f, n in zip(FOLDERS, counts, strict=True))} objects")
    for label, what in [
        ("list all", "list"),
        ("read metrics", metrics),
        ("read events", events),
        ("next attempt", "attempt"),
    ]:
        found = measured(url, what, options)
        print(f"  {label:<13}{found['seconds']:9.2f} s {found['megabytes']:7.0f} MB", flush=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_proxy(target: int, latency: float, seen: Callable[[], None] = lambda: None) -> int:
    """Serve a port that forwards to `target`, each request `latency` seconds late and told to `seen`; return it."""
    port = free_port()

    async def pipe(source: asyncio.StreamReader, to: asyncio.StreamWriter, late: float) -> None:
        while data := await source.read(2**20):
            if late:
                seen()
                await asyncio.sleep(late)
            to.write(data)
            await to.drain()
        to.close()

    async def serve(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(
            pipe(source, there, latency), pipe(back, to, 0.0), return_exceptions=True
        )

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", port) as server:
            await server.serve_forever()

    threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()
    return port


def start_s3(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Serve the buckets in `folder` on a free port; return the server and its port."""
    port = free_port()
    command = [
        str(Path(sys.executable).parent / "rclone"), "serve", "s3", "--config", "/dev/null",
        "--auth-key", "ACCESSKEY,SECRETKEY", "--addr", f"127.0.0.1:{port}", str(folder),
    ]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return server, port
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("rclone serve s3 did not start")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--commits", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--measure", nargs=2, metavar=("URL", "WHAT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    folder = Path(tempfile.mkdtemp(prefix="long-run-"))
    try:
        make_run(folder / "whole" / "run", args.commits, args.rows)
        make_run(folder / "tenth" / "run", args.commits // 10, args.rows)
        print(f"{args.commits} commits of {args.rows} rows each")
        print_table("before", str(folder / "whole"), {}, merged=False)
        print_from_s3(folder, "tenth", args.latency, merged=False)
        found = measured(str(folder / "whole"), "merge", {})
        print(f"merging all: {found['seconds']:.0f} s, {found['megabytes']:.0f} MB, local folder")
        print_table("merged", str(folder / "whole"), {}, merged=True)
        print_from_s3(folder, "whole", args.latency, merged=True)
    finally:
        shutil.rmtree(folder)


def print_from_s3(folder: Path, bucket: str, latency: float, *, merged: bool) -> None:
    # A new server each time: it remembers what it has listed.
    server, port = start_s3(folder)
    try:
        endpoint = f"http://127.0.0.1:{start_proxy(port, latency)}"
        options = {"key": "ACCESSKEY", "secret": "SECRETKEY", "endpoint_url": endpoint}
        name = f"{'merged' if merged else 'before'}, S3, {1000 * latency:.0f} ms a request"
        print_table(f"{name}, {bucket} run", f"s3://{bucket}", options, merged=merged)
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
