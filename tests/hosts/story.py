"""What happens to a run on three hosts: one vanishes, one is told that it will be taken, one comes; and whether a bit changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from tests.hosts.bucket import ENVIRONMENT, NAME
from tests.hosts.machine import Machine
from tests.hosts.operator_shell import Clock, Operator
from tests.support.heads import wait_for

NOTICE_SECONDS = 60.0
"""From the notice to the end of the machine. EC2 gives two minutes, in which a run would train on just as long."""
LIMIT = 900.0
"""Seconds after which something that should happen will not."""
ENDLESS = 100_000
"""Steps that no machine is done with before one host was lost and one was taken."""
PATIENT = {"RAY_JOB_STOP_WAIT_TIME_S": "120"}
INTERVAL = 10
"""Steps between two checkpoints."""
RUN = (
    *("python", "jobs/base.py", "--device", "cpu", "--workers", "2", "--backbone", "mobilenetv2"),
    *("--dataset", f"s3://{NAME}/data", "--backgrounds", f"s3://{NAME}/walls"),
    *("--resolution", "64", "--crop", "32:64", "--batch-size", "8", "--epoch-examples", "1000000"),
    *("--checkpoint-interval", str(INTERVAL), "--valid-examples", "0", "--seed", "7"),
    # Else they would follow from the length, which the disturbed run first has longer.
    *("--valid-interval", "1000", "--log-images-interval", "1000"),
    *("--nearby", "/tmp/nvme/nearby", "--storage", f"s3://{NAME}/runs"),
)  # fmt: skip


class Story:
    """The parts in their order; each waits for what it is about, and says how long that took."""

    def __init__(self, clock: Clock, operator: Operator, objects: Path) -> None:
        self._clock, self._operator = clock, operator
        self._runs = objects / "runs"
        self._store = Store.open(str(self._runs), "disturbed")

    def submit(self, run: str, job: str, steps: int) -> None:
        """Submit a job that trains a run up to so many steps, and wait for its first step."""
        began = time.time()
        command = (*RUN, "--name", run, "--steps", str(steps))
        self._operator.submit(job, ENVIRONMENT | PATIENT, command)
        first = self._event(lambda e: e["kind"] == "first_step", self._of(run), after=began)
        seconds = first["time"] - began
        self._clock.say(
            f"{job}: submitted, and {seconds:.1f} s later done with step {first['step']}"
        )

    def lose(self, hosts: list[Machine]) -> Machine:
        """Pull the plug of a host with a rank of the run; return the one that is left."""
        self._event(lambda e: e["kind"] == "commit" and e["step"] >= 2 * INTERVAL)
        start = self._event(lambda e: e["kind"] == "start")
        ranks = {rank["rank"]: rank["host"] for rank in start["ranks"]}
        self._clock.say(f"ranks on {', '.join(f'{host} ({rank})' for rank, host in ranks.items())}")
        going = next(host for host in hosts if host.name == ranks[1])
        going.vanish()
        began = time.time()
        self._clock.say(f"{going.name} vanishes: its wire is cut")
        failure = self._event(lambda e: e["kind"] in ("failure", "machine_lost"), after=began)
        self._clock.say(f"loss noticed after {failure['time'] - began:.1f} s")
        first = self._event(lambda e: e["kind"] == "first_step", after=began)
        self._clock.say(
            f"back in training after {first['time'] - began:.1f} s, at step {first['step']}"
        )
        return next(host for host in hosts if host is not going)

    def announce(self, going: Machine, coming: Machine) -> None:
        """Give one host its notice, have another boot in its place, and take the first when its time is over."""
        began = time.time()
        going.announce_end(NOTICE_SECONDS)
        self._clock.say(f"{going.name} is told by its metadata server: {NOTICE_SECONDS:.0f} s left")
        notice = self._event(lambda e: e["kind"] == "notice", after=began)
        self._clock.say(
            f"the workers know after {notice['time'] - began:.1f} s, at step {notice['step']}"
        )
        commit = self._event(lambda e: e["kind"] == "commit", after=notice["time"])
        self._clock.say(
            f"first commit {commit['time'] - began:.1f} s after the notice, step {commit['step']}"
        )
        self._clock.say(f"{coming.name} boots: its ssh server answers after {coming.boot():.1f} s")
        booted = time.time()
        self._operator.await_node(coming.address, True, LIMIT)
        self._clock.say(f"{coming.name} is in the cluster {time.time() - booted:.1f} s later")
        leave = self._event(lambda e: e["kind"] in ("leave", "failure"), after=began)
        if leave["kind"] == "failure":
            raise RuntimeError(f"the workers did not leave, but failed: {leave['ranks']}")
        self._clock.say(
            f"the workers leave {leave['time'] - began:.1f} s after the notice, after step {leave['step']}; "
            f"committed: {leave['committed']}"
        )
        time.sleep(max(0.0, began + NOTICE_SECONDS - time.time()))
        going.take()
        self._clock.say(f"{going.name} is taken")
        first = self._event(lambda e: e["kind"] == "first_step", after=leave["time"])
        self._clock.say(
            f"back in training {first['time'] - leave['time']:.1f} s after the leave, at step {first['step']}"
        )

    def stop(self, job: str) -> int:
        """Stop a job; return the step at which its run can end soon."""
        began = time.time()
        self._operator.stop(job)
        leave = self._event(lambda e: e["kind"] == "leave", after=began)
        self._clock.say(f"{job}: `ray job stop`, and step {leave['committed']} is committed")
        return int(leave["committed"]) + INTERVAL

    def finish(self, run: str, job: str) -> None:
        """Wait for the end of a run."""
        store = self._of(run)
        end = self._event(lambda e: e["kind"] == "end" and e["outcome"] == "complete", store)
        wait_for(lambda: self._operator.job_status(job) == "SUCCEEDED", LIMIT)
        self._clock.say(f"{job}: complete, step {end['step']}")

    def _of(self, run: str) -> Store:
        return Store.open(str(self._runs), run)

    def _event(
        self,
        which: Callable[[dict[str, Any]], bool],
        store: Store | None = None,
        after: float = 0.0,
    ) -> dict[str, Any]:
        """Return the first event of that kind after a time, once it is there."""

        def found() -> dict[str, Any] | None:
            events = read_events(store or self._store)
            return next((e for e in events if e["time"] >= after and which(e)), None)

        event: dict[str, Any] = wait_for(found, LIMIT)
        return event
