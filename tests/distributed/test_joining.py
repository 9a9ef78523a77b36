"""When more workers are worth a restart."""

from __future__ import annotations

from raymat.distributed.joining import worth_after


def test_a_restart_for_more_workers_is_worth_it_when_more_is_done_by_the_next_change() -> None:
    assert worth_after(1, 2, restart_seconds=15) == 0.0  # 60 s on one are 60, 45 s on two are 90
    assert worth_after(1, 2, restart_seconds=30) == 60.0
    assert worth_after(8, 9, restart_seconds=15) == 135.0
    assert worth_after(8, 16, restart_seconds=15) == 0.0
