"""The thread that listens for notices, without a cluster."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from raymat.cluster.worker import notice_listener
from raymat.cluster.worker.notice_listener import NoticeListener
from raymat.train.loop.watchdog import Heartbeat


def test_the_thread_outlives_unexpected_errors_and_still_hears_and_signs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signed = threading.Event()
    failures = {"drain": 2, "sign": 2}

    def fail_twice(what: str) -> None:
        failures[what] -= 1
        if failures[what] >= 0:
            raise KeyError("unexpected")

    def draining() -> dict[str, float]:
        fail_twice("drain")
        return {"node": 5.0}

    def sign(*args: Any) -> None:
        fail_twice("sign")
        signed.set()

    context = SimpleNamespace(get_node_id=lambda: "node")
    monkeypatch.setattr(notice_listener.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(notice_listener, "draining_nodes", draining)
    monkeypatch.setattr(notice_listener, "POLL_SECONDS", 0.01)
    board: Any = SimpleNamespace(
        sign=sign, poll_leave_request=lambda: None, poll_goodput=lambda: None
    )
    listener = NoticeListener(board, rank=1)
    listener.register_heartbeat(Heartbeat())
    try:
        assert signed.wait(20)
        notice = listener.notice()
        assert notice is not None
        assert (notice.reason, notice.deadline) == ("node node is drained", 5.0)
    finally:
        listener.stop()
