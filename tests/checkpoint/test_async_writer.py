from __future__ import annotations

import errno
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import Tensor

from raymat.checkpoint import catalog, reader, shards, snapshot
from raymat.checkpoint.async_writer import AsyncWriter
from raymat.checkpoint.catalog import newest, scan
from raymat.checkpoint.manifest import CheckpointId, Origin
from raymat.checkpoint.reader import read_checkpoint
from raymat.checkpoint.save_decision import Decision, Load, decide
from raymat.distributed.world import World
from raymat.errors import CheckpointError, StorageError
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store

QUICK = RetryPolicy(total=0.2, first=0.001, longest=0.01)
ONCE = RetryPolicy(total=0.0)
BEGIN, JOIN, SKIP, WAIT = Decision.BEGIN, Decision.JOIN, Decision.SKIP, Decision.WAIT


class FaultyFileSystem(MemoryFileSystem):
    """Memory that calls `before_write` with the path of each file: it may raise, or stall."""

    protocol = "faulty"
    before_write: Callable[[str], None] = staticmethod(lambda path: None)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("faulty://", "memory://")))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        type(self).before_write(path)
        super().pipe_file(path, value, mode, **more)


@pytest.fixture
def faulty() -> Iterator[type[FaultyFileSystem]]:
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    FaultyFileSystem.store.clear()
    yield FaultyFileSystem
    FaultyFileSystem.before_write = staticmethod(lambda path: None)
    FaultyFileSystem.store.clear()


@pytest.fixture
def storage(faulty: type[FaultyFileSystem]) -> Store:
    return Store.open("faulty://runs", "run", retry=ONCE)


class Gate:
    """Holds every write back until it is opened."""

    def __init__(self, faulty: type[FaultyFileSystem]) -> None:
        self.open = threading.Event()
        faulty.before_write = staticmethod(lambda path: self.open.wait(10) and None)


@pytest.fixture
def make_writer() -> Iterator[Callable[..., AsyncWriter]]:
    writers = []

    def make(store: Store, world: World | None = None, **more: Any) -> AsyncWriter:
        writers.append(
            AsyncWriter(store, world or World(), Origin("r", 1, "word"), **{"retry": QUICK, **more})
        )
        return writers[-1]

    yield make
    for writer in writers:
        writer.close(timeout=5)


def _state(step: int) -> dict[str, Tensor]:
    return {f"t{i}": torch.full((100 + i,), float(step)) for i in range(5)}


def _eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("load", "urgent", "decision"),
    [
        (Load(0), False, BEGIN),
        (Load(1, waiting=False), False, BEGIN),
        (Load(1, waiting=True), False, BEGIN),
        (Load(2, waiting=True), False, JOIN),
        (Load(2, waiting=True), True, JOIN),
        (Load(2, waiting=False), False, SKIP),
        (Load(2, waiting=False), True, WAIT),
        (Load(0), True, BEGIN),
    ],
)
def test_decisions_are_these(load: Load, urgent: bool, decision: Decision) -> None:
    assert decide(load, urgent=urgent) is decision


def test_agreement_is_the_busiest_rank_and_what_all_have_written() -> None:
    a, b, c = CheckpointId(10, 1), CheckpointId(20, 1), CheckpointId(30, 1)
    loads = [Load(1, True, frozenset([a, b]), 3.0), Load(2, False, frozenset([b, c]), 1.0), Load()]
    for order in itertools.permutations(loads[:2]):
        assert Load.agree(order) == Load(2, False, frozenset([b]), 3.0)
    assert Load.agree(loads).durable == frozenset()
    assert Load.agree(loads[:1]) == loads[0]


def test_a_save_returns_while_storage_stalls_and_holds_the_moments_state(
    storage: Store, faulty: Any, make_writer: Any
) -> None:
    gate, writer, state, extra = Gate(faulty), make_writer(storage), _state(7), {"losses": [0.5]}
    began = time.monotonic()
    assert writer.save(7, state, extra) is BEGIN
    assert time.monotonic() - began < 10
    for tensor in state.values():
        tensor.fill_(-1.0)
    extra["losses"].append(9.9)
    assert not writer.drain(timeout=0.02)
    assert newest(storage) is None
    gate.open.set()
    assert writer.drain(timeout=10)
    found = newest(storage, "r")
    assert found is not None
    assert found[0] == CheckpointId(7, 1)
    assert found[1].extra == {"losses": [0.5]}
    assert all(bool((t == 7.0).all()) for t in found[1].tensors.values())


def test_at_most_two_snapshots_are_alive_and_the_waiting_one_is_the_newest(
    storage: Store, faulty: Any, make_writer: Any
) -> None:
    gate, writer = Gate(faulty), make_writer(storage)
    assert writer.save(1, _state(1), {}) is BEGIN
    _eventually(lambda: not writer.load().waiting)
    assert [writer.save(step, _state(step), {}) for step in (2, 3, 4, 5)] == [
        BEGIN,
        JOIN,
        JOIN,
        JOIN,
    ]
    assert writer.load().alive == 2
    gate.open.set()
    assert writer.drain(timeout=10)
    assert [status.id.step for status in scan(storage)] == [5, 1]
    counts = writer.counts
    assert (counts.begun, counts.joined, counts.written, counts.skipped) == (2, 3, 2, 0)


def test_skipped_saves_are_counted_and_leave_nothing(storage: Store, make_writer: Any) -> None:
    writer = make_writer(storage)
    assert writer.save(1, _state(1), {}, SKIP) is SKIP
    assert writer.drain(timeout=1)
    assert (writer.counts.skipped, writer.counts.written) == (1, 0)
    assert scan(storage) == []


def test_waiting_takes_the_snapshot_as_soon_as_there_is_room(
    storage: Store, faulty: Any, make_writer: Any
) -> None:
    gate, writer = Gate(faulty), make_writer(storage)
    for step in (1, 2):
        writer.save(step, _state(step), {})
    with pytest.raises(StorageError, match="no room for a checkpoint after 0 s: faulty://runs/run"):
        writer.save(3, _state(3), {}, WAIT, timeout=0.01)
    threading.Timer(0.05, gate.open.set).start()
    assert writer.save(3, _state(3), {}, WAIT, timeout=10) is WAIT
    assert writer.drain(timeout=10)
    assert [status.id.step for status in scan(storage)] == [3, 2, 1]
    assert writer.counts.waited == 1


def test_commits_come_with_their_size_and_time(storage: Store, make_writer: Any) -> None:
    writer = make_writer(storage)
    writer.save(1, _state(1), {})
    assert writer.drain(timeout=10)
    (commit,) = writer.confirm(writer.load().durable)
    assert (commit.checkpoint, commit.bytes) == (
        CheckpointId(1, 1),
        4 * (100 + 101 + 102 + 103 + 104),
    )
    assert 0 < commit.seconds < 5
    assert writer.confirm([commit.checkpoint]) == []


def test_the_age_counts_from_the_first_save_that_is_not_committed(
    storage: Store, faulty: Any, make_writer: Any
) -> None:
    writer = make_writer(storage)
    assert writer.load().age == 0.0
    writer.save(1, _state(1), {})
    assert writer.drain(timeout=10)
    assert writer.load().age > 0.0
    gate = Gate(faulty)
    began = time.monotonic()
    writer.save(2, _state(2), {})
    assert [c.checkpoint.step for c in writer.confirm(writer.load().durable)] == [1]
    writer.save(3, _state(3), {}, SKIP)
    time.sleep(0.05)
    assert 0.05 <= writer.load().age <= time.monotonic() - began
    gate.open.set()
    assert writer.drain(timeout=10)
    writer.confirm(writer.load().durable)
    # Step 3 was due and left out: it is what storage owes now.
    assert 0.0 < writer.load().age < time.monotonic() - began
    writer.save(4, _state(4), {})
    assert writer.drain(timeout=10)
    writer.confirm(writer.load().durable)
    assert writer.load().age == 0.0


def test_what_lasts_may_be_changed_after_settling_and_the_rest_at_once(
    storage: Store, make_writer: Any
) -> None:
    writer = make_writer(storage)
    weights, statistics = torch.arange(2**20).float(), torch.arange(2**20).float()
    for step in (1, 2, 3):
        tensors = {"weights": weights, "statistics": statistics}
        before = weights.clone()
        writer.save(step, tensors, {}, lasting={"weights"})
        statistics += 1
        writer.wait_for_copy()
        weights += 1
        assert writer.drain(timeout=10)
        found = read_checkpoint(storage, CheckpointId(step, 1), "r").tensors
        assert torch.equal(found["weights"], before)
        assert torch.equal(found["statistics"], before)


def test_what_belongs_before_a_commit_is_written_first_and_tried_again_with_it(
    storage: Store, make_writer: Any
) -> None:
    calls: list[bool] = []

    def first() -> None:
        calls.append(bool(scan(storage)))
        if len(calls) < 3:
            raise StorageError("not yet")

    writer = make_writer(storage)
    writer.save(1, _state(1), {}, before_write=first)
    assert writer.drain(timeout=10)
    assert calls == [False, False, False]
    assert [s.state for s in scan(storage)] == ["committed"]


def test_a_write_that_fails_is_tried_again_and_told(
    storage: Store, faulty: Any, make_writer: Any
) -> None:
    failures: list[tuple[int, str, bool]] = []
    left = iter([1, 1, 1])

    def fail_thrice(path: str) -> None:
        if next(left, 0):
            raise ConnectionResetError("reset")

    faulty.before_write = staticmethod(fail_thrice)
    on_failure = lambda c, e, final: failures.append((c.step, e.line, final))  # noqa: E731
    writer = make_writer(storage, on_failure=on_failure)
    writer.save(1, _state(1), {})
    assert writer.drain(timeout=10)
    assert [(step, final) for step, _, final in failures] == [(1, False)] * 3
    assert "does not answer" in failures[0][1]
    assert newest(storage, "r")[0].step == 1  # type: ignore[index]


def test_storage_that_stays_away_ends_nothing_until_the_age_is_too_great(
    storage: Store, faulty: Any, make_writer: Any
) -> None:
    def full(path: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    finals: list[int] = []
    on_failure = lambda c, e, final: finals.append(c.step) if final else None  # noqa: E731
    writer = make_writer(storage, on_failure=on_failure)
    writer.require_fresh(1.0)
    faulty.before_write = staticmethod(full)
    for step in (1, 2):
        writer.save(step, _state(step), {})
    assert not writer.drain(timeout=10)
    assert finals == [1, 2]
    assert writer.counts.given_up == 2
    time.sleep(max(0.0, 1.01 - writer.load().age))
    with pytest.raises(StorageError, match=r"no checkpoint could be committed to faulty://runs/run for .*"
                       r"--max-checkpoint-age; the last error: cannot write .* no space left"):  # fmt: skip
        writer.require_fresh(1.0)
    writer.require_fresh(1.0, age=0.1)
    faulty.before_write = staticmethod(lambda path: None)
    writer.save(3, _state(3), {})
    assert writer.drain(timeout=10)
    writer.confirm(writer.load().durable)
    writer.require_fresh(1.0)
    assert newest(storage, "r")[0].step == 3  # type: ignore[index]


def test_a_failing_snapshot_gives_way_to_a_newer_one(
    storage: Store, faulty: Any, make_writer: Any
) -> None:
    def refuse_the_first(path: str) -> None:
        if "step-000000001" in path:
            raise PermissionError("no")

    faulty.before_write = staticmethod(refuse_the_first)
    writer = make_writer(storage, retry=RetryPolicy(total=60, first=0.001, longest=0.01))
    writer.save(1, _state(1), {})
    time.sleep(0.05)
    writer.save(2, _state(2), {})
    assert writer.drain(timeout=10)
    assert [s.id.step for s in scan(storage) if s.state == "committed"] == [2]


def test_memory_is_two_buffers_however_many_saves(storage: Store, make_writer: Any) -> None:
    writer = make_writer(storage)
    places = set()
    for step in range(30):
        writer.save(step, _state(step), {})
        with writer._queue.changed:
            places |= {job.share["t0"].data_ptr() for job in writer._queue.jobs}
    assert writer.drain(timeout=10)
    assert 1 <= len(places) <= 2


def test_a_state_that_cannot_be_stored_costs_no_room(storage: Store, make_writer: Any) -> None:
    writer = make_writer(storage)
    for _ in range(3):
        with pytest.raises(TypeError, match="cannot be stored"):
            writer.save(1, {"x": torch.ones(1, dtype=torch.complex64)}, {})
        with pytest.raises(TypeError, match="only JSON's types"):
            writer.save(1, {}, {"x": object()})
    writer.save(2, _state(2), {})
    assert writer.drain(timeout=10)


def test_closing_gives_up_what_is_under_way(storage: Store, faulty: Any, make_writer: Any) -> None:
    gate, writer = Gate(faulty), make_writer(storage)
    for step in (1, 2):
        writer.save(step, _state(step), {})
    writer.close(timeout=0.01)
    gate.open.set()
    writer.close(timeout=10)
    assert not writer._thread.is_alive()
    assert len(scan(storage)) <= 1
    with pytest.raises(RuntimeError, match="has ended"):
        writer.save(3, _state(3), {})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_in_the_program_is_not_swallowed(storage: Store, make_writer: Any) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError

    writer = make_writer(storage)
    writer.save(1, _state(1), {}, before_write=broken)
    with pytest.raises(RuntimeError, match="has ended"):
        writer.drain(timeout=10)
    with pytest.raises(RuntimeError, match="has ended"):
        writer.save(2, _state(2), {}, BEGIN)


@pytest.mark.parametrize("seed", range(4))
def test_ranks_of_different_speed_decide_alike_and_lose_no_announced_commit(
    storage: Store, faulty: Any, make_writer: Any, seed: int
) -> None:
    """Three ranks, one of them slow, every tenth write refused, a save due at every step of a fast
    loop."""
    draws, lock = random.Random(seed), threading.Lock()

    def slow_and_faulty(path: str) -> None:
        with lock:
            refused, nap = draws.random() < 0.1, draws.uniform(0, 0.002)
        time.sleep(nap + 0.005 * ("-00002-of-" in path))
        if refused:
            raise ConnectionResetError("reset")

    faulty.before_write = staticmethod(slow_and_faulty)
    patient = RetryPolicy(total=10.0, first=0.001, longest=0.01)
    writers = [make_writer(storage, World(rank, 3), retry=patient) for rank in range(3)]
    announced: list[CheckpointId] = []
    taken: set[int] = set()
    for step in range(1, 81):
        load = Load.agree(writer.load() for writer in writers)
        new = [[c.checkpoint for c in writer.confirm(load.durable)] for writer in writers]
        assert new[0] == new[1] == new[2]
        announced += new[0]
        decision = decide(load, urgent=step == 80)
        done = {writer.save(step, _state(step), {"step": step}, decision) for writer in writers}
        assert (SKIP in done) == (done == {SKIP})
        taken |= {step} if SKIP not in done else set()
        time.sleep(0.001)
    assert all(writer.drain(timeout=10) for writer in writers)
    load = Load.agree(writer.load() for writer in writers)
    announced += [commit.checkpoint for commit in writers[0].confirm(load.durable)]
    assert announced == sorted(set(announced))
    assert {checkpoint.step for checkpoint in announced} <= taken
    assert announced[-1].step == 80
    assert len(announced) >= 5
    for checkpoint in announced:
        snapshot = read_checkpoint(storage, checkpoint, "r")
        assert snapshot.extra == {"step": checkpoint.step}
        assert all(bool((t == checkpoint.step).all()) for t in snapshot.tensors.values())
    assert writers[0].counts.skipped + writers[0].counts.joined > 0


def test_a_state_that_could_not_be_read_back_is_refused_before_anything_of_it_is_written(
    memory: Store, make_state: Callable[[int], dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "MAX_STATE_BYTES", 100_000)
    writer = AsyncWriter(memory, World(), Origin("id", 1, ""))
    grown = {"step": 7, "validations": [{"step": n, "loss": 0.5} for n in range(4_000)]}
    with pytest.raises(CheckpointError) as refused:
        writer.save(7, make_state(7), grown)
    assert refused.value.line == (
        "the state beside the tensors has grown to 98916 bytes, 98907 of them 'validations', more than the 95904 that "
        "can be read back: it is not saved"
    )
    monkeypatch.setattr(shards, "MAX_BYTES", shards.MAX_STATE_BYTES + 100)
    with pytest.raises(CheckpointError, match="bytes of tensors, more than the"):
        writer.save(7, make_state(7), {})
    assert memory.list() == []
    monkeypatch.undo()
    writer.save(8, make_state(8), grown)  # its buffers are free again
    assert writer.drain(10)
    assert read_checkpoint(memory, CheckpointId(8, 1)).extra == grown
    writer.close()


def test_the_largest_state_that_is_written_is_read_back(
    memory: Store, make_state: Callable[[int], dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (snapshot, reader, catalog):
        monkeypatch.setattr(module, "MAX_STATE_BYTES", 100_000)
    writer = AsyncWriter(memory, World(), Origin("id", 1, ""))
    extra = {"text": "x" * (100_000 - 4096 - len('{"text":""}'))}
    with pytest.raises(CheckpointError):
        writer.save(1, make_state(1), {"text": extra["text"] + "x"})
    writer.save(10**9, make_state(1), extra)
    assert writer.drain(10)
    found = newest(memory, "id")
    assert found is not None
    assert found[1].extra == extra
    writer.close()
