"""Cases of workers that are killed at a point of the real code, and what must hold after each kill and at the end."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event

from raymat.checkpoint.catalog import newest, scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.reader import read_checkpoint
from raymat.checkpoint.retention import RetentionPolicy, plan
from raymat.checkpoint.snapshot import Snapshot
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from raymat.train.observability.logger import MEASURED
from raymat.train.observability.metrics_log import read_metrics
from tests.support.injector import Journal, Kill
from tests.support.paths import ROOT

KEEP = 2
OPTIONS: dict[str, Any] = {
    "steps": 10, "valid_examples": 2, "resolution": 16, "crop": 16, "ema_decay": 0.9, "accumulate": 2,
    "clip_norm": 1.0, "weight_decay": 0.01,
}  # fmt: skip
"""A run of 5 saves and 2 validations: the retention has something to clear away from the 4th commit on. The average of the
weights is warmed up for 80 steps: every kill comes in the middle."""
STEPS = OPTIONS["steps"]
AGAIN = Kill("manifest/asked", 0, 2)
"""Leaves curves of steps that come again, behind a checkpoint to restore."""

UNSTEADY = ("events/", "prune", "commit/")
"""Points that are passed less often where several things that are due are done at once."""

Place = tuple[int, int, str]
"""A world size, a rank in it, and a point that it passes."""


@dataclass(frozen=True)
class Case:
    """A run whose attempts are killed one after another; the last one is left alone."""

    name: str
    world: int
    lag: int
    """As in run_to_kill.PacedFeed."""
    kills: tuple[Kill, ...]


@dataclass(frozen=True)
class Whole:
    """What a run is that nobody touched."""

    checkpoints: dict[int, Snapshot]
    rows: list[dict[str, Any]]
    board: dict[tuple[int, str], bytes]
    passed: dict[int, Counter[str]]
    """By rank."""
    passed_again: dict[int, Counter[str]]
    """By rank, of an attempt that goes on where another was killed."""


class Kitchen:
    """Makes small runs below one folder, or in a bucket, and has their journals in the folder."""

    def __init__(self, folder: Path, bucket: str = "", **options: Any) -> None:
        """`bucket`: an S3 URL; `options` are for opening it here, the workers read AWS's environment."""
        self.folder, self._url, self._options = folder, bucket or str(folder), options
        environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.run_to_kill"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def run(self, case: Case, kill: Kill | None, keep: int = KEEP) -> list[int | None]:
        """One attempt; how its workers ended, by rank."""
        order = {
            "storage": self._url,
            "name": case.name,
            "journal": str(self.journal(case).path),
            "options": OPTIONS | {"keep": keep},
            "world": case.world,
            "lag": case.lag,
            "kill": kill and dataclasses.asdict(kill),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        statuses: list[int | None] = json.loads(self._process.stdout.readline())
        return statuses

    def store(self, case: Case) -> Store:
        return Store.open(self._url, case.name, options=self._options)

    def journal(self, case: Case) -> Journal:
        return Journal(self.folder / f"{case.name}.journal")

    def said(self, case: Case) -> str:
        """What the workers printed: the errors of those that died with another."""
        return Path(f"{self.journal(case).path}.stderr").read_text(errors="replace")[-3000:]


@contextmanager
def kitchen_in_memory() -> Iterator[Kitchen]:
    """In memory where that is possible: the disk is no part of what a kill can spoil."""
    parent = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="rm", dir=parent) as folder:
        kitchen = Kitchen(Path(folder))
        try:
            yield kitchen
        finally:
            kitchen.stop()


def undisturbed(kitchen: Kitchen, world: int) -> Whole:
    """A run of `world` workers that keeps every checkpoint; and what workers pass, also when they resume."""
    case = Case(f"whole-{world}", world, 0, ())
    assert kitchen.run(case, None, keep=100) == [0] * world, kitchen.said(case)
    store = kitchen.store(case)
    passed = _passed(kitchen, Case(f"counted-{world}", world, 0, ()), [None])
    again = _passed(kitchen, Case(f"again-{world}", world, 0, ()), [AGAIN, None])
    found = {s.id.step: read_checkpoint(store, s.id) for s in scan(store)}
    assert sorted(found) == list(range(2, STEPS + 1, 2))
    return Whole(found, read_metrics(store), read_board(store), passed, again)


def _passed(kitchen: Kitchen, case: Case, kills: list[Kill | None]) -> dict[int, Counter[str]]:
    for kill in kills:
        statuses = kitchen.run(case, kill)
    assert statuses == [0] * case.world, kitchen.said(case)
    notes = kitchen.journal(case).read("passed")
    return {note["rank"]: Counter(note["counts"]) for note in notes}


def places(wholes: dict[int, Whole]) -> list[Place]:
    """Everywhere that a worker can be killed: what it passes in a run from its start, or only when it resumes."""
    return sorted(
        {
            (world, rank, point)
            for world, whole in wholes.items()
            for passed in (whole.passed, whole.passed_again)
            for rank, points in passed.items()
            for point in points
        }
    )


def draw(
    wholes: dict[int, Whole], chosen: Iterable[Place], draws: random.Random, name: str
) -> list[Case]:
    """A case for each place, whose first kill (after AGAIN, where only a resumed attempt gets there) is at that place.

    Every third one has more kills, at whatever place and at an early passing.
    """
    cases = []
    for number, (world, rank, point) in enumerate(chosen):
        whole, lingers = wholes[world], draws.choice((0.0, 0.0, 0.2))
        times = whole.passed[rank][point]
        if times:
            often = max(1, times // 3) if point.startswith(UNSTEADY) else times
            kills = [Kill(point, rank, draws.randint(1, often), lingers)]
        else:
            times = whole.passed_again[rank][point]
            kills = [AGAIN, Kill(point, rank, draws.randint(1, times), lingers)]
        for _ in range(draws.choice((0, 0, 0, 0, 1, 2))):
            other = draws.randrange(world)
            points = sorted(whole.passed_again[other])
            kills.append(Kill(draws.choice(points), other, draws.randint(1, 2)))
        cases.append(Case(f"{name}-{number:03d}", world, draws.randrange(2), tuple(kills)))
    return cases


@dataclass
class Tally:
    """What was done."""

    cases: int = 0
    killed: Counter[Place] = field(default_factory=Counter)

    def __str__(self) -> str:
        points: Counter[str] = Counter()
        for (_, _, point), times in self.killed.items():
            points[point] += times
        told = ", ".join(f"{point} {times}" for point, times in sorted(points.items()))
        return f"{self.cases} cases, {self.killed.total()} kills at {len(points)} points: {told}"


def serve(kitchen: Kitchen, wholes: dict[int, Whole], cases: Sequence[Case], tally: Tally) -> None:
    """Run each case and hold it against its undisturbed run; a case in which nobody died is not counted."""
    for case in cases:
        try:
            struck = run_case(kitchen, wholes[case.world], case)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}\n{kitchen.said(case)}") from error
        tally.killed.update((case.world, kill.rank, kill.point) for kill in struck)
        tally.cases += bool(struck)


def run_case(kitchen: Kitchen, whole: Whole, case: Case) -> list[Kill]:
    """The attempts of a case, checked; the kills that struck."""
    struck: list[Kill] = []
    expected: str | None = None
    for kill in (*case.kills, None):
        notes = len(kitchen.journal(case).read("restored"))
        statuses = kitchen.run(case, kill)
        for note in kitchen.journal(case).read("restored")[notes:]:
            assert note["checkpoint"] == expected, "resumed from another checkpoint than the newest"
        if statuses == [0] * case.world:
            break
        assert kill is not None, f"an attempt that nobody killed failed: {statuses}"
        assert statuses[kill.rank] == -9
        # The others end by themselves, some of them even well.
        assert None not in statuses, "a worker outlives its group"
        struck.append(kill)
        expected = check_storage(kitchen, whole, case)
    assert len(kitchen.journal(case).read("killed")) == len(struck)
    check_end(kitchen, whole, case)
    return struck


def check_storage(kitchen: Kitchen, whole: Whole, case: Case) -> str | None:
    """What a kill left: all that is committed is whole and right, and not older than what was told; the newest one."""
    store = kitchen.store(case)
    told = [CheckpointId.parse(n["checkpoint"]) for n in kitchen.journal(case).read("committed")]
    told += [
        CheckpointId.parse(e["checkpoint"]) for e in read_events(store) if e["kind"] == "commit"
    ]
    committed = [status.id for status in scan(store, manifests=100) if status.state == "committed"]
    for checkpoint in committed:
        snapshot = read_checkpoint(store, checkpoint, case.name)
        assert differences(snapshot, whole.checkpoints[checkpoint.step]) == []
    skipped: list[CheckpointId] = []
    found = newest(store, case.name, lambda checkpoint, _: skipped.append(checkpoint))
    assert not set(skipped) & set(committed)
    if found is None:
        assert told == committed == []
        return None
    assert found[0] == committed[0]
    assert found[0] >= max(told, default=found[0])
    check_curves(store, whole, found[0].step)
    return str(found[0])


def check_curves(store: Store, whole: Whole, step: int) -> None:
    """Up to `step` the rows and the board have everything, once."""
    assert rows_to(step, read_metrics(store)) == rows_to(step, whole.rows)
    board = {key: value for key, value in read_board(store).items() if key[0] <= step}
    assert board == {key: value for key, value in whole.board.items() if key[0] <= step}


def check_end(kitchen: Kitchen, whole: Whole, case: Case) -> None:
    """A run that was killed and is complete now: equal to the undisturbed one to the bit."""
    store = kitchen.store(case)
    statuses = scan(store, manifests=100)
    assert statuses[0].id.step == STEPS
    for status in statuses:
        if status.state == "committed":
            snapshot = read_checkpoint(store, status.id, case.name)
            assert differences(snapshot, whole.checkpoints[status.id.step]) == []
    check_curves(store, whole, STEPS)
    assert len(read_metrics(store)) == len(whole.rows)
    last = kitchen.journal(case).read("ended")[-1]
    assert last["step"] == STEPS
    if not last["already_complete"]:
        losses = {r["step"]: r["loss"] for r in whole.rows if r["kind"] == "valid" and r["step"]}
        metrics = {s.id: losses[s.id.step] for s in statuses if s.id.step in losses}
        policy = RetentionPolicy(keep=KEEP, best="min")
        due = plan(statuses, policy, attempt=last["attempt"], metrics=metrics).delete
        assert due == (), "the retention left something"


def differences(found: Snapshot, right: Snapshot) -> list[str]:
    """Names of what is not equal to the bit; a run's name, place and losses and what it keeps are no part of its state."""
    names = sorted(found.tensors.keys() ^ right.tensors.keys())
    names += [
        name
        for name, tensor in found.tensors.items()
        if name in right.tensors and not _equal(tensor, right.tensors[name])
    ]
    one, other = (_without_names(snapshot.extra) for snapshot in (found, right))
    return names + [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return one.numpy().tobytes() == other.numpy().tobytes()


def _without_names(extra: dict[str, Any]) -> dict[str, Any]:
    config = {k: v for k, v in extra["config"].items() if k not in ("name", "storage", "keep")}
    return {k: v for k, v in extra.items() if k != "attempts"} | {"config": config}


def rows_to(step: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows up to `step`, without what differs from one time to the next."""
    return [
        {k: v for k, v in row.items() if k not in MEASURED} for row in rows if row["step"] <= step
    ]


def read_board(store: Store) -> dict[tuple[int, str], bytes]:
    """Everything that TensorBoard would show, by step and tag; nothing may be there twice. Of what is MEASURED, only that it
    is there."""
    found: dict[tuple[int, str], bytes] = {}
    for file in store.list("tensorboard"):
        for record in _records(store.read(file.path)):
            event = Event.FromString(record)
            for value in event.summary.value:
                key = (event.step, value.tag)
                assert key not in found, f"{key} is on the board twice"
                measured = value.tag.startswith("speed/") or value.tag == "goodput"
                found[key] = b"" if measured else value.SerializeToString()
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """Those of a TFRecord file: each has its length (8 bytes) and a checksum (4) before it, and one after it."""
    start = 0
    while start < len(data):
        size = int.from_bytes(data[start : start + 8], "little")
        yield data[start + 12 : start + 12 + size]
        start += size + 16


def spread(all_places: Sequence[Place], count: int, draws: random.Random) -> list[Place]:
    """`count` places: of each group of points (what comes before the slash) in turn another one."""
    groups: dict[str, list[Place]] = {}
    for place in draws.sample(all_places, len(all_places)):
        groups.setdefault(place[2].partition("/")[0], []).append(place)
    turns = math.ceil(count / len(groups))
    mixed = [g[turn % len(g)] for turn in range(turns) for g in groups.values()]
    return mixed[:count]
