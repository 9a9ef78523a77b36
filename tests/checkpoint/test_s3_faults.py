"""Storage that fails: a fifth of all requests damaged, hangs, and outages in the middle of a run."""

from __future__ import annotations

import gc
import logging
import os
import re
import resource
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raymat.checkpoint.async_writer import AsyncWriter
from raymat.checkpoint.catalog import newest, scan
from raymat.checkpoint.manifest import CheckpointId, Origin
from raymat.checkpoint.reader import read_checkpoint
from raymat.checkpoint.save_decision import Decision, Load, decide
from raymat.config.run import RunConfig
from raymat.data.batch import MicroBatch
from raymat.data.feed import Stretch
from raymat.distributed.world import World
from raymat.errors import StorageError
from raymat.storage import access
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from raymat.train.observability.metrics_log import read_metrics
from tests.support import runs
from tests.support.fault_proxy import FAULTS, FaultProxy
from tests.support.heads import wait_for
from tests.support.s3 import SECRET, S3Server

pytestmark = pytest.mark.slow

HASTY = {"read_timeout": 0.5, "retries": {"max_attempts": 0}}
"""Short silences, and no tries but the store's: a test has no time for the real ones."""
BUSY = r"the storage is overloaded or fails \(.*\); wait, or look at the provider's state"
AWAY = r"the storage does not answer \(.*\); check the network and the endpoint"
STALLS = ("stall", "stall_request", "stall_response")


@pytest.fixture(autouse=True)
def keeps_its_secret(
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    s3_server: S3Server,
    bucket: str,
) -> Iterator[None]:
    """After every test here: the secret is in no log line, in nothing printed, in no stored file."""
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "raymat")
    yield
    printed = capfd.readouterr()
    assert SECRET not in caplog.text + printed.out + printed.err
    whole = Store.open(f"s3://{bucket}", "runs", options=s3_server.options)
    for file in whole.list():
        assert SECRET.encode() not in whole.read(file.path)


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server, seed=5) as proxy:
        yield proxy


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """A new one."""
    name = f"faults-{time.monotonic_ns()}"
    s3_server.store(name)
    return name


def behind(proxy: FaultProxy, bucket: str, config: dict[str, Any], **more: Any) -> Store:
    """The run's store through the proxy, with botocore's settings."""
    options = proxy.server.options | {"endpoint_url": proxy.endpoint, "config_kwargs": config}  # type: ignore[attr-defined]
    return Store.open(f"s3://{bucket}/runs", "run", options=options, **more)


def direct(s3_server: S3Server, bucket: str) -> Store:
    return Store.open(f"s3://{bucket}/runs", "run", options=s3_server.options)


def text_of(error: BaseException) -> str:
    """All that anybody could print of an exception, with all those behind it."""
    return "".join(traceback.format_exception(error))


def test_signatures_hold_behind_the_proxy(proxy: FaultProxy, bucket: str) -> None:
    proxy.server.needs_signatures(bucket)  # type: ignore[attr-defined]
    store = behind(proxy, bucket, {})
    store.write("x", b"1")
    assert store.read("x") == b"1"
    wrong = proxy.server.options | {"endpoint_url": proxy.endpoint, "secret": "WRONG"}  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match="SignatureDoesNotMatch"):
        Store.open(f"s3://{bucket}/runs", "run", options=wrong).write("x", b"1")
    assert proxy.counts == {"passed": 3}


def state(step: int) -> dict[str, Tensor]:
    """40 KB, other values at every step."""
    return {f"t{i}": torch.full((2000 + i,), float(step)) for i in range(5)}


class Ranks:
    """Two ranks' writers that agree as the training loop lets them."""

    def __init__(self, make: Callable[[World], AsyncWriter]) -> None:
        self.writers = [make(World(rank, 2)) for rank in range(2)]
        self.announced: list[CheckpointId] = []
        self.most_alive = 0

    def step(self, step: int, seconds: float) -> Decision:
        """A save that is due; waits for room, `seconds` at most."""
        deadline = time.monotonic() + seconds
        while (load := self.agree()).alive > 1:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        (decision,) = {
            writer.save(step, state(step), {"step": step}, decide(load)) for writer in self.writers
        }
        return decision

    def agree(self) -> Load:
        load = Load.agree(writer.load() for writer in self.writers)
        first, second = ([c.checkpoint for c in w.confirm(load.durable)] for w in self.writers)
        assert first == second
        self.announced += first
        self.most_alive = max(self.most_alive, load.alive)
        return load

    def finish(self, seconds: float) -> None:
        assert all([writer.drain(seconds) for writer in self.writers])
        self.agree()
        for writer in self.writers:
            writer.close()


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def assert_right(store: Store, announced: list[CheckpointId]) -> None:
    """Each is there, every digest verified, with the content of its step."""
    statuses = {status.id: status for status in scan(store)}
    for checkpoint in announced:
        found = read_checkpoint(store, checkpoint, "r", files=statuses[checkpoint].files)
        assert found.extra == {"step": checkpoint.step}
        assert found.tensors.keys() == {"t0", "t1", "t2", "t3", "t4"}
        assert all(bool((t == checkpoint.step).all()) for t in found.tensors.values())


@pytest.mark.slow
@pytest.mark.parametrize("count", [80, pytest.param(200, marks=pytest.mark.chaos)])
def test_with_a_fifth_of_all_requests_damaged_no_checkpoint_is_lost(
    s3_server: S3Server, proxy: FaultProxy, bucket: str, count: int
) -> None:
    retry = RetryPolicy(total=20.0, first=0.005, longest=0.1)
    ranks = Ranks(
        lambda world: AsyncWriter(
            behind(proxy, bucket, HASTY, retry=retry), world, Origin("r", 1, "word")
        )
    )
    proxy.weights = dict.fromkeys(FAULTS, 1.0) | dict.fromkeys(STALLS, 0.25)
    proxy.share, memory = 0.2, 0
    for step in range(1, count + 1):
        assert ranks.step(step, seconds=30) is Decision.BEGIN
        memory = resident() if step == 50 else memory
    ranks.finish(seconds=30)
    # 150 more of 200 checkpoints of 40 KB: kept, they would be 6 MB and their requests more.
    assert resident() - memory < 4 * 2**20
    assert ranks.most_alive == 2
    # Every one, since none was given up: each fault passed before patience ended.
    assert [checkpoint.step for checkpoint in ranks.announced] == list(range(1, count + 1))
    assert_right(direct(s3_server, bucket), ranks.announced)
    # Stalls, which cost seconds, are too rare to be met in few requests.
    assert set(FAULTS) - (set(STALLS) if count < 200 else set()) <= set(proxy.counts)
    requests = sum(proxy.counts.values())
    assert requests > 5 * count
    assert 0.15 < 1 - proxy.counts["passed"] / requests < 0.25


def test_with_a_fifth_of_all_requests_damaged_reads_are_right(
    s3_server: S3Server, proxy: FaultProxy, bucket: str
) -> None:
    ranks = Ranks(
        lambda world: AsyncWriter(direct(s3_server, bucket), world, Origin("r", 1, "word"))
    )
    for step in (1, 2, 3):
        ranks.step(step, seconds=10)
    ranks.finish(seconds=10)
    retry = RetryPolicy(total=20.0, first=0.005, longest=0.1)
    store = behind(proxy, bucket, HASTY, retry=retry)
    proxy.weights = dict.fromkeys(FAULTS, 1.0) | dict.fromkeys(STALLS, 0.25)
    proxy.share = 0.2
    skipped: list[Any] = []
    for _ in range(30):
        found = newest(store, "r", lambda checkpoint, why: skipped.append((checkpoint, why)))
        assert found is not None
        assert found[0] == CheckpointId(3, 1)
        assert found[1].extra == {"step": 3}
        assert all(bool((t == 3).all()) for t in found[1].tensors.values())
    assert skipped == []
    assert sum(proxy.counts[fault] for fault in FAULTS) > 20


def test_the_settings_of_a_real_run_lose_no_checkpoint_either(
    s3_server: S3Server, proxy: FaultProxy, bucket: str
) -> None:
    """With botocore's own tries and pauses, and a store and a writer as a run makes them."""
    events: list[tuple[CheckpointId, bool]] = []
    told = lambda c, error, final: events.append((c, final))  # noqa: E731
    ranks = Ranks(
        lambda world: AsyncWriter(
            behind(proxy, bucket, {"read_timeout": 1}),
            world,
            Origin("r", 1, "word"),
            on_failure=told,
        )
    )
    proxy.weights = dict.fromkeys(FAULTS, 1.0) | dict.fromkeys(STALLS, 0.25)
    proxy.share = 0.2
    for step in range(1, 11):
        ranks.step(step, seconds=60)
    ranks.finish(seconds=60)
    assert [checkpoint.step for checkpoint in ranks.announced] == list(range(1, 11))
    assert_right(direct(s3_server, bucket), ranks.announced)
    assert not any(final for _, final in events)


@pytest.mark.parametrize(
    ("fault", "size"),
    [("stall", 1000), ("stall_request", 31 * 2**20), ("stall_response", 1000)],
)
def test_a_server_that_takes_a_connection_and_does_nothing_more_is_given_up_in_time(
    proxy: FaultProxy, bucket: str, fault: str, size: int
) -> None:
    """Before it asks for an upload's body, in the middle of one that fits no socket's buffer, and after it."""
    store = behind(proxy, bucket, HASTY | {"read_timeout": 1}, retry=RetryPolicy(total=0.0))
    store.write("x", bytes(1000))
    proxy.weights, proxy.share = {fault: 1.0}, 1.0
    for call in (lambda: store.write("x", bytes(size)), lambda: store.read("x"), store.list):
        began = time.monotonic()
        with pytest.raises(StorageError, match=r"the storage does not answer \(.*\); check the"):
            call()
        assert 0.9 < time.monotonic() - began < 5
    proxy.heal()
    store.write("x", b"again")
    assert store.read("x") == b"again"


def test_a_slow_upload_may_take_much_longer_than_the_timeout(
    proxy: FaultProxy, bucket: str
) -> None:
    store = behind(proxy, bucket, HASTY | {"read_timeout": 3}, retry=RetryPolicy(total=0.0))
    proxy.upload_rate = 6e6
    # Given at the end of the body, the answer shows that it was sent whole.
    proxy.weights, proxy.share = {"error_500": 1.0}, 1.0
    began = time.monotonic()
    with pytest.raises(StorageError, match=BUSY):
        store.write("x", bytes(31 * 2**20))
    assert time.monotonic() - began > 4


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("refused", AWAY),
        ("reset_request", AWAY),
        ("reset_response", AWAY),
        ("error_500", BUSY),
        ("error_503", BUSY),
        ("slow_down", BUSY),
    ],
)
def test_a_fault_that_stays_is_one_clear_line(
    proxy: FaultProxy, bucket: str, fault: str, line: str
) -> None:
    retry = RetryPolicy(total=0.1, first=0.01, longest=0.02)
    store = behind(proxy, bucket, HASTY, retry=retry)
    proxy.weights, proxy.share = {fault: 1.0}, 1.0
    calls = {
        "write": lambda: store.write("x", bytes(1000)),
        "read": lambda: store.read("x"),
        "list": store.list,
        "delete from": lambda: store.delete(["x"]),
    }
    for action, call in calls.items():
        place = rf"cannot {action} s3://{bucket}/runs/run\S*: "
        with pytest.raises(StorageError, match=place + line) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert SECRET not in text_of(caught.value)


class Outage:
    """A feed of a run in this process: calls `begin` when the first checkpoint is committed, `end` some `seconds` later.

    In between a step takes at least a twentieth of a second, and however slow the machine is there are saves.
    """

    def __init__(
        self,
        config: RunConfig,
        begin: Callable[[], None],
        end: Callable[[], None] = lambda: None,
        seconds: float = 1e9,
    ) -> None:
        self._feed = runs.Feed(config, World(), {})
        self._store = runs.store_of(config)
        self._first_save = config.checkpoint.checkpoint_interval.steps
        self._begin, self._end, self._seconds = begin, end, seconds
        self.began: float | None = None
        self.steps_during = 0
        self.over = False

    def expect(self, stretches: Iterable[Stretch]) -> None:
        self._feed.expect(stretches)

    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        for batch in self._feed.train(first_step, end_step):
            if batch.step == self._first_save + 1:
                self._wait_for_a_commit()
                self._begin()
                self.began = time.monotonic()
            if self.began is not None and not self.over:
                time.sleep(0.05)
                self.steps_during += 1
                long = time.monotonic() - self.began > self._seconds
                if long and self.steps_during >= 2 * self._first_save:
                    self._end()
                    self.over = True
            yield batch

    def valid(self) -> Iterator[MicroBatch]:
        return self._feed.valid()

    def _wait_for_a_commit(self) -> None:
        deadline = time.monotonic() + 60
        while not any(status.state == "committed" for status in scan(self._store)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def run_of(storage: str, name: str, **options: Any) -> RunConfig:
    """A base run of small pictures that saves every second step, unless told otherwise."""
    return runs.tiny(storage, name, valid_examples=0, **({"checkpoint_interval": 2} | options))


@pytest.fixture
def cloud(
    s3_server: S3Server, proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The URL of a storage behind the proxy, with credentials in the environment alone."""
    for name, value in (s3_server.environment | {"AWS_ENDPOINT_URL": proxy.endpoint}).items():
        monkeypatch.setenv(name, value)
    return f"s3://{bucket}/runs"


FULL, DENIED = (
    r"no space left there \(.*{}.*\); free some",
    r"permission denied \({}\); give this account",
)
# What MinIO, Ceph, Swift, and any of them answer.
OUTAGES = {
    "XMinioStorageFull": (507, {"PUT", "POST"}, FULL),
    "XMinioAdminBucketQuotaExceeded": (400, {"PUT", "POST"}, FULL),
    "QuotaExceeded": (403, {"PUT", "POST"}, FULL),
    "InsufficientStorage": (507, {"PUT", "POST"}, FULL),
    "507": (507, {"PUT", "POST"}, FULL),
    "EntityTooLarge": (413, {"PUT", "POST"}, FULL),
    "AccessDenied": (403, {"PUT", "POST"}, DENIED),
    "NoSuchBucket": (404, {"GET", "PUT", "POST"}, r"there is no bucket .* of that name; create it"),
}


@pytest.mark.parametrize("size", [1000, 40 * 2**20])
@pytest.mark.parametrize("code", OUTAGES)
def test_what_lasts_is_one_clear_line_at_once(
    proxy: FaultProxy, bucket: str, code: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine is, the keys are not old enough to be read anew.
    monkeypatch.setattr(access, "RENEW_SECONDS", 600.0)
    store = behind(proxy, bucket, {})
    status, methods, cause = OUTAGES[code]
    proxy.fail_all(status, "" if code.isdigit() else code, frozenset(methods))
    place = rf"cannot write s3://{bucket}/runs/run/x: "
    with pytest.raises(StorageError, match=place + cause.format(code)) as caught:
        store.write("x", bytes(size))
    assert proxy.counts == {"outage": 1}  # asked once, and not again
    assert SECRET not in text_of(caught.value)


@pytest.mark.parametrize(
    "code",
    [
        "XMinioStorageFull",
        # The same way through the program, with other words: only where there is time.
        pytest.param("AccessDenied", marks=pytest.mark.chaos),
        pytest.param("NoSuchBucket", marks=pytest.mark.chaos),
    ],
)
def test_storage_that_goes_away_in_a_run_ends_it_with_one_line_and_not_before_its_age(
    proxy: FaultProxy, cloud: str, code: str
) -> None:
    status, methods, cause = OUTAGES[code]
    config = run_of(cloud, "gone", steps=10_000, max_checkpoint_age="8s")
    feed = Outage(config, lambda: proxy.fail_all(status, code, frozenset(methods)))
    with pytest.raises(StorageError) as caught:
        runs.train(World(), config, feed=feed)
    assert feed.began is not None
    assert 7 < time.monotonic() - feed.began < 30
    assert feed.steps_during >= 3
    age = r"no checkpoint could be committed to s3://\S+/runs/gone for \d+ s, more than the 8 s of --max-checkpoint-age"
    where = r"the last error: cannot write s3://\S+/runs/gone/\S+: "
    assert re.fullmatch(f"{age}; {where}{cause.format(code)}.*", caught.value.line)
    assert SECRET not in text_of(caught.value)
    proxy.heal()
    assert [s.id.step for s in scan(runs.store_of(config)) if s.state == "committed"][-1] == 2


@pytest.mark.slow
def test_storage_that_comes_back_in_time_costs_nothing(
    proxy: FaultProxy, cloud: str, tmp_path: Path
) -> None:
    options = {"steps": 20, "keep": 3, "checkpoint_interval": 4}
    config = run_of(cloud, "back", max_checkpoint_age="60s", **options)
    feed = Outage(config, lambda: proxy.fail_all(507, "XMinioStorageFull"), proxy.heal, 2.0)
    outcome = runs.train(World(), config, feed=feed)
    assert (outcome.step, outcome.attempt, feed.over) == (20, 1, True)
    assert feed.steps_during >= 3
    found = newest(runs.store_of(config), "back")
    assert found is not None
    assert found[0] == CheckpointId(20, 1)
    rows = read_metrics(runs.store_of(config))
    assert [row["step"] for row in rows] == list(range(1, 21))
    kinds = {event["kind"] for event in read_events(runs.store_of(config))}
    assert {"start", "commit", "save_failed", "end"} <= kinds
    undisturbed = run_of(str(tmp_path), "undisturbed", **options)
    runs.train(World(), undisturbed)
    twin = newest(runs.store_of(undisturbed), "undisturbed")
    assert twin is not None
    assert runs.differences(found[1], twin[1]) == ["config"]  # the age
    assert [row["loss"] for row in rows] == [
        row["loss"] for row in read_metrics(runs.store_of(undisturbed))
    ]


def test_a_file_system_that_takes_no_more_ends_a_run_with_one_line_and_not_before_its_age(
    tmp_path: Path,
) -> None:
    """By the limit of a file's size, as a quota is felt: it needs no rights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    config = run_of(str(tmp_path), "limited", steps=10_000, max_checkpoint_age="4s")
    feed = Outage(config, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, before[1])))
    try:
        with pytest.raises(StorageError) as caught:
            runs.train(World(), config, feed=feed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert feed.steps_during >= 3
    assert re.fullmatch(
        r"no checkpoint could be committed to \S+/limited for \d+ s, more than the 4 s of --max-checkpoint-age; "
        r"the last error: cannot write \S+: no space left there \(.*File too large.*\); free some.*",
        caught.value.line,
    )
    store = runs.store_of(config)
    # The writer's thread may still be at a curve when the run has ended; what it leaves is whole.
    wait_for(lambda: store.list(temporary=True) == store.list(), 30)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_full_for_a_while_costs_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=400m tmpfs {disk} 2>/dev/null"):
        pytest.skip("mounting is not allowed here")
    ballast = disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(2**16))
            except OSError:
                return

    try:
        config = run_of(str(disk), "filled", steps=30, keep=2, max_checkpoint_age="60s")
        feed = Outage(config, fill, ballast.unlink, 1.5)
        outcome = runs.train(World(), config, feed=feed)
        assert (outcome.step, outcome.attempt, feed.over) == (30, 1, True)
        store = runs.store_of(config)
        errors = [e["error"] for e in read_events(store) if e["kind"] == "save_failed"]
        assert any("no space left there" in error for error in errors)
        assert [row["step"] for row in read_metrics(store)] == list(range(1, 31))
        found = newest(store, "filled")
        assert found is not None
        assert found[0].step == 30
    finally:
        os.system(f"umount {disk}")
