"""A restart reads from the machines' own disks what survived there, and nothing that is not exactly what storage vouches for."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from torch import Tensor

from raymat.checkpoint import local_cache as module
from raymat.checkpoint.async_writer import AsyncWriter
from raymat.checkpoint.catalog import scan
from raymat.checkpoint.local_cache import LocalCache, assign_copies, cache_folder
from raymat.checkpoint.manifest import CheckpointId, FileEntry, Origin
from raymat.checkpoint.reader import read_contents
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.config.flags import parse_run
from raymat.config.run import RunConfig
from raymat.data.batch import MicroBatch
from raymat.distributed.collectives import Group
from raymat.distributed.world import World
from raymat.errors import ConfigError, StorageError
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store
from raymat.train.loop import trainer
from raymat.train.loop.interfaces import Host
from raymat.train.loop.restore import read_together
from raymat.train.observability.checkpoint_events import LocalCopiesOff, LocalCopyDamaged
from raymat.train.observability.events import read_events
from raymat.train.run.notice import LeavingError
from tests.support import runs
from tests.support.s3 import S3Server
from tests.support.workers import WorkerError, in_workers
from tests.train.loop.test_preemption import Warned

AT = CheckpointId(20, 1)
OWN = f"raymat-{os.geteuid()}"


def state(step: int) -> dict[str, Tensor]:
    """Two shards of 1.2 MB."""
    made = torch.Generator().manual_seed(step)
    return {f"t{i}": torch.randn(30_000 + i, generator=made) for i in range(20)}


def kept_in(folder: Path, run: str = "r") -> list[str]:
    """The names of the files that are kept, temporary ones too."""
    own = folder / OWN / run
    return sorted(os.listdir(own)) if own.exists() else []


class Told:
    """Remembers what it observes, as events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def copy_damaged(self, checkpoint: CheckpointId, file: str, reason: str) -> None:
        event = LocalCopyDamaged(checkpoint=str(checkpoint), file=file, reason=reason)
        self.events.append(event.to_dict())

    def copies_off(self, reason: str) -> None:
        self.events.append(LocalCopiesOff(reason=reason).to_dict())


def opened(folder: Path, told: Told | None = None, run: str = "r") -> LocalCache:
    found = LocalCache.open(str(folder), run, told or Told())
    assert found is not None
    return found


def write_all(
    store: Store, folder: Path, steps: range, world: int = 1, told: Told | None = None
) -> None:
    """Checkpoints by the writers of workers of one machine."""
    writers = [
        AsyncWriter(
            store, World(rank, world), Origin("r", 1, "word"), local_cache=opened(folder, told)
        )
        for rank in range(world)
    ]
    for step in steps:
        for writer in writers:
            writer.save(step, state(step), {"at": step})
            assert writer.drain(30)
    for writer in writers:
        writer.close()


# Keeping.


def test_what_is_kept_is_the_shard_as_it_is_in_storage_and_nobody_else_may_look(
    tmp_path: Path,
) -> None:
    store = Store.open(str(tmp_path / "runs"), "run")
    write_all(store, tmp_path, range(20, 21))
    shard = store.read(f"checkpoints/{AT}/shard-00000-of-00001.safetensors")
    digest = blake3(shard).hexdigest()
    assert kept_in(tmp_path) == [f"step-000000020-a001-blake3-{digest}.safetensors"]
    folder = tmp_path / OWN / "r"
    assert (folder / kept_in(tmp_path)[0]).read_bytes() == shard
    assert [oct(path.stat().st_mode & 0o777) for path in (folder.parent, folder)] == ["0o700"] * 2


def test_nothing_is_kept_before_it_is_durable_in_storage(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "runs"), "run")
    seen = []

    class Watched:
        """Looks at the machine's copies after each write, and refuses the first manifest."""

        url = "watched"

        def write(self, path: str, data: Any) -> None:
            store.write(path, data)
            seen.append((path.rpartition("/")[2].partition("-")[0], len(kept_in(tmp_path))))
            if len(seen) == 3:
                raise StorageError("away")

    retry = RetryPolicy(total=5.0, first=0.001)
    watched: Any = Watched()
    writer = AsyncWriter(
        watched, World(), Origin("r", 1, "word"), retry=retry, local_cache=opened(tmp_path)
    )
    writer.save(20, state(20), {})
    assert writer.drain(30)
    writer.close()
    assert seen == [("shard", 0), ("state.json", 0), ("manifest", 0)] * 2
    assert len(kept_in(tmp_path)) == 1


def test_a_snapshot_that_waits_for_storage_goes_before_a_copy(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "runs"), "run")
    queued = threading.Event()

    class Waiting:
        """Takes nothing before the second snapshot is there."""

        url = "waiting"

        def write(self, path: str, data: Any) -> None:
            assert queued.wait(10)
            store.write(path, data)

    waiting: Any = Waiting()
    writer = AsyncWriter(waiting, World(), Origin("r", 1, "word"), local_cache=opened(tmp_path))
    writer.save(1, state(1), {})
    while not writer.load().alive or writer.load().waiting:
        time.sleep(0.001)  # until the first is begun: else the second takes its place
    writer.save(2, state(2), {})
    queued.set()
    assert writer.drain(30)
    writer.close()
    assert [status.state for status in scan(store)] == ["committed"] * 2
    assert [name.split("-a")[0] for name in kept_in(tmp_path)] == ["step-000000002"]


def test_a_copy_is_broken_off_for_what_is_more_important(tmp_path: Path) -> None:
    pieces, asked = [bytes([n]) * 10 for n in range(8)], iter([False] * 5)
    data = b"".join(pieces)
    entry = FileEntry("x", len(data), "sha256:" + hashlib.sha256(data).hexdigest())
    told = Told()
    cache = opened(tmp_path, told)
    cache.keep(AT, entry, pieces, lambda: next(asked, True))
    assert (kept_in(tmp_path), told.events) == ([], [])
    cache.keep(AT, entry, pieces)
    assert cache.held([entry]) == {"x"}


def test_a_machine_keeps_the_newest_two_checkpoints_of_a_run(tmp_path: Path) -> None:
    write_all(Store.open(str(tmp_path / "runs"), "run"), tmp_path, range(1, 6), world=3)
    steps = [name.split("-a")[0] for name in kept_in(tmp_path)]
    assert steps == ["step-000000004"] * 3 + ["step-000000005"] * 3


def test_a_start_clears_away_what_dead_writers_and_forgotten_runs_have_left(tmp_path: Path) -> None:
    write_all(Store.open(str(tmp_path / "runs"), "run"), tmp_path, range(1, 2))
    (copy,) = kept_in(tmp_path)
    data = (tmp_path / OWN / "r" / copy).read_bytes()
    day_ago = time.time() - 86_500
    for run, when in (("old", day_ago), ("fresh", day_ago + 200), ("other", day_ago)):
        folder = tmp_path / OWN / run
        folder.mkdir()
        names = [copy, ".tmp-77-0123abcd-" + copy] + (["notes.txt"] if run == "other" else [])
        for path in [*(folder / name for name in names), folder]:
            if path != folder:
                path.write_bytes(data)
            os.utime(path, (when, when))
    (tmp_path / OWN / "r" / f".tmp-77-0123abcd-{copy}").write_bytes(data[:1000])
    opened(tmp_path)
    assert kept_in(tmp_path) == [copy]
    assert sorted(os.listdir(tmp_path / OWN)) == ["fresh", "other", "r"]
    assert kept_in(tmp_path, "other") == ["notes.txt"]  # not ours


def test_the_end_of_a_run_leaves_nothing_whichever_worker_is_last(tmp_path: Path) -> None:
    workers = [opened(tmp_path) for _ in range(2)]
    write_all(Store.open(str(tmp_path / "runs"), "run"), tmp_path, range(1, 3), world=2)
    assert len(kept_in(tmp_path)) == 4
    for worker in workers:
        worker.remove()
        assert os.listdir(tmp_path / OWN) == []
    workers[0].keep(AT, FileEntry("x", 1, "sha256:" + "0" * 64), [b"x"])
    assert os.listdir(tmp_path / OWN) == []


def test_what_is_no_part_of_the_checkpoint_gone_on_from_is_forgotten(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "runs"), "run")
    write_all(store, tmp_path, range(20, 22))
    assert len(kept_in(tmp_path)) == 2
    opened(tmp_path).forget_all_but(read_contents(store, AT, "r").files)
    assert [name.split("-a")[0] for name in kept_in(tmp_path)] == ["step-000000020"]
    opened(tmp_path).forget_all_but(())
    assert kept_in(tmp_path) == []


# Disks and folders that will not do.


@pytest.fixture
def limited() -> Iterator[Callable[[], None]]:
    """Lets no file become larger than 1 MB: as a quota is felt, and without rights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_ends_the_keeping_and_no_save(
    tmp_path: Path, memory: Store, limited: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    write_all(memory, tmp_path, range(1, 2), told=told)
    assert (len(kept_in(tmp_path)), told.events) == (1, [])
    limited()
    write_all(memory, tmp_path, range(2, 5), told=told)
    assert [status.id.step for status in scan(memory) if status.state == "committed"] == [
        4,
        3,
        2,
        1,
    ]
    assert [name.split("-a")[0] for name in kept_in(tmp_path)] == ["step-000000001"]
    (event,) = told.events
    assert event["kind"] == "nearby_off"
    assert "File too large" in event["reason"]
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert [r.getMessage() for r in warnings] == [
        f"no copies of shards are kept on this machine's disk: {event['reason']}"
    ]


def test_a_disk_that_is_nearly_full_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    monkeypatch.setattr(module, "LEAST_FREE", 1.0)
    write_all(Store.open(str(tmp_path / "runs"), "run"), tmp_path, range(1, 3), told=told)
    assert kept_in(tmp_path) == []
    (event,) = told.events
    assert "the disk is nearly full" in event["reason"]


def make_file(folder: Path) -> Path:
    folder.write_text("a file")
    return folder


def make_link(folder: Path) -> Path:
    """Where somebody else would have us write."""
    (folder / "elsewhere").mkdir(parents=True, mode=0o700)
    (folder / OWN).symlink_to("elsewhere")
    return folder


def make_foreign(folder: Path) -> Path:
    if os.geteuid() != 0:
        pytest.skip("only root can give folders away")
    (folder / OWN).mkdir(parents=True, mode=0o700)
    os.chown(folder / OWN, 4711, 4711)
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_file, "exists"),
        (make_link, "Not a directory"),
        (make_foreign, "it belongs to somebody else"),
    ],
)
def test_a_folder_that_is_not_ours_is_not_used(
    tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    told = Told()
    assert LocalCache.open(str(make(tmp_path / "shared")), "r", told) is None
    (event,) = told.events
    assert event["kind"] == "nearby_off"
    assert words in event["reason"]


def test_a_run_whose_id_is_a_path_keeps_nothing(tmp_path: Path) -> None:
    for run in ("..", "../x", "a/b", "", "x" * 3000):
        assert LocalCache.open(str(tmp_path / "n"), run, Told()) is None
    assert not (tmp_path / "n" / OWN / "x").exists()


def test_a_folder_that_others_could_look_into_is_closed(tmp_path: Path) -> None:
    (tmp_path / OWN).mkdir(mode=0o755)
    opened(tmp_path)
    assert oct((tmp_path / OWN).stat().st_mode & 0o777) == "0o700"


# Who reads what.


def entry(name: str, size: int) -> FileEntry:
    return FileEntry(name, size, "sha256:" + name * 64)


def test_each_file_is_read_by_one_of_its_holders_balanced_by_bytes() -> None:
    files = [entry("a", 10), entry("b", 30), entry("c", 20), entry("d", 20), entry("e", 5)]
    held = [{"a", "b", "c", "d"}, {"a", "b", "c", "d"}, {"d"}, set()]
    shares = assign_copies(files, held)
    assert [[file.name for file in share] for share in shares] == [["b"], ["c", "a"], ["d"], []]
    assert assign_copies(files, [set(), set()]) == [[], []]


class CountingStore:
    """A store that counts the bytes that are read of shards, and of what is no shard."""

    def __init__(self, store: Store) -> None:
        self.store, self.shards, self.others = store, 0, 0

    def read_into(self, path: str, offset: int, view: memoryview) -> None:
        if "/shard-" in path:
            self.shards += len(view)
        else:
            self.others += len(view)
        self.store.read_into(path, offset, view)


class Vanishing(LocalCache):
    """The copies are there when they are looked for, and gone when they are to be read."""

    def read(self, entry: FileEntry, view: memoryview) -> bool:
        os.unlink(self._found[entry.digest].path)
        return super().read(entry, view)


def restore(
    world: World, storage: str, folders: list[str | None], vanish: bool = False
) -> dict[str, Any]:
    """What a rank, on the machine with the folder of its rank, got from where."""
    store, told, folder = Store.open(storage, "run"), Told(), folders[world.rank]
    kind = Vanishing if vanish else LocalCache
    cache = kind.open(folder, "r", told) if folder else None
    counting: Any = CountingStore(store)
    group = Group(world, torch.device("cpu"))
    snapshot, near = read_together(counting, group, read_contents(store, AT, "r"), cache)
    expected = state(20)
    same = snapshot.tensors.keys() == expected.keys() and all(
        torch.equal(expected[name], tensor) for name, tensor in snapshot.tensors.items()
    )
    return {
        "same": same and snapshot.extra == {"at": 20},
        "near": near,
        "shards": counting.shards,
        "others": counting.others,
        "told": told.events,
    }


class Machines:
    """Two workers on a machine each have written a checkpoint and kept their shards."""

    def __init__(self, folder: Path) -> None:
        self.storage = str(folder / "runs")
        self.folders = [str(folder / "machine-0"), str(folder / "machine-1")]
        self.store = Store.open(self.storage, "run")
        snapshot = Snapshot.take(20, state(20), {"at": 20})
        for rank in range(2):
            manifest = write_share(self.store, AT, snapshot, World(rank, 2), "r")
            data = self.store.read(f"checkpoints/{AT}/{manifest.files[0].name}")
            opened(Path(self.folders[rank])).keep(AT, manifest.files[0], [data])
        files = read_contents(self.store, AT, "r").files
        self.sizes = {file.name: file.size for file in files}
        self.shards = [size for name, size in self.sizes.items() if "shard" in name]

    def copy(self, rank: int) -> Path:
        folder = Path(self.folders[rank])
        (name,) = kept_in(folder)
        return folder / OWN / "r" / name


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path)


@pytest.mark.slow
def test_what_all_machines_have_kept_is_not_read_from_storage(machines: Machines) -> None:
    found = in_workers(2, restore, machines.storage, machines.folders)
    assert [(rank["same"], rank["shards"], rank["told"]) for rank in found] == [(True, 0, [])] * 2
    assert [rank["near"] for rank in found] == [sum(machines.shards)] * 2
    assert sum(rank["others"] for rank in found) == machines.sizes["state.json"]


@pytest.mark.parametrize("new", [None, "empty"])
def test_a_new_machine_costs_its_predecessor_s_shard_in_equal_parts(
    machines: Machines, tmp_path: Path, new: str | None
) -> None:
    folders = [machines.folders[0], str(tmp_path / new) if new else None]
    found = in_workers(2, restore, machines.storage, folders)
    assert [(rank["same"], rank["near"]) for rank in found] == [(True, machines.shards[0])] * 2
    read = [rank["shards"] for rank in found]
    assert sum(read) == machines.shards[1]
    assert max(read) < 0.7 * machines.shards[1]


def test_a_world_that_shrank_reads_what_its_one_machine_has(machines: Machines) -> None:
    (found,) = in_workers(1, restore, machines.storage, machines.folders[1:])
    assert (found["same"], found["near"]) == (True, machines.shards[1])
    assert found["shards"] == machines.shards[0]


def test_workers_of_one_machine_share_its_copies(machines: Machines) -> None:
    os.rename(machines.copy(1), Path(machines.folders[0]) / OWN / "r" / machines.copy(1).name)
    found = in_workers(3, restore, machines.storage, [machines.folders[0]] * 3)
    assert [(rank["same"], rank["shards"]) for rank in found] == [(True, 0)] * 3


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, 1000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "it has another digest"),
        (cut, r"it has 1000 bytes, expected \d+"),
        (None, "it cannot be read: .*No such file.*"),
    ],
)
def test_a_damaged_copy_is_told_removed_and_read_from_storage_instead(
    machines: Machines, damage: Callable[[Path], None] | None, reason: str
) -> None:
    if damage is not None:
        damage(machines.copy(1))
    folders = machines.folders if damage is not None else [None, machines.folders[1]]
    found = in_workers(2, restore, machines.storage, folders, damage is None)
    near = machines.shards[0] if damage is not None else 0
    assert [(rank["same"], rank["near"]) for rank in found] == [(True, near)] * 2
    assert sum(rank["shards"] for rank in found) == sum(machines.shards) - near
    assert found[0]["told"] == []
    (event,) = found[1]["told"]
    assert (event["kind"], event["checkpoint"]) == ("nearby_damaged", str(AT))
    assert event["file"] == "shard-00001-of-00002.safetensors"
    assert re.fullmatch(reason, event["reason"])
    assert kept_in(Path(machines.folders[1])) == []


@pytest.mark.slow
def test_a_copy_saves_a_checkpoint_whose_shard_storage_has_damaged(machines: Machines) -> None:
    flip(
        Path(machines.storage)
        / "run"
        / "checkpoints"
        / str(AT)
        / "shard-00000-of-00002.safetensors"
    )
    found = in_workers(2, restore, machines.storage, machines.folders)
    assert [rank["same"] for rank in found] == [True, True]


def test_a_bucket_is_asked_for_no_shard_that_is_nearby(
    tmp_path: Path, s3_server: S3Server, request_counter: Callable[[Store], list[str]]
) -> None:
    store = s3_server.store("nearby")
    write_all(store, tmp_path, range(20, 21))
    assert cache_folder("auto", store, "/tmp") == "/tmp"
    calls = request_counter(store)
    group = Group(World(), torch.device("cpu"))
    found, near = read_together(store, group, read_contents(store, AT, "r"), opened(tmp_path))
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in state(20).items())
    assert near > 20 * 30_000 * 4
    assert calls == ["list_objects_v2", "get_object", "get_object"]  # the manifest, state.json


# A whole run.


class Feed(runs.Feed):
    """Kills this process at a step, once every machine has kept its shard of the checkpoint before."""

    def __init__(self, config: RunConfig, world: World, folders: list[str], at: int | None) -> None:
        super().__init__(config, world, {}, patient=True)
        self._folders, self._rank, self._at = folders, world.rank, at
        self.at_first: list[str] = []
        """What this machine has kept before the first step."""

    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        for batch in super().train(first_step, end_step):
            if batch.step == first_step:
                self.at_first = kept_in(Path(self._folders[self._rank]), "killed")
            if batch.step == self._at and self._rank == 1:
                self._wait_for_copies(f"step-{batch.step - 1:09d}-")
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    def _wait_for_copies(self, prefix: str) -> None:
        deadline = time.monotonic() + 60
        while not all(
            any(name.startswith(prefix) for name in kept_in(Path(folder), "killed"))
            for folder in self._folders
        ):
            assert time.monotonic() < deadline
            time.sleep(0.005)


def train(
    world: World, config: RunConfig, folders: list[str], kill_at: int | None = None
) -> list[str]:
    feed = Feed(config, world, folders, kill_at)
    runs.train(world, config, feed=feed, nearby=folders[world.rank])
    return feed.at_first


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_machines_disks_and_equals_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    undisturbed = runs.tiny(tmp_path, "undisturbed", steps=5, valid_examples=0)
    in_workers(2, runs.train, undisturbed)
    killed = runs.tiny(tmp_path, "killed", steps=5, valid_examples=0)
    folders = [str(tmp_path / "machine-0"), str(tmp_path / "machine-1")]
    with pytest.raises(WorkerError, match="rank 1 died"):
        in_workers(2, train, killed, folders, 3)
    kept = [kept_in(Path(folder), "killed") for folder in folders]
    assert [[name[:14] for name in names] for names in kept] == [["step-000000002"]] * 2
    # What a worker has written that no other has: a checkpoint that never was.
    torn = (
        Path(folders[0])
        / OWN
        / "killed"
        / ("step-000000004-a001-sha256-" + "0" * 64 + ".safetensors")
    )
    torn.write_bytes(b"x")
    assert in_workers(2, train, killed, folders) == kept
    (restored,) = [e for e in read_events(runs.store_of(killed)) if e["kind"] == "restore"]
    files = read_contents(runs.store_of(killed), CheckpointId(2, 1)).files
    sizes = {file.name: file.size for file in files}
    assert restored["step"] == 2
    assert restored["storage_bytes"] == sizes.pop("state.json")
    assert restored["nearby_bytes"] == sum(sizes.values())
    ends = [runs.checkpoints(config)[5] for config in (undisturbed, killed)]
    assert runs.differences(*ends) == []
    assert [os.listdir(Path(folder) / OWN) for folder in folders] == [[], []]


class SlowDisk(LocalCache):
    def keep(self, *args: Any) -> None:
        time.sleep(1.0)
        super().keep(*args)


def leave(world: World, config: RunConfig, folders: list[str], seconds: float) -> Any:
    """A worker that hears of its machine's end in its second step."""
    trainer.LocalCache = SlowDisk  # type: ignore[attr-defined,misc]
    host = Warned(2, seconds=seconds) if world.rank else Host()
    return runs.train(world, config, host=host, nearby=folders[world.rank])


@pytest.mark.slow
def test_who_leaves_by_a_notice_has_kept_the_last_checkpoint(tmp_path: Path) -> None:
    config = runs.tiny(tmp_path, "warned", checkpoint_interval=100, valid_examples=0)
    folders = [str(tmp_path / "machine-0"), str(tmp_path / "machine-1")]
    for error in in_workers(2, leave, config, folders, 20.0):
        assert isinstance(error, LeavingError)
    (told,) = [event for event in read_events(runs.store_of(config)) if event["kind"] == "leave"]
    for folder in folders:
        assert [name[:14] for name in kept_in(Path(folder), "warned")] == [
            f"step-{told['committed']:09d}"
        ]


# The flag.


def test_copies_are_kept_where_storage_is_not_a_folder_or_where_one_is_told_to(
    tmp_path: Path, memory: Store
) -> None:
    local = Store.open(str(tmp_path), "run")
    assert cache_folder("auto", local, "/tmp") is None
    assert cache_folder("auto", memory, "/tmp") == "/tmp"
    assert [cache_folder("off", store, "/tmp") for store in (local, memory)] == [None, None]
    assert [cache_folder("/d", store, "/tmp") for store in (local, memory)] == ["/d", "/d"]


def test_the_flag_is_auto_off_or_an_absolute_path() -> None:
    argv = ["--name", "r", "--synthetic", "8"]
    assert parse_run("base", argv).checkpoint.nearby == "auto"
    assert parse_run("base", [*argv, "--nearby", "/mnt/disk"]).checkpoint.nearby == "/mnt/disk"
    with pytest.raises(
        ConfigError, match="--nearby must be auto, off or an absolute path, got 'x'"
    ):
        parse_run("base", [*argv, "--nearby", "x"])
