"""Faults of every kind at random, one after another: no sample and no bit changes, and with resizes nothing beyond rounding."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from raymat.analysis.compare import diff
from raymat.analysis.goodput.ledger import make_ledger
from raymat.cli.diff import text
from raymat.cluster.blackboard import Blackboard
from raymat.cluster.driver.launch import fit
from raymat.config.run import RunConfig
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from raymat.train.observability.progress import Progress
from raymat.train.run.notice import LeavingError, Notice
from tests.support.kit import rows, starts, tiny
from tests.support.nodes import Nodes, parent_of, raylet, stored_bytes
from tests.support.runs import without_ray

UNTIL_TOLD = 4000
"""Steps of a run that is stopped when all its faults have come."""
QUIET = {"valid_examples": 0, "decode_tasks": 2}
"""The nodes have more cores than this machine: read tasks of their own accord would take all of it."""
PATIENCE_SECONDS = 240.0
ENOUGH = "all faults have come"

KINDS = (
    "worker killed",
    "drained, then killed",
    "node killed",
    "worker suspended",
    "notice withdrawn",
    "node added",
    "object store lost",
)


@dataclass(frozen=True)
class Fault:
    """What was done to a run, and where the run was."""

    kind: str
    detail: str
    step: int
    """Completed steps that the workers had reported."""
    attempt: int
    time: float
    """Unix seconds."""
    restarts: bool
    """Whether the workers had to start again."""


class Disturbed:
    """A run in a thread, and somebody in the main thread who disturbs it.

    Its steps never end: `stop` has it commit and leave.
    """

    def __init__(self, config: RunConfig, nodes: Nodes, boards_made: list[Blackboard]) -> None:
        self.config, self.nodes = config, nodes
        self.store = Store.open(config.storage, config.name)
        self._boards = boards_made
        self._pool = ThreadPoolExecutor(1)
        self._training: Future[Any] = self._pool.submit(fit, config)

    def __enter__(self) -> Disturbed:
        self.until(lambda: self.progress(), "progress")
        return self

    def __exit__(self, *args: Any) -> None:
        """However this ended, nothing goes on training."""
        if self._boards and not self._training.done():
            self.wish(Notice(ENOUGH, final=True))
        self._pool.shutdown(wait=True)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """The first true value of `condition`, asked again and again while the run goes on."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            if self._training.done():
                self._training.result()
                raise AssertionError(f"the run ended while it was waited for {what}")
            time.sleep(0.1)
        raise AssertionError(f"{what} did not come within {PATIENCE_SECONDS:.0f} s")

    def progress(self) -> Progress | None:
        """The newest that rank 0 reported."""
        if not self._boards:
            return None
        return self._boards[-1].news(0).progress

    def wish(self, notice: Notice | None) -> None:
        self._boards[-1].request_leave(notice)

    def events(self, kind: str, since: float = 0.0) -> list[dict[str, Any]]:
        return [e for e in read_events(self.store) if e["kind"] == kind and e["time"] > since]

    def workers(self) -> list[dict[str, Any]]:
        ranks: list[dict[str, Any]] = starts(self.store)[-1]["ranks"]
        return ranks

    def works_on(self, node: Any) -> bool:
        return any(parent_of(worker["pid"]) == raylet(node) for worker in self.workers())

    def trained_on(self, after: int) -> Progress | None:
        """The progress, if it is of an attempt later than `after`."""
        progress = self.progress()
        return progress if progress is not None and progress.attempt > after else None

    def stop(self) -> int:
        """Have the run commit and leave; returns its last step."""
        self.wish(Notice(ENOUGH, final=True))
        with pytest.raises(LeavingError, match=ENOUGH):
            self._training.result(timeout=PATIENCE_SECONDS)
        leave = self.events("leave")[-1]
        assert leave["committed"] == leave["step"]
        return int(leave["step"])


class Tormentor:
    """Does one thing after another to a run, in an order and at moments drawn from `seed`.

    A fault comes when, since the one before, the workers are as many as there is room for, something was
    committed, and up to six more steps were made.
    """

    def __init__(self, run: Disturbed, seed: int, *, least: int, most: int) -> None:
        """`least`, `most`: of nodes; also the fewest and the most workers that the run can have."""
        self._run, self._nodes = run, run.nodes
        self._random = random.Random(seed)
        self._least, self._most = least, most
        self._reader = self._nodes.add_reader()
        self.faults: list[Fault] = []
        self._acts: dict[str, Callable[[], tuple[str, bool]]] = {
            "worker killed": self._kill_worker,
            "drained, then killed": self._drain,
            "node killed": self._kill_node,
            "worker suspended": self._suspend_worker,
            "notice withdrawn": self._withdraw,
            "node added": self._add_node,
            "object store lost": self._lose_store,
        }

    def do(self, kinds: list[str]) -> None:
        for kind in kinds:
            before = self._wait_for_calm()
            began = time.time()
            detail, restarts = self._acts[kind]()
            fault = Fault(kind, detail, before.step, before.attempt, began, restarts)
            self.faults.append(fault)
            if restarts:
                self._run.until(
                    lambda f=fault: self._run.trained_on(f.attempt), f"life after {fault}"
                )  # type: ignore[misc]
            print(f"{len(self.faults):2d} {kind}: {detail}", flush=True)
        self._wait_for_calm()

    def _wait_for_calm(self) -> Progress:
        world = max(self._least, min(len(self._nodes.added), self._most))
        since = self.faults[-1].time if self.faults else 0.0
        if self.faults:
            since = time.time()
        self._run.until(
            lambda: (p := self._run.progress()) is not None and p.world == world, f"{world} workers"
        )
        commit = self._run.until(lambda: self._run.events("commit", since), "a commit")[0]
        step = commit["step"] + self._random.randrange(7)

        def there() -> Progress | None:
            progress = self._run.progress()
            return progress if progress is not None and progress.step >= step else None

        found: Progress = self._run.until(there, f"step {step}")
        return found

    # Each returns what it did, and whether the workers have to start again for it.

    def _kill_worker(self) -> tuple[str, bool]:
        return self._signal_worker(signal.SIGKILL), True

    def _suspend_worker(self) -> tuple[str, bool]:
        return self._signal_worker(signal.SIGSTOP), True

    def _signal_worker(self, number: signal.Signals) -> str:
        victim = self._random.choice(self._run.workers())
        os.kill(victim["pid"], number)
        return f"rank {victim['rank']}"

    def _choose_node(self) -> tuple[Any, bool]:
        """One with a worker, unless Ray placed all of them on the reader or the head; and whether it has one."""
        nodes = self._nodes.added
        with_worker = [node for node in nodes if self._run.works_on(node)]
        return self._random.choice(with_worker or nodes), bool(with_worker)

    def _kill_node(self) -> tuple[str, bool]:
        node, hit = self._choose_node()
        self._nodes.kill(node)
        return self._replace(node), hit

    def _drain(self) -> tuple[str, bool]:
        """Announced, and gone at the announced time; another comes before or after, or none."""
        node, hit = self._choose_node()
        before = self._random.random() < 0.5 and len(self._nodes.added) <= self._most
        if before:
            self._nodes.add()
        seconds = self._random.uniform(10.0, 20.0)
        end = time.monotonic() + seconds
        self._nodes.drain(node, seconds)
        time.sleep(max(0.0, end - time.monotonic()))
        self._nodes.kill(node)
        what = "another came before" if before else self._replace(node)
        return f"{seconds:.0f} s ahead, {what}", hit

    def _replace(self, node: Any) -> str:
        """Another node for one that went, where it is needed or by chance."""
        if len(self._nodes.added) >= self._least and self._random.random() < 0.5:
            return "none came"
        self._nodes.add()
        return "another came"

    def _withdraw(self) -> tuple[str, bool]:
        """Ray cannot take a drain back; who announced machines' end to the workers can."""
        since = time.time()
        self._run.wish(Notice("machines might go", time.time() + 600.0))
        self._run.until(lambda: self._run.events("notice", since), "the notice")
        self._run.wish(None)
        self._run.until(lambda: self._run.events("notice_withdrawn", since), "its withdrawal")
        return "", False

    def _add_node(self) -> tuple[str, bool]:
        grows = self._least < self._most and len(self._nodes.added) < self._most
        if len(self._nodes.added) > self._most:
            self._nodes.kill(self._nodes.added[-1])
        self._nodes.add()
        return "", grows

    def _lose_store(self) -> tuple[str, bool]:
        """A machine goes with the batches that wait in its object store; without a worker, if there is such a one."""

        def candidates() -> list[tuple[bool, int, Any]]:
            found = [
                (not self._run.works_on(node), stored_bytes(node), node)
                for node in [self._reader, *self._nodes.added]
            ]
            return [each for each in found if each[1]]

        found = self._run.until(candidates, "batches in an object store")
        idle, stored, node = max(found, key=lambda each: each[:2])
        self._nodes.kill(node)
        if node is self._reader:
            self._reader = self._nodes.add_reader()
        else:
            self._nodes.add()
        return f"{stored / 2**20:.1f} MiB", not idle


def drawn_kinds(seed: int, count: int) -> list[str]:
    """Every kind equally often, in an order of chance."""
    deck = [KINDS[number % len(KINDS)] for number in range(count)]
    random.Random(seed).shuffle(deck)
    return deck


def table(run: Disturbed, faults: list[Fault]) -> str:
    """One line for each fault: what it cost."""
    lines = ["   fault                 at step  from  lost  seconds  workers"]
    for number, fault in enumerate(faults, 1):
        later = [e for e in read_events(run.store) if (e["attempt"] or 0) > fault.attempt]
        world = next((e["world"] for e in later if e["kind"] == "start"), None)
        line = f"{number:2d} {fault.kind:<20}"
        if not fault.restarts:
            lines.append(f"{line}  {fault.step:7d}     -     -        -        -  {fault.detail}")
            continue
        restored = next(e["step"] for e in later if e["kind"] == "restore")
        first = next(e["time"] for e in later if e["kind"] == "first_step")
        left = [e for e in run.events("leave") if e["attempt"] == fault.attempt]
        step, since = (left[0]["step"], left[0]["time"]) if left else (fault.step, fault.time)
        lines.append(
            f"{line}  {step:7d}  {restored:4d}  {step - restored:4d}  {first - since:7.1f}  {world:7d}  "
            + fault.detail
        )
    return "\n".join(lines)


class Torment(NamedTuple):
    """A run after its faults."""

    store: Store
    last: int
    """Its last step."""
    seconds: float
    """Between the call that began it and that call's end, by the clock."""


def tormented(
    nodes: Nodes, boards_made: list[Blackboard], config: RunConfig, seed: int, kinds: list[str]
) -> Torment:
    workers = config.workers.workers
    print(f"seed {seed}: {', '.join(kinds)}")
    nodes.add_together(max(2, workers.low))
    began = time.monotonic()
    with Disturbed(config, nodes, boards_made) as run:
        tormentor = Tormentor(run, seed, least=workers.low, most=workers.high)
        try:
            tormentor.do(kinds)
            last = run.stop()
        finally:
            print(table(run, tormentor.faults))
        seconds = time.monotonic() - began
    assert [fault.kind for fault in tormentor.faults] == kinds
    print(f"{last} steps in {seconds:.0f} s")
    return Torment(run.store, last, seconds)


def equal_to_the_bit(
    nodes: Nodes,
    boards_made: list[Blackboard],
    storage: Path,
    stage: Any,
    seed: int,
    kinds: list[str],
) -> Torment:
    """With a run that nobody disturbed, and that had no Ray either; return the other."""
    options: dict[str, Any] = {"workers": "2"} | QUIET
    config = tiny(stage, storage, "disturbed", steps=UNTIL_TOLD, **options)
    torment = tormented(nodes, boards_made, config, seed, kinds)
    broken, last, _ = torment
    whole = without_ray(tiny(stage, storage, "undisturbed", steps=last, **options))
    found = diff(whole.url, broken.url)
    assert not found.different_tensors, text(found)
    # Only where the run was to end.
    assert [d.name for d in found.different_values] == ["config.steps"], text(found)
    assert rows(broken) == rows(whole)
    assert [row[0] for row in rows(whole)] == list(range(1, last + 1))
    return torment


def assert_accounted(torment: Torment, workers: int) -> None:
    """Each second of each slot has a cause in the ledger, which is made of the events alone."""
    ledger = make_ledger(read_events(torment.store))
    print(", ".join(f"{cause} {seconds:.1f}" for cause, seconds in ledger.by_cause.items()))
    accounted = ledger.slot_seconds / workers
    print(f"accounted {accounted:.1f} s a slot, by the clock {torment.seconds:.1f} s")
    assert abs(accounted - torment.seconds) < 0.005 * torment.seconds


def assert_same_mathematics(broken: Store, whole: Store, last: int) -> None:
    """Every step's examples, and the losses but for the order of sums."""
    ours, theirs = rows(broken), rows(whole)
    assert [row[0] for row in theirs] == list(range(1, last + 1))
    assert [(step, examples, digest) for step, examples, _, digest in ours] == [
        (step, examples, digest) for step, examples, _, digest in theirs
    ]
    drift = [abs(b[2] - a[2]) / a[2] for a, b in zip(theirs, ours, strict=True)]
    marks = [k for k in (10, 30, 100, 300, 1000) if k < last] + [last]
    print(
        "losses, the largest relative difference up to step",
        ", ".join(f"{k}: {max(drift[:k]):.1e}" for k in marks),
    )
    assert max(drift) < 1e-8


def elastic(stage: Any) -> dict[str, Any]:
    """Where rounding does not grow by itself.

    Batch norm sees few values where pictures are small, and Adam's steps have their full size however small the gradient: with
    2 threads instead of 1, and nothing else, the losses of a refine run of 64 to 96 pixels at the usual rates differ by 1e-9
    after 25 steps and by 1e-2 after 41. Of larger pictures, at a tenth of the rates, they stay within 1e-13 for hundreds.
    """
    options: dict[str, Any] = {"precision": "fp64"} | QUIET
    if stage == "base":
        return options | {"resolution": 64, "crop": "48:64"}
    rates = {"lr_backbone": 5e-6, "lr_aspp": 5e-6, "lr_decoder": 1e-5, "lr_refiner": 3e-5}
    return options | rates | {"resolution": 192, "crop": "128:192", "refine_sample_pixels": 6400}


@pytest.mark.chaos
def test_a_killed_node_changes_no_bit(
    nodes: Nodes, boards_made: list[Blackboard], tmp_path: Path
) -> None:
    equal_to_the_bit(nodes, boards_made, tmp_path, "base", 1, ["node killed"])


@pytest.mark.chaos
@pytest.mark.timeout(5400)
@pytest.mark.parametrize(("seed", "count"), [(11, 30)])
@pytest.mark.parametrize("stage", ["base", "refine"])
def test_faults_of_every_kind_change_no_bit(
    nodes: Nodes, boards_made: list[Blackboard], tmp_path: Path, stage: Any, seed: int, count: int
) -> None:
    kinds = drawn_kinds(seed, count)
    torment = equal_to_the_bit(nodes, boards_made, tmp_path, stage, seed, kinds)
    assert_accounted(torment, 2)


@pytest.mark.chaos
@pytest.mark.timeout(5400)
@pytest.mark.parametrize(("seed", "count"), [(12, 30)])
@pytest.mark.parametrize("stage", ["base", "refine"])
def test_faults_that_resize_the_run_change_nothing_beyond_rounding(
    nodes: Nodes, boards_made: list[Blackboard], tmp_path: Path, stage: Any, seed: int, count: int
) -> None:
    config = tiny(stage, tmp_path, "disturbed", workers="1:3", steps=UNTIL_TOLD, **elastic(stage))
    torment = tormented(nodes, boards_made, config, seed, drawn_kinds(seed, count))
    assert_accounted(torment, 3)
    broken, last, _ = torment
    assert len({start["world"] for start in starts(broken)}) > 1
    fit(tiny(stage, tmp_path, "undisturbed", workers="1", steps=last, **elastic(stage)))
    assert_same_mathematics(broken, Store.open(config.storage, "undisturbed"), last)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_four_two_three_one_and_four_workers_take_the_steps_of_one(
    nodes: Nodes, boards_made: list[Blackboard], tmp_path: Path
) -> None:
    config = tiny("base", tmp_path, "resized", workers="1:4", steps=UNTIL_TOLD, **elastic("base"))
    nodes.add_together(4)
    with Disturbed(config, nodes, boards_made) as run:
        for world in (4, 2, 3, 1, 4):
            going = nodes.added[world:]
            for node in going:
                nodes.drain(node, 20.0)
            if len(nodes.added) < world:
                nodes.add_together(world - len(nodes.added))
            run.until(
                lambda n=world: (p := run.progress()) is not None and p.world == n,  # type: ignore[misc]
                f"{world} workers",
            )
            for node in going:
                nodes.kill(node)
        last = run.stop()
    attempts = {start["attempt"]: start["world"] for start in starts(run.store)}
    trained = [attempts[event["attempt"]] for event in run.events("first_step")]
    print(
        f"workers: {trained}, steps: {[e['step'] for e in run.events('first_step')]}, last {last}"
    )
    assert trained == [4, 2, 3, 1, 4]
    assert all(leave["committed"] == leave["step"] for leave in run.events("leave"))
    fit(tiny("base", tmp_path, "one", workers="1", steps=last, **elastic("base")))
    assert_same_mathematics(run.store, Store.open(config.storage, "one"), last)
