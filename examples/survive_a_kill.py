"""Kill a worker in the middle of a run, and see that nothing came of it: the same run undisturbed has the same weights, to the bit.

    python examples/survive_a_kill.py [FOLDER]

Takes about a minute on two cores.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from raymat import Store, build, fit, read_events

RUN = {
    "synthetic": 64,
    "backbone": "mobilenetv2",
    "resolution": 64,
    "crop": "32:64",
    "device": "cpu",
    "workers": 2,
    "steps": 60,
    "checkpoint_interval": 10,
    "valid_examples": 0,
}


def main(folder: Path) -> int:
    """Train one run twice, once with a kill; return the exit code of their comparison, 0 if they are equal."""
    runs = str(folder / "runs")
    killer = threading.Thread(target=kill_a_worker, args=(runs, "killed", 20), daemon=True)
    killer.start()
    for name in ("killed", "undisturbed"):
        fit(build("base", RUN | {"name": name, "storage": runs}))
    subprocess.run(["raymat", "restarts", f"{runs}/killed"], check=True)
    return subprocess.run(["raymat", "diff", f"{runs}/killed", f"{runs}/undisturbed"]).returncode


def kill_a_worker(runs: str, name: str, step: int) -> None:
    """Send SIGKILL to a worker once a checkpoint of `step` or later is committed."""
    store = Store.open(runs, name)
    while True:
        time.sleep(0.2)
        events = read_events(store)
        if max((e["step"] for e in events if e["kind"] == "commit"), default=0) >= step:
            break
    workers = [e for e in events if e["kind"] == "start"][-1]["ranks"]
    print("killing worker", workers[-1]["rank"], "of", len(workers), flush=True)
    os.kill(workers[-1]["pid"], signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "example")))
