"""Each rank's own stream: the same micro-batches as without Ray, made ahead, each checked as it comes."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from raymat.cluster.worker import datasource, ray_feed, window_stream
from raymat.cluster.worker.datasource import (
    StreamPlan,
    Window,
    cut,
    make_row,
    rows_per_task,
)
from raymat.cluster.worker.ray_feed import RayFeed, slots_of
from raymat.cluster.worker.window_stream import WindowStream, read_row
from raymat.config.values import Range
from raymat.data.batch import Geometry, MicroBatch
from raymat.data.dataset.source import SourceSpec
from raymat.data.feed import LocalFeed, Stretch
from raymat.data.sample_order import SampleOrder
from raymat.distributed.world import World
from raymat.errors import ClusterError
from tests.support.heads import wait_for

ORDER = SampleOrder(0, 20, 20, 8, Range(16, 32), 160, 6, 6, 12, accumulate=2)
PLAN = StreamPlan(SourceSpec.synthetic(20, 0, 32, 6), ORDER, Geometry("base", 32))
LARGE = StreamPlan(
    SourceSpec.synthetic(1, 0, 64),
    SampleOrder(0, 100, 100, 4, Range(1024, 2048), 10**6),
    Geometry("refine", 2048),
)
TWO = (World(0, 2), World(1, 2))


def table_of(window: Window, rows: range) -> pa.Table:
    """The rows of a block."""
    return pa.concat_tables(datasource.read_rows(PLAN, window, rows))


def columns(batches: Iterator[MicroBatch]) -> list[dict[str, Any]]:
    """All that there is to know of batches."""
    rows = [batch.to_columns() for batch in batches]
    return [
        {k: bytes(v) if isinstance(v, memoryview) else v for k, v in row.items()} for row in rows
    ]


def streams() -> list[str]:
    """The threads that read a stream."""
    names = [thread.name for thread in threading.enumerate()]
    return sorted(name for name in names if name.startswith(("raymat-train-", "raymat-valid-")))


# Rows, tasks and blocks.


def test_a_row_has_a_worker_s_part_of_each_chunk_of_a_step() -> None:
    rows = [make_row(PLAN, Window("train", 3, 5, world), row) for world in TWO for row in (0, 1)]
    assert [row.step for row in rows] == [3, 4, 3, 4]
    assert [row.numbers for row in rows[::2]] == [(24, 25, 28, 29), (26, 27, 30, 31)]
    assert [row.chunks for row in rows] == [(2, 2)] * 4


def test_rows_that_were_made_leave_nothing_in_the_process() -> None:
    """The pixels of ten rows are 270,000 bytes."""

    def remaining() -> int:
        for _ in datasource.read_rows(PLAN, Window("train", 0, 10, World()), range(10)):
            pass
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first = remaining()
        assert remaining() - first < 50_000
    finally:
        tracemalloc.stop()


def test_a_read_task_makes_as_many_rows_as_last_and_fit() -> None:
    assert rows_per_task(LARGE, World(0, 4)) == 9  # 256 MiB of 29 MB rows
    assert rows_per_task(LARGE, World()) == 2
    assert rows_per_task(PLAN, World()) == 38  # 1.5 s of 8 samples of 32 pixels


def test_the_rows_of_a_window_are_cut_into_work_for_several_cores() -> None:
    assert cut(20, 9, cold=False) == [range(5), range(5, 10), range(10, 15), range(15, 20)]
    assert cut(3, 9, cold=False) == [range(1), range(1, 2), range(2, 3)]
    assert [len(rows) for rows in cut(1000, 9, cold=False)] == [9] * 111 + [1]


def test_who_is_waited_for_begins_with_short_tasks() -> None:
    assert [len(rows) for rows in cut(40, 9, cold=True)] == [1, 2, 4, 8, 9, 9, 7]
    assert [rows.start for rows in cut(40, 9, cold=True)] == [0, 1, 3, 7, 15, 24, 33]


def test_the_pixels_of_a_batch_are_those_of_its_block_and_none_are_copied() -> None:
    mine = Window("train", 3, 6, TWO[1])
    parts = [table_of(mine, range(2)).combine_chunks(), table_of(mine, range(2, 3))]
    table = pa.concat_tables(parts)
    for row in range(3):
        batch, made = read_row(table, row, mine, 3 + row), make_row(PLAN, mine, row)
        assert columns(iter([batch])) == columns(iter([made]))
        for name in ("fgr", "pha", "bgr"):
            pixels = getattr(batch, name)
            within = [
                part.address <= pixels.ctypes.data < part.address + part.size
                for chunk in table.column(name).chunks
                for part in [chunk.buffers()[2]]
            ]
            assert within == [row < 2, row == 2]


def test_a_batch_of_no_examples_comes_out_of_its_row() -> None:
    mine = Window("train", 3, 4, World(8, 9))
    assert read_row(table_of(mine, range(1)), 0, mine, 3).fgr.shape[0] == 0


def test_a_row_of_another_step_rank_world_or_kind_is_refused_in_one_line() -> None:
    mine = Window("train", 3, 6, TWO[1])
    table = table_of(mine, range(2))
    assert [read_row(table, row, mine, 3 + row).step for row in (0, 1)] == [3, 4]
    said = []
    for window, row, due in (
        (mine, 1, 3),
        (Window("train", 3, 6, TWO[0]), 0, 3),
        (Window("train", 3, 6, World(1, 3)), 0, 3),
        (Window("valid", 3, 6, TWO[1]), 0, 3),
        (Window("train", 2, 3, TWO[1]), 0, 3),
    ):
        with pytest.raises(ClusterError) as refused:
            read_row(table, row, window, due)
        said.append(str(refused.value))
    order = "the order of its blocks changed"
    assert said == [
        f"Ray Data handed rank 1 of 2 the train row of step 4 for rank 1 of 2, where the train row of step 3 was due: {order}",
        f"Ray Data handed rank 0 of 2 the train row of step 3 for rank 1 of 2, where the train row of step 3 was due: {order}",
        f"Ray Data handed rank 1 of 3 the train row of step 3 for rank 1 of 2, where the train row of step 3 was due: {order}",
        f"Ray Data handed rank 1 of 2 the train row of step 3 for rank 1 of 2, where the valid row of step 3 was due: {order}",
        f"Ray Data handed rank 1 of 2 the train row of step 3 for rank 1 of 2, where the train row of step 3 was due: {order}",
    ]


# Who may run, and how far ahead.


def test_the_read_tasks_of_a_run_are_divided_between_its_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def counted(cores: float, ranks: int, decode_tasks: int | None = None) -> list[int]:
        monkeypatch.setattr(ray_feed.ray, "cluster_resources", lambda: {"CPU": cores})
        worlds = [World(rank, ranks) for rank in range(ranks)]
        return [slots_of(world, decode_tasks, {"CPU": 0.5})() for world in worlds]

    assert counted(16, 3, decode_tasks=8) == [3, 3, 2]
    assert counted(16, 3, decode_tasks=2) == [1, 1, 1]
    assert counted(16, 1) == [16]  # 15.5: cores are not lost to rounding
    assert counted(16, 4) == [4, 4, 4, 4]
    assert counted(2, 2) == [1, 1]
    assert counted(0, 2) == [1, 1]


def test_tasks_of_two_windows_run_ahead_no_farther_than_those_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(WindowStream, "_read", lambda self: None)
    first = WindowStream(PLAN, Window("train", 0, 400, World()), lambda: 2)
    after = WindowStream(PLAN, Window("train", 400, 800, World()), lambda: 2, first)
    first.slots = after.slots = 2
    starts = [rows.start for rows in first._tasks]
    assert starts[:9] == [0, 1, 3, 7, 15, 31, 63, 101, 139]
    # Two tasks of 38 rows in each of two slots: 152.
    assert [first.admits(number, 1) for number in range(11)] == [True] * 9 + [False] * 2
    assert not first.admits(3, 2)
    assert not after.admits(0, 0)
    first._taken = 260
    assert [after.admits(number, 0) for number in range(2)] == [True, False]
    first.close()
    assert [after.admits(number, 0) for number in range(5)] == [True] * 4 + [False]


# Streams on Ray.


def test_each_rank_s_stream_is_what_a_local_feed_makes_and_the_next_windows_are_opened_ahead(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_feed, "MAX_TASKS_PER_WINDOW", 1)
    monkeypatch.setattr(ray_feed, "rows_per_task", lambda *_: 4)
    feeds = [RayFeed(PLAN, world, lambda: 1) for world in TWO]
    for feed in feeds:
        feed.expect([Stretch("valid"), Stretch("train", 3, 9)])
    # A window has four rows here: all of the validation, four steps, two steps. Two are open.
    assert streams() == ["raymat-train-3", "raymat-train-3", "raymat-valid-0", "raymat-valid-0"]
    for feed, world in zip(feeds, TWO, strict=True):
        local = LocalFeed(PLAN.source.open(), ORDER, PLAN.geometry, world)
        assert columns(feed.valid()) == columns(local.valid())
        assert columns(feed.train(3, 9)) == columns(local.train(3, 9))
    wait_for(lambda: not streams(), 60)


def test_what_was_not_expected_is_made_all_the_same_and_what_is_left_ends(cluster: None) -> None:
    feed = RayFeed(PLAN, World(), lambda: 1)
    feed.expect([Stretch("train", 3, 20), Stretch("valid")])
    batches = feed.train(8, 20)
    assert next(batches).step == 8
    assert next(feed.valid()).step == 0  # and the rest is never asked for
    assert next(batches).step == 9
    del batches
    gc.collect()
    wait_for(lambda: not streams(), 60)


def test_where_no_machine_takes_a_read_task_a_rank_makes_its_rows_itself(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while its machine is drained and no other has a core: Ray refuses the tasks at once."""
    read = window_stream.ray.data.read_datasource
    nowhere = {"label_selector": {"ray.io/node-id": "ab" * 28}, "fallback_strategy": []}
    monkeypatch.setattr(
        window_stream.ray.data,
        "read_datasource",
        lambda *a, **options: read(*a, **options | nowhere),
    )
    feed = RayFeed(PLAN, TWO[1], lambda: 1)
    feed.expect([Stretch("train", 3, 9), Stretch("valid")])
    local = LocalFeed(PLAN.source.open(), ORDER, PLAN.geometry, TWO[1])
    assert columns(feed.train(3, 9)) == columns(local.train(3, 9))
    assert columns(feed.valid()) == columns(local.valid())
    wait_for(lambda: not streams(), 60)


def test_an_error_of_a_read_task_is_raised_where_its_row_is_asked_for(cluster: None) -> None:
    broken: Any = SimpleNamespace(open=lambda: 1 / 0)
    feed = RayFeed(StreamPlan(broken, ORDER, PLAN.geometry), World(), lambda: 1)
    with pytest.raises(ZeroDivisionError):
        next(feed.train(0, 4))
