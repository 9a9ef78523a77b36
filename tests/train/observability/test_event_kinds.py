"""Every kind of event has a class, which gives its fields in storage, its line for people and its place in docs/events.md."""

from __future__ import annotations

import ast
import json
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from raymat.storage.store import Store
from raymat.train.observability.event import Event
from raymat.train.observability.event_kinds import KINDS, parse_event
from raymat.train.observability.events import EventLog, read_events
from tests.support.events import EXAMPLES, document

ROOT = Path(__file__).parents[3]

LINES = {
    "arithmetic": "resumed after step 120 on another processor (vectors AVX512 -> AVX2); bits may differ from here on",
    "move": "the dataset has moved: --dataset is now s3://copy/data; all 40 files have the same names and sizes",
    "longer": "the run had ended after 6400 examples (step 800), and goes on",
    "notice": "notice after step 130: node 1f is drained",
    "machine_lost": "machine 10.0.0.7 (node 1f1f1f1f) was lost: training stood still for 6.5 s",
    "leave": "the workers leave after step 132, step 132 is committed",
    "stuck": "rank 1 stands still waiting for a batch after step 130; its stack is in the events",
    "init": "init base.pth: 300 tensors, new: refiner (38)",
    "ema": "the average of the weights begins with those of step 120",
    "nonfinite": "step 125 was skipped: loss nan, gradient norm inf",
    "plateau": "learning rates lowered after step 400: backbone 5e-05, aspp 0.00025",
    "logger_behind": "mlflow does not take rows (MLflow: no answer): they stay in metrics/, and are sent later",
    "logger_caught_up": "mlflow has the rows up to step 160 again",
    "mattes": "61 of the first 80 mattes look inverted: opaque along the sides, transparent in the middle "
    "(train/pha/a.png)",
    "replaced": "cannot use train/fgr/a.png: truncated; another stands in for it, as for example 12",
    "restore": "resumed from step-000000120-a002 (attempt 3)",
    "skip": "skipped step-000000120-a002: torn: no manifest",
    "delete": "removed step-000000120-a002: left unfinished by an earlier attempt",
    "no_delete": "this account may not delete in the run's folder (s3:DeleteObject is missing): it trains, every checkpoint "
    "is kept, and nothing is merged",
    "save_failed": "saving step-000000120-a002 fails and is tried again: cannot write s3://b/run: no answer",
    "validation_damaged": "validations/step-000000400-a002.json is not believed: its digest is wrong",
    "validation": "validation of step 400: loss 0.5, sad 0.25, mse not finite, the best so far",
    "validation_died": "the validation of step 400 died: its process died",
    "validation_lost": "the validation of step 400 is lost: the validation set has changed",
}


@pytest.fixture(scope="module")
def nodes() -> list[ast.AST]:
    """All of raymat's syntax trees."""
    paths = (ROOT / "raymat").rglob("*.py")
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    return [node for tree in trees for node in ast.walk(tree)]


def test_every_class_of_events_is_a_known_kind_with_an_example(nodes: list[ast.AST]) -> None:
    names = {cls.__name__ for cls in KINDS.values()}
    bases = [
        (node.name, ast.unparse(base))
        for node in nodes
        if isinstance(node, ast.ClassDef)
        for base in node.bases
    ]
    assert Counter(name for name, base in bases if base == "Event") == Counter(names)
    assert list(dict.fromkeys(example.kind for example in EXAMPLES)) == list(KINDS)


def test_every_kind_is_written_and_nothing_else(nodes: list[ast.AST]) -> None:
    """`emit` takes nothing but an Event, says its type; whoever emits one names its class."""
    assert get_type_hints(EventLog.emit)["event"] is Event
    made = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    assert {cls.__name__ for cls in KINDS.values()} <= made


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.kind)
def test_an_event_comes_back_from_storage_as_it_was(example: Event, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), "run")
    log = EventLog.for_rank(store, 3, 0)
    log.emit(example)
    (stored,) = read_events(store)
    assert parse_event(stored) == example
    own = [name for name in example.to_dict() if name != "attempt"]
    assert list(stored) == ["time", "attempt", "writer", *own]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.kind)
def test_the_driver_prints_the_line_of_an_event(example: Event) -> None:
    assert example.line == LINES.get(example.kind)


def test_a_save_that_is_given_up_says_so() -> None:
    stored = {"kind": "save_failed", "checkpoint": "c", "given_up": True, "error": "e"}
    event = parse_event(stored)
    assert event is not None
    assert event.line == "saving c was given up: e"


def test_fields_that_do_not_apply_are_left_out_and_unknown_numbers_are_null() -> None:
    stored = {example.kind: example.to_dict() for example in EXAMPLES}
    assert stored["end"] == {
        "kind": "end", "outcome": "failed", "error": "TrainingError: the feed ended before step 7",
    }  # fmt: skip
    assert stored["notice"]["deadline"] is None


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"kind": None},
        {"kind": ["skip"]},
        {"kind": "of a later version", "step": 1},
        {"kind": "skip", "checkpoint": "step-000000120-a002"},
    ],
)
def test_an_event_of_another_version_has_no_type(stored: dict[str, Any]) -> None:
    assert parse_event(stored) is None


def test_fields_of_a_later_version_are_left_out() -> None:
    for example in EXAMPLES:
        assert parse_event(example.to_dict() | {"attempt": 3, "more": 1}) == example


def test_the_events_of_a_kept_run_have_types() -> None:
    store = Store.open(str(ROOT / "tests/kept/0.1.0"), "run")
    stored = read_events(store)
    assert {event["kind"] for event in stored} == {"start", "validation", "first_step", "commit"}
    for event in stored:
        typed = parse_event(event)
        assert typed is not None
        head = {name: event[name] for name in ("time", "attempt", "writer")}
        assert json.dumps(head | typed.to_dict()) == json.dumps(event)


def test_every_field_of_every_event_says_what_it_is() -> None:
    """`document` fails where one does not."""
    assert all(cls.__doc__ and not cls.__doc__.startswith(cls.__name__) for cls in KINDS.values())
    rows = [line for line in document().splitlines() if line.startswith("| `")]
    assert len(rows) == sum(len(fields(cls)) for cls in KINDS.values())


def test_the_document_of_the_events_is_up_to_date() -> None:
    """Else: python -m tests.support.events > docs/events.md"""
    assert (ROOT / "docs/events.md").read_text(encoding="utf-8") == document()
