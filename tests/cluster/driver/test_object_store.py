"""How large Ray's object store has to be, and what is said where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymat.cluster.driver import object_store
from raymat.cluster.driver.object_store import check_store, needed_bytes, own_store_bytes
from tests.support.kit import tiny

GIB = 2**30


def test_the_store_holds_the_blocks_of_two_read_tasks_in_each_slot_and_of_each_worker(
    tmp_path: Path,
) -> None:
    large = tiny("refine", tmp_path, "run", resolution=2048, crop="1024:2048", batch_size=4)
    # 4 x 2048 x 2048 x 7 bytes a row, 2 rows in a task of 256 MiB; half of 16 cores decode, a worker trains.
    assert needed_bytes(large, 16) == 2 * 9 * 2 * 4 * 2048 * 2048 * 7
    few = tiny(
        "refine", tmp_path, "run", resolution=2048, crop="1024:2048", batch_size=4, decode_tasks=3
    )
    assert needed_bytes(few, 16) == 2 * 4 * 2 * 4 * 2048 * 2048 * 7


@pytest.mark.parametrize(
    ("free", "cores", "expected"),
    [
        (100 * GIB, 16, 2 * 9 * 2 * 4 * 2048 * 2048 * 7),
        (5 * GIB, 16, 2 * GIB),
        (GIB // 16, 16, 80 * 2**20),
    ],
)
def test_an_own_rays_store_is_what_the_plan_needs_and_the_machine_has(
    free: int, cores: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "available_bytes", lambda: free)
    monkeypatch.setattr(object_store.os, "cpu_count", lambda: cores)
    large = tiny("refine", tmp_path, "run", resolution=2048, crop="1024:2048", batch_size=4)
    assert own_store_bytes(large) == expected


def test_a_small_run_takes_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "available_bytes", lambda: 100 * GIB)
    assert own_store_bytes(tiny("base", tmp_path, "run")) == 2**28


def test_too_small_a_store_of_a_joined_ray_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = tiny("refine", tmp_path, "run", resolution=2048, crop="1024:2048", batch_size=4)
    check_store(large, {"CPU": 16.0, "object_store_memory": 4 * GIB})
    assert capsys.readouterr().err == ""
    check_store(large, {"CPU": 16.0, "object_store_memory": 1 * GIB})
    assert capsys.readouterr().err == (
        "Ray's object store has 1.0 GiB, the run fills 3.9 GiB: decoding will be slower; start Ray with a larger "
        "--object-store-memory, or train with fewer --decode-tasks\n"
    )
