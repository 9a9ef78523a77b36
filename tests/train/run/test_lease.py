"""The lease: one driver of a run at a time, whoever dies, sleeps or is slow, without locks."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raymat.checkpoint.catalog import scan
from raymat.errors import LeaseError, LeaseLostError
from raymat.storage.store import Store
from raymat.train.observability.events import highest_attempt
from raymat.train.run.lease import entries as lease_entries
from raymat.train.run.lease import process
from raymat.train.run.lease.entries import (
    FOLDER,
    Entry,
    Pace,
    list_entries,
    read_entries,
    term_of,
)
from raymat.train.run.lease.lease import Lease
from raymat.train.run.lease.lease_watch import LeaseWatch, require_holder
from raymat.train.run.lease.process import Owner
from raymat.train.run.notice import LeavingError, Notice
from tests.support.paths import ROOT, SUPPORT
from tests.support.s3 import S3Server

QUICK = Pace(renew=0.1, ttl=30.0, look=0.02, watch=0.1)
"""For runs in which nobody dies: a machine that stalls for seconds must not make anybody look dead."""
ELSEWHERE = dataclasses.replace(Owner.me(), machine=None)
"""This process, but as nobody can look up whether it lives."""


def no_line(line: str) -> None:
    raise AssertionError(f"said {line!r}")


class Backend:
    """A store's backend with something `before` each call: told its kind and the data, from whatever thread."""

    def __init__(self, backend: Any, before: Callable[[str, bytes], None]) -> None:
        self._backend, self._before = backend, before

    def read(self, path: str) -> bytes:
        self._before("read", b"")
        return self._backend.read(path)

    def write(self, path: str, chunks: Sequence[bytes]) -> None:
        self._before("write", b"".join(chunks))
        self._backend.write(path, chunks)
        self._before("written", b"".join(chunks))

    def list(self, folder: str) -> Iterator[Any]:
        self._before("list", b"")
        found = list(self._backend.list(folder))
        self._before("listed", folder.encode())
        return iter(found)

    def delete(self, paths: Sequence[str]) -> None:
        self._before("delete", b"")
        self._backend.delete(paths)


class Wrapped(Store):
    """A store whose copies keep the backend that was put below it."""

    def __copy__(self) -> Wrapped:
        found = object.__new__(Wrapped)
        found.__dict__ |= self.__dict__
        return found


def wrapped(store: Store, before: Callable[[str, bytes], None]) -> Store:
    found = object.__new__(Wrapped)
    found.__dict__ |= store.__dict__
    found.backend = Backend(store.backend, before)
    return found


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        return server.store(f"lease-{uuid.uuid4().hex[:8]}")
    return Store.open(
        str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}", "run"
    )


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path), "run")


def entries(store: Store) -> list[Entry]:
    return [seen.entry for seen in read_entries(store, list_entries(store))]


def jitter(seed: int, seconds: float) -> Callable[[str, bytes], None]:
    """Each call waits a random time, before and after it has its effect."""
    generator = random.Random(seed)
    return lambda kind, data: time.sleep(generator.uniform(0, seconds))


# Contending.


@pytest.mark.parametrize(
    ("store", "seed"),
    [*itertools.product(["local", "memory"], range(4)), ("s3", 0)],
    indirect=["store"],
)
def test_of_contenders_at_once_exactly_one_holds_and_the_others_are_refused(
    store: Store, seed: int
) -> None:
    count = 6
    gate = threading.Barrier(count)
    refused = threading.Semaphore(0)
    lines: list[str] = []

    def contend(number: int) -> str | None:
        mine = wrapped(store, jitter(100 * seed + number, 0.04))
        gate.wait()
        try:
            lease = Lease.acquire(mine, pace=QUICK, say=lambda line: None)
        except LeaseError as error:
            lines.append(error.line)
            refused.release()
            return None
        for _ in range(count - 1):
            assert refused.acquire(timeout=30), "a second one holds"
        lease.release()
        return lease.name

    with ThreadPoolExecutor(count) as pool:
        names = [name for name in pool.map(contend, range(count)) if name is not None]
    assert len(names) == 1
    assert all(f"is being trained by pid {os.getpid()} of " in line for line in lines)
    assert [(entry.name, entry.state) for entry in entries(store)] == [(names[0], "released")]


def test_holdings_never_overlap_and_each_has_a_larger_term_than_the_one_before(
    store: Store,
) -> None:
    held: list[str] = []
    now: list[str] = []

    def hold_once(number: int) -> None:
        mine = wrapped(store, jitter(number, 0.03))
        while True:
            try:
                lease = Lease.acquire(mine, pace=QUICK, say=lambda line: None)
            except LeaseError:
                continue
            now.append(lease.name)
            assert now == [lease.name]
            time.sleep(0.15)
            held.append(now.pop())
            lease.release()
            return

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(hold_once, range(5)))
    assert len(held) == 5
    terms = [term_of(name) for name in held]
    assert terms == sorted(set(terms))


@pytest.mark.parametrize(
    ("early", "late", "numbers"), [("1" * 8, "2" * 8, [1, 1]), ("2" * 8, "1" * 8, [1, 2])]
)
def test_who_applies_while_another_holds_and_releases_succeeds_it_only_with_a_larger_term(
    local: Store, monkeypatch: pytest.MonkeyPatch, early: str, late: str, numbers: list[int]
) -> None:
    """Both saw nobody and took the same number: the words after it decide whether the later one must start over."""
    words = (SimpleNamespace(hex=word) for word in (early, late, "f" * 8))
    looked, holds, applied, released = (threading.Event() for _ in range(4))

    def wait_after_listing(kind: str, data: bytes) -> None:
        if data.endswith(b"/run"):
            return
        if kind == "listed" and not looked.is_set():
            looked.set()  # and saw nobody
            assert holds.wait(20)
        elif kind == "listed" and not applied.is_set():
            applied.set()  # and saw the holder
            assert released.wait(20)

    monkeypatch.setattr(lease_entries, "uuid", SimpleNamespace(uuid4=lambda: next(words)))
    store = wrapped(local, wait_after_listing)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(Lease.acquire, store, pace=QUICK, say=lambda line: None)
        assert looked.wait(20)
        with Lease.acquire(local, pace=QUICK, say=no_line) as first:
            holds.set()
            assert applied.wait(20)
        released.set()
        second = waiting.result(20)
        second.release()
    assert [term_of(lease.name)[0] for lease in (first, second)] == numbers
    assert term_of(second.name) > term_of(first.name)


@pytest.mark.parametrize("attempt", range(4))  # of two names drawn at random either may be smaller
def test_who_comes_between_a_candidates_listing_and_its_promotion_waits_for_it(
    local: Store, attempt: int
) -> None:
    looked, promoting = threading.Event(), threading.Event()

    def wait_to_promote(kind: str, data: bytes) -> None:
        if kind == "write" and b'"holder"' in data and not promoting.is_set():
            promoting.set()
            time.sleep(0.5)

    def wait_after_looking(kind: str, data: bytes) -> None:
        if data.endswith(b"/run"):
            return
        if kind == "listed" and not looked.is_set():
            looked.set()  # and saw nobody
            assert promoting.wait(20)

    def late() -> Lease:
        store = wrapped(local, wait_after_looking)
        return Lease.acquire(store, pace=QUICK, say=lambda line: None)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(late)
        assert looked.wait(20)
        with Lease.acquire(wrapped(local, wait_to_promote), pace=QUICK, say=no_line) as lease:
            with pytest.raises(LeaseError, match="is being trained by"):
                waiting.result(20)
            assert lease.lost is None


def test_a_candidate_whose_promotion_was_delayed_beyond_the_time_to_live_starts_over(
    local: Store,
) -> None:
    pace = Pace(renew=0.1, ttl=1.5, look=0.02, watch=0.1)
    late, other_holds = threading.Event(), threading.Event()

    def delay(kind: str, data: bytes) -> None:
        if kind == "write" and b'"holder"' in data and not late.is_set():
            late.set()
            assert other_holds.wait(20)

    def slow() -> str:
        store = wrapped(local, delay)
        lease = Lease.acquire(store, pace=pace, owner=ELSEWHERE, say=lambda line: None)
        lease.release()
        return lease.name

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(slow)
        assert late.wait(20)
        quick = Lease.acquire(local, pace=pace, say=lambda line: None)
        other_holds.set()
        with pytest.raises(LeaseError, match="is being trained by"):
            waiting.result(30)
        assert quick.lost is None
        quick.release()
    assert [entry.name for entry in entries(local)] == [quick.name]


# Refused, or replaced.


def test_a_live_holder_is_not_replaced_and_the_line_says_who_it_is_and_what_to_do(
    store: Store,
) -> None:
    said: list[str] = []
    holds = threading.Event()

    def renew_once_told(kind: str, data: bytes) -> None:
        """Who sees the holder renew between its first two looks is refused at once, without that line."""
        if kind == "write" and holds.is_set():
            wait_until(lambda: bool(said))

    pace = dataclasses.replace(QUICK, renew=0.5)
    with (
        Lease.acquire(wrapped(store, renew_once_told), pace=pace, say=no_line, owner=ELSEWHERE),
        pytest.raises(LeaseError) as refused,
    ):
        holds.set()
        Lease.acquire(store, pace=QUICK, say=said.append)
    who = rf"pid {os.getpid()} of \S+ on host \S+"
    assert re.fullmatch(
        rf"{re.escape(store.url)} is being trained by {who}, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC: "
        "wait until it ends, stop it, or say --take-over",
        refused.value.line,
    )
    (line,) = said
    assert re.fullmatch(
        rf"the run is held by {who}(, renewed \d s ago)?; waiting up to 30 s to see whether it still lives",
        line,
    )


def test_after_a_release_the_next_one_holds_at_once(store: Store) -> None:
    began = time.monotonic()
    for number in range(1, 4):
        with Lease.acquire(store, say=no_line) as lease:  # at the usual pace
            assert term_of(lease.name)[0] == number
            assert [entry.name for entry in entries(store)] == [lease.name]
            assert lease.heard is None
    assert time.monotonic() - began < 5


@dataclass
class Holder:
    """`lease_holder.py` as a process."""

    process: subprocess.Popen[str]
    name: str

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def line(self) -> str:
        """What it says next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def holder(store: Store, machine: str, ttl: float) -> Iterator[Holder]:
    command = [sys.executable, str(SUPPORT / "lease_holder.py")]
    command += [store.url.removeprefix("file://").removesuffix("/run"), machine, str(ttl)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        found = Holder(process, "")
        held, _, found.name = found.line().partition(" ")
        assert held == "held"
        yield found
    finally:
        process.kill()
        process.communicate()


def test_a_holder_that_was_killed_on_this_machine_is_replaced_at_once(local: Store) -> None:
    with holder(local, "here", 30.0) as dead:
        dead.signal(signal.SIGKILL)
        # Its parent, this process, does not ask for its exit code: it is a zombie then.
        os.waitid(os.P_PID, dead.process.pid, os.WEXITED | os.WNOWAIT)
        (left,) = local.list("lease")
        began = time.monotonic()
        with Lease.acquire(local, pace=Pace(watch=0.5), say=no_line) as lease:
            assert time.monotonic() - began < 5
            assert lease.heard == left.modified
            lease.wait_until_alone()  # Ray may take seconds to end a dead driver's workers
            assert time.monotonic() - began >= 1
            assert term_of(lease.name) > term_of(dead.name)
            assert [entry.name for entry in entries(local)] == [lease.name]


def test_a_holder_elsewhere_is_replaced_when_it_was_silent_for_the_time_to_live_and_not_before(
    local: Store,
) -> None:
    pace = Pace(renew=0.1, ttl=1.5, look=0.05, watch=0.2)
    said: list[str] = []
    with holder(local, "elsewhere", 1.5) as dead:
        dead.signal(signal.SIGKILL)
        began = time.monotonic()
        with Lease.acquire(local, pace=pace, say=said.append) as lease:
            lease.wait_until_alone()  # two looks of its rank 0, which may still train
            assert 1.5 + 2 * 0.2 <= time.monotonic() - began < 15
            assert [entry.name for entry in entries(local)] == [lease.name]
    assert len(said) == 1
    assert f"held by pid {dead.process.pid} of" in said[0]


@pytest.mark.parametrize("alive", [True, False])
def test_an_object_that_is_old_by_the_storages_clock_is_watched_like_any_other(
    local: Store, alive: bool
) -> None:
    """The storage's servers may have clocks that differ by an hour."""
    pace = Pace(renew=0.1, ttl=30.0 if alive else 1.0, look=0.02, watch=0.1)

    def set_back(kind: str, data: bytes) -> None:
        if kind == "written":
            path = f"{FOLDER}/{json.loads(data)['name']}.json"
            hour_ago = time.time() - 3600
            os.utime(Path(local.url.removeprefix("file://")) / path, (hour_ago, hour_ago))

    old = Lease.acquire(wrapped(local, set_back), pace=pace, owner=ELSEWHERE, say=no_line)
    if alive:
        with old, pytest.raises(LeaseError, match="is being trained by"):
            Lease.acquire(local, pace=pace, say=lambda line: None)
        return
    old._ended.set()  # and never released
    old._thread.join()
    said: list[str] = []
    began = time.monotonic()
    with Lease.acquire(local, pace=pace, say=said.append):
        assert time.monotonic() - began >= 1.0
    assert re.search(r", renewed 3[56]\d\d s ago; waiting up to 1 s", said[0])


def test_in_a_bucket_too_the_dead_are_replaced_and_the_living_leave_when_asked(
    s3_server: S3Server,
) -> None:
    store = s3_server.store(f"lease-{uuid.uuid4().hex[:8]}")
    pace = Pace(renew=0.1, ttl=5.0, look=0.05, watch=0.1)  # a busy machine stands still for seconds
    silent = Lease.acquire(store, pace=pace, say=no_line, owner=ELSEWHERE)
    silent._ended.set()
    said: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        with Lease.acquire(store, pace=pace, say=said.append) as lease:
            assert re.search(r", renewed \d s ago; waiting up to 5 s", said[0])
            told = threading.Event()
            with lease.calling(lambda notice: told.set()):
                next_one = pool.submit(
                    Lease.acquire, store, pace=pace, take_over=True, say=said.append
                )
                assert told.wait(20)
            assert not next_one.done()
        next_one.result(20).release()
    assert [entry.name for entry in entries(store)] == [next_one.result().name]


def test_a_holder_that_is_taken_over_leaves_first(local: Store) -> None:
    said: list[str] = []
    with holder(local, "elsewhere", 3.0) as old:
        began = time.monotonic()
        with Lease.acquire(local, pace=QUICK, take_over=True, say=said.append) as lease:
            took = time.monotonic() - began
            assert old.line().startswith(f"asked pid {os.getpid()} of ")
            assert old.line() == "lost committed"
            assert took >= 0.5  # what the last commit takes
            assert [entry.name for entry in entries(local)] == [lease.name]
    (line,) = said
    assert re.fullmatch(
        rf"asked pid {old.process.pid} of \S+ on host \S+ to leave the run; waiting for its last commit",
        line,
    )


def test_holdings_that_are_taken_over_never_overlap(store: Store) -> None:
    now: list[str] = []
    count = 5

    def take(number: int) -> str | None:
        mine = wrapped(store, jitter(number, 0.02))
        asked = threading.Event()
        try:
            with Lease.acquire(mine, pace=QUICK, take_over=True, say=lambda line: None) as lease:
                now.append(lease.name)
                assert now == [lease.name]
                with lease.calling(lambda notice: asked.set()):
                    asked.wait(1.0)
                time.sleep(0.1)
                now.remove(lease.name)
                if asked.is_set():
                    raise LeavingError("left", final=True)
                return "ended"
        except LeaseLostError:
            return "left"
        except LeaseError:
            return "refused"

    def later(number: int) -> str | None:
        time.sleep(0.3 * number)
        return take(number)

    with ThreadPoolExecutor(count) as pool:
        outcomes = list(pool.map(later, range(count)))
    assert "ended" in outcomes
    assert "left" in outcomes


def test_a_holder_that_does_not_leave_when_asked_is_named(local: Store) -> None:
    with Lease.acquire(local, pace=QUICK, say=no_line):
        impatient = dataclasses.replace(QUICK, patience=0.3)
        with pytest.raises(LeaseError, match=r"was asked \d+ s ago to leave .*: stop it"):
            Lease.acquire(local, pace=impatient, take_over=True, say=lambda line: None)
    assert len(entries(local)) == 1


# Objects of other versions.

FOREIGN_NAME = "000007-0123abcd"
FOREIGN = {
    "newer": b'{"format": 2, "holder": "somebody", "count": %d}',
    "damaged": b'{"name": "000007-0123abcd", "sta %d',
    "no entry": b'{"count": %d}',
    "of a state that is unknown": b'{"state": "paused", "owner": {"host": "h", "pid": 1, "user": "u"}, "n": %d}',
}
WHO = {"newer": "a newer raymat"}
"""What the lines call it; of all others they name the object."""


@contextmanager
def foreign(store: Store, data: Callable[[int], bytes], seconds: float) -> Iterator[None]:
    """Write a foreign object once, and then again every so many seconds."""
    ended = threading.Event()
    path = f"{FOLDER}/{FOREIGN_NAME}.json"

    def renew() -> None:
        for number in itertools.count(1):
            if ended.wait(seconds):
                return
            store.write(path, data(number))

    store.write(path, data(0))
    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(renew)
        try:
            yield
        finally:
            ended.set()
            renewing.result(20)


@pytest.mark.parametrize("take_over", [False, True])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_driver_whose_object_cannot_be_read_is_refused_to_while_it_renews_it(
    local: Store, kind: str, take_over: bool
) -> None:
    with foreign(local, lambda number: FOREIGN[kind] % number, 0.1):
        with pytest.raises(LeaseError) as refused:
            Lease.acquire(local, pace=QUICK, take_over=take_over, say=lambda line: None)
        assert [entry.name for entry in entries(local)] == [FOREIGN_NAME]
    assert refused.value.line.startswith(f"{local.url} is being trained by {who_wrote(kind)}: wait")


def test_an_object_that_is_written_again_with_the_same_bytes_is_a_living_drivers(
    local: Store,
) -> None:
    with (
        foreign(local, lambda number: b"?", 0.1),
        pytest.raises(LeaseError, match="is being trained by"),
    ):
        Lease.acquire(local, pace=QUICK, say=lambda line: None)


@pytest.mark.parametrize("kind", FOREIGN)
def test_an_object_that_cannot_be_read_is_a_dead_drivers_when_it_stood_still_for_the_time_to_live(
    store: Store, kind: str
) -> None:
    pace = Pace(renew=0.1, ttl=1.0, look=0.02, watch=0.3)
    said: list[str] = []
    with foreign(store, lambda number: FOREIGN[kind] % number, 600.0):
        began = time.monotonic()
        with Lease.acquire(store, pace=pace, say=said.append) as lease:
            lease.wait_until_alone()  # its workers may still train
            assert time.monotonic() - began >= 1.0 + 2 * 0.3
            assert term_of(lease.name) > term_of(FOREIGN_NAME)
            assert [entry.name for entry in entries(store)] == [lease.name]
    assert said[0].startswith(f"the run is held by {who_wrote(kind)}")


def who_wrote(kind: str) -> str:
    path = f"{FOLDER}/{FOREIGN_NAME}.json"
    return WHO.get(kind, f"a driver whose object {path} this raymat cannot read")


def test_a_holder_leaves_alone_what_it_cannot_read(local: Store) -> None:
    """It may be a candidate's, before or behind this one; a successor would have removed the holder's object."""
    with Lease.acquire(local, pace=QUICK, say=no_line) as lease:
        names = [f"{number:06d}-0123abcd" for number in (0, 9)]
        for name in names:
            local.write(f"{FOLDER}/{name}.json", FOREIGN["newer"] % 0)
        before = entries_of(local, lease.name).renewals
        wait_until(lambda: entries_of(local, lease.name).renewals > before + 2)
        assert lease.lost is None
        assert {entry.name for entry in entries(local)} == {lease.name, *names}


def entries_of(store: Store, name: str) -> Entry:
    (found,) = (entry for entry in entries(store) if entry.name == name)
    return found


def test_fields_that_are_not_known_are_ignored_and_ones_that_are_absent_unknown(
    local: Store,
) -> None:
    owner = b'{"host": "h", "pid": 7, "user": "u", "shoe": 43}'
    data = b'{"state": "holder", "since": 5.0, "format": 1, "mood": "good", "owner": %b}' % owner
    assert Entry.decode(FOREIGN_NAME, data) == Entry(
        FOREIGN_NAME, "holder", Owner("h", 7, "u", machine=None, started=None), 5.0
    )
    mine = Entry(FOREIGN_NAME, "candidate", Owner.me(), 5.0, renewals=3, replaces="x")
    assert Entry.decode(FOREIGN_NAME, mine.encode()) == mine
    assert json.loads(mine.encode()).keys() == {
        *("name", "state", "owner", "since", "renewals", "replaces")
    }  # drivers before the format number read nothing else


# Losing it.


def test_a_suspended_holder_and_its_workers_find_out_that_another_has_the_run(
    local: Store,
) -> None:
    pace = Pace(renew=0.1, ttl=1.0, look=0.05, watch=0.2)
    with holder(local, "elsewhere", 1.0) as sleeper:
        watch = LeaseWatch(local, sleeper.name, pace)
        require_holder(local, sleeper.name)
        sleeper.signal(signal.SIGSTOP)
        with Lease.acquire(local, pace=pace, say=lambda line: None) as lease:
            lease.wait_until_alone()
            # When the newcomer begins, the workers of the one that sleeps know it already.
            with pytest.raises(LeaseLostError, match=f"pid {os.getpid()} of .* drives it"):
                watch.raise_if_lost()
            with pytest.raises(LeaseLostError):
                require_holder(local, sleeper.name)
            sleeper.signal(signal.SIGCONT)
            lost = sleeper.line()
            assert lost.startswith(f"lost this driver has lost the lease on {local.url}: ")
            assert f"pid {os.getpid()} of " in lost
            time.sleep(0.5)
            assert lease.lost is None
            assert [entry.name for entry in entries(local)] == [lease.name]
        watch.stop()


class Cut:
    """A network that can be cut."""

    def __init__(self) -> None:
        self.is_cut = False

    def __call__(self, kind: str, data: bytes) -> None:
        if self.is_cut:
            raise ConnectionError("cut")


def wait_until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_holder_that_cannot_reach_the_storage_says_so_once_and_goes_on(local: Store) -> None:
    pace = Pace(renew=0.05, ttl=0.3, look=0.02)
    cut, said = Cut(), []
    lease = Lease.acquire(wrapped(local, cut), pace=pace, say=said.append)
    cut.is_cut = True
    wait_until(lambda: bool(said))
    time.sleep(0.3)
    assert len(said) == 1
    assert re.match(
        r"the lease on the run could not be renewed for \d s, .*training goes on", said[0]
    )
    assert lease.lost is None
    before = entries(local)[0].renewals
    cut.is_cut = False
    wait_until(lambda: entries(local)[0].renewals > before)
    assert lease.lost is None
    lease.release()


class Fault:
    """A fault of the program's, for a while: no error of storage."""

    def __init__(self) -> None:
        self.is_there = True
        self.count = 0

    def __call__(self, *args: Any) -> None:
        if self.is_there:
            self.count += 1
            raise KeyError("nobody expects it")


def test_a_holder_outlives_a_fault_that_nobody_expects_and_says_so_as_of_storage_that_fails(
    local: Store, caplog: pytest.LogCaptureFixture
) -> None:
    pace = Pace(renew=0.05, ttl=0.3, look=0.02)
    fault, said = Fault(), []

    def say(line: str) -> None:
        said.append(line)
        raise BrokenPipeError("nobody reads this")

    with Lease.acquire(local, pace=pace, say=say) as lease:
        before = lease._renewal.own.write
        lease._renewal.own.write = lambda **changes: (fault(), before(**changes))[1]
        wait_until(lambda: bool(said) and fault.count > 5)
        time.sleep(0.3)
        (line,) = said
        assert re.fullmatch(
            r"the lease on the run could not be renewed for \d s, .*training goes on: KeyError: .*",
            line,
        )
        renewals = entries(local)[0].renewals
        fault.is_there = False
        wait_until(lambda: entries(local)[0].renewals > renewals)
        assert lease.lost is None
    tracebacks = [record.exc_info for record in caplog.records if record.exc_info]
    assert {info[0] for info in tracebacks} == {KeyError, BrokenPipeError}


def test_a_notice_whose_receiver_fails_is_given_again_and_the_lease_is_renewed_meanwhile(
    local: Store,
) -> None:
    fault = Fault()
    with ThreadPoolExecutor(1) as pool:
        with Lease.acquire(local, pace=QUICK, say=no_line) as old, old.calling(fault):
            new = pool.submit(
                Lease.acquire, local, pace=QUICK, take_over=True, say=lambda line: None
            )
            wait_until(lambda: fault.count > 2)
            renewals = entries_of(local, old.name).renewals
            wait_until(lambda: entries_of(local, old.name).renewals > renewals)
        new.result(20).release()


def test_the_workers_look_outlives_a_fault_that_nobody_expects(local: Store) -> None:
    fault = Fault()
    store = wrapped(local, lambda kind, data: None)
    store.try_read = lambda path: (fault(), local.try_read(path))[1]
    with Lease.acquire(local, pace=QUICK, say=no_line) as lease:
        watch = LeaseWatch(store, lease.name, QUICK)
        wait_until(lambda: fault.count > 2)
        watch.raise_if_lost()
    fault.is_there = False  # and the lease released
    wait_until(lambda: watch._lost is not None)
    with pytest.raises(LeaseLostError):
        watch.raise_if_lost()


def test_a_holder_that_was_cut_off_while_another_came_has_lost_the_run(local: Store) -> None:
    pace = Pace(renew=0.05, ttl=0.5, look=0.02, watch=0.05)
    cut = Cut()
    old = Lease.acquire(wrapped(local, cut), pace=pace, owner=ELSEWHERE, say=lambda line: None)
    cut.is_cut = True
    time.sleep(0.2)  # for what is on its way
    with Lease.acquire(local, pace=pace, say=lambda line: None) as new:
        assert old.lost is None  # it cannot know
        cut.is_cut = False
        told: list[Notice] = []
        with (
            pytest.raises(LeaseLostError, match="it stops, as do its workers"),
            old,
            old.calling(told.append),
        ):
            wait_until(lambda: bool(told))
            assert told[0].final
            raise RuntimeError("what its workers failed with")
        assert [entry.name for entry in entries(local)] == [new.name]


def test_what_a_former_holder_wrote_late_is_removed(local: Store) -> None:
    pace = Pace(renew=0.05, ttl=0.5, look=0.02, watch=0.05)
    with Lease.acquire(local, pace=pace, say=no_line, owner=ELSEWHERE) as first:
        late = entries(local)[0]
    with Lease.acquire(local, pace=pace, say=no_line) as lease:
        assert term_of(lease.name) > term_of(first.name)
        local.write(late.path, late.encode())
        wait_until(lambda: [entry.name for entry in entries(local)] == [lease.name])
        assert lease.lost is None


def test_workers_do_not_begin_for_a_driver_that_has_ended(local: Store) -> None:
    with Lease.acquire(local, say=no_line) as lease:
        require_holder(local, lease.name)
    with pytest.raises(LeaseLostError):
        require_holder(local, lease.name)


# What it costs, and touches.


def test_a_renewal_is_a_write_and_a_listing_and_a_look_one_read(local: Store) -> None:
    asked: list[str] = []
    count = wrapped(local, lambda kind, data: asked.append(kind))
    lease = Lease.acquire(local, pace=dataclasses.replace(QUICK, renew=60.0), say=no_line)
    lease._renewal.own.store = count
    for _ in range(3):
        lease._renewal.renew()
    assert asked == ["write", "written", "list", "listed"] * 3
    asked.clear()
    require_holder(count, lease.name)
    assert asked == ["read"]
    lease.release()


def test_nothing_else_of_a_run_sees_the_lease(local: Store) -> None:
    with Lease.acquire(local, say=no_line):
        assert highest_attempt(local) == 0
        assert scan(local) == []


def test_the_workers_are_told_to_leave_for_good(local: Store) -> None:
    told: list[Notice] = []
    with ThreadPoolExecutor(1) as pool:
        old = Lease.acquire(local, pace=QUICK, say=no_line)
        new = pool.submit(Lease.acquire, local, pace=QUICK, take_over=True, say=lambda line: None)
        with pytest.raises(LeaseLostError, match=r"^gone$"), old, old.calling(told.append):
            wait_until(lambda: bool(told))
            raise LeavingError("gone", final=True)
        new.result(20).release()
    assert told[0].final
    assert told[0].deadline is None
    assert re.fullmatch(rf"pid {os.getpid()} of \S+ on host \S+ takes the run over", told[0].reason)


# Who lives.


def test_a_process_is_gone_when_its_number_is_free_or_another_process_has_it() -> None:
    me = Owner.me()
    assert not me.gone
    assert me.started is not None
    assert dataclasses.replace(me, started=me.started - 1).gone
    assert not dataclasses.replace(me, started=me.started - 1, machine="another").gone
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    living = dataclasses.replace(me, pid=child.pid, started=_started(child.pid))
    assert not living.gone
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert living.gone  # a zombie
    child.communicate()
    assert living.gone


@pytest.mark.parametrize("error", [PermissionError, None], ids=["another-users", "own"])
def test_a_living_process_that_proc_hides_is_not_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: type[OSError] | None
) -> None:
    """As with hidepid=2: the system says that the process lives, and /proc shows only this one."""
    me = Owner.me()
    hide_others(monkeypatch, tmp_path)
    assert Owner.me() == me
    other = dataclasses.replace(me, pid=os.getppid(), started=1)
    answer_kill(monkeypatch, error)
    assert not other.gone
    answer_kill(monkeypatch, ProcessLookupError)
    assert other.gone


def test_a_living_holder_that_proc_hides_is_watched_before_it_is_replaced(
    local: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pace = Pace(renew=0.1, ttl=1.0, look=0.02, watch=0.1)
    hidden = dataclasses.replace(Owner.me(), pid=os.getppid(), started=1)
    hide_others(monkeypatch, tmp_path / "proc")
    answer_kill(monkeypatch, PermissionError)
    silent = Lease.acquire(local, pace=pace, say=no_line, owner=hidden)
    silent._ended.set()
    said: list[str] = []
    began = time.monotonic()
    with Lease.acquire(local, pace=pace, say=said.append):
        assert time.monotonic() - began >= 1.0
    assert f"held by pid {os.getppid()} of" in said[0]


@pytest.mark.parametrize("other", ["boot", "name space", "unknown", "unreadable"])
def test_nobody_is_gone_for_a_machine_of_another_boot_or_name_space(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: str
) -> None:
    """Two containers may share a host name and a storage; the other's process ids mean nothing here."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead = dataclasses.replace(Owner.me(), pid=ended.pid)
    assert dead.gone
    if other == "unknown":
        dead = Owner(dead.host, dead.pid, dead.user)
    else:
        hide_others(monkeypatch, tmp_path, **{other.replace(" ", "_"): "other"})
    assert not dead.gone


def hide_others(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    boot: str = "",
    name_space: str = "",
    unreadable: str = "",
) -> None:
    """Let `process` see a /proc that shows this process alone; it may be another boot's or another name space's."""
    (folder / "sys/kernel/random").mkdir(parents=True)
    boot_id = "sys/kernel/random/boot_id"
    (folder / boot_id).write_text(boot or Path("/proc", boot_id).read_text())
    if not unreadable:
        mine = folder / str(os.getpid())
        (mine / "ns").mkdir(parents=True)
        (mine / "stat").write_text(Path("/proc/self/stat").read_text())
        (mine / "ns/pid").symlink_to(name_space or os.readlink("/proc/self/ns/pid"))
        (folder / "self").symlink_to(str(os.getpid()))
    monkeypatch.setattr(process, "PROC", folder)


def answer_kill(monkeypatch: pytest.MonkeyPatch, error: type[OSError] | None) -> None:
    def kill(pid: int, number: int) -> None:
        assert number == 0
        if error is not None:
            raise error

    monkeypatch.setattr(process.os, "kill", kill)


def _started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
