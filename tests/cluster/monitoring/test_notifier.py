"""Laws of a run's news: what is told, when, how often, and that no secret is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raymat.cluster.blackboard import Line
from raymat.cluster.monitoring.notifier import Alarm, Alarms, Notifier
from raymat.errors import ClusterError, StoppedError
from tests.support.kit import PROGRESS, tiny

FAILED = Line("workers failed: rank 0: gone", "warning", "failure")


class Kept:
    """Webhooks that keep what they are given."""

    def __init__(self) -> None:
        self.news: list[Mapping[str, Any]] = []
        self.closed = False

    def send(self, news: Mapping[str, Any]) -> None:
        self.news.append(news)

    def close(self, seconds: float = 5.0) -> None:
        self.closed = True


def notifier(tmp_path: Path, kept: Kept, clock: list[float], **options: Any) -> Notifier:
    config = tiny("base", tmp_path, "night", **options)
    return Notifier(config, kept, lambda: clock[0])  # type: ignore[arg-type]


def test_failures_are_told_beyond_their_number_then_each_time_it_has_doubled() -> None:
    alarms = Alarms(deaths=3, seconds=1e9, now=0.0)
    told = [bool(alarms.look(1, None, 0.0)) for _ in range(16)]
    assert [number for number, each in enumerate(told, start=1) if each] == [4, 8, 16]


def test_a_time_without_a_commit_is_told_once_until_there_is_one() -> None:
    alarms = Alarms(deaths=9, seconds=60.0, now=100.0)
    assert alarms.look(0, None, 159.0) == []
    assert alarms.look(0, None, 160.0) == [Alarm("no_commit", "no commit for 1 min, none so far")]
    assert alarms.look(0, None, 900.0) == []
    assert alarms.look(0, 12, 901.0) == []
    assert alarms.look(0, 12, 960.0) == []
    assert alarms.look(0, 12, 961.0) == [
        Alarm("no_commit", "no commit for 1 min, the newest is of step 12")
    ]


def test_news_says_which_run_where_and_how_far(tmp_path: Path) -> None:
    kept = Kept()
    with notifier(tmp_path, kept, [0.0]) as told:
        told.found("s3://bucket/runs/night")
        told.look(PROGRESS, [])
        told.ended("s3://bucket/runs/night is complete: step 800 of 800")
    (news,) = kept.news
    assert kept.closed
    assert {name: news[name] for name in news if name not in ("time", "host")} == {
        "run": "night",
        "stage": "base",
        "kind": "end",
        "text": "night: s3://bucket/runs/night is complete: step 800 of 800",
        "step": 120,
        "total_steps": 800,
        "commit_step": 112,
        "attempt": 2,
        "url": "s3://bucket/runs/night",
    }


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (
            ClusterError("no room at https://host/x?token=cAn4ry"),
            "failure",
            "night: no room at https://host/x?...",
        ),
        (StoppedError("stopped: as told"), "stopped", "night: stopped: as told"),
        (MemoryError("no memory"), "failure", "night: no memory"),
    ],
)
def test_an_error_that_ends_the_run_is_told_without_secrets(
    tmp_path: Path, error: Exception, kind: str, text: str
) -> None:
    kept = Kept()
    with pytest.raises(type(error)), notifier(tmp_path, kept, [0.0]):
        raise error
    (news,) = kept.news
    assert (news["kind"], news["text"], news["step"]) == (kind, text, None)


def test_failed_workers_are_counted_by_the_lines_that_tell_of_them(tmp_path: Path) -> None:
    kept, clock = Kept(), [0.0]
    told = notifier(tmp_path, kept, clock, notify_deaths=2, notify_no_commit="90s")
    told.look(PROGRESS, [FAILED, Line("resumed", kind="restore"), FAILED])
    told.look(dataclasses.replace(PROGRESS, attempt=4), [FAILED])
    clock[0] = 90.0
    told.look(PROGRESS, [])
    assert [(news["kind"], news["text"]) for news in kept.news] == [
        ("deaths", "night: workers failed 3 times since the driver started"),
        ("no_commit", "night: no commit for 1 min, the newest is of step 112"),
    ]


def test_a_notifier_without_addresses_tells_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYMAT_NOTIFY", raising=False)
    said: list[str] = []
    with Notifier.of(tiny("base", tmp_path, "night"), said.append) as told:
        told.look(PROGRESS, [])
        told.ended("complete")
    assert said == []
