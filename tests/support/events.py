"""Events for tests; an example of each kind, and the document made of them: python -m tests.support.events > docs/events.md"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, make_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from raymat.train.observability.attempt_events import (
    ArithmeticChanged,
    AttemptEnded,
    AttemptStarted,
    DatasetGrown,
    DatasetMoved,
    LastSign,
    MachineLost,
    Participant,
    PreemptionNoticed,
    PreemptionWithdrawn,
    RoomChanged,
    RunExtended,
    RunLaunched,
    WorkersFailed,
    WorkersLeft,
    WorkerStuck,
)
from raymat.train.observability.checkpoint_events import (
    CheckpointCommitted,
    CheckpointRestored,
    CheckpointsDeleted,
    CheckpointSkipped,
    IntervalChosen,
    LocalCopiesOff,
    LocalCopyDamaged,
    NothingDeleted,
    SaveFailed,
    SaveSkipped,
)
from raymat.train.observability.event import Event
from raymat.train.observability.training_events import (
    AverageStarted,
    FirstStepDone,
    ImageReplaced,
    LoggerBehind,
    LoggerCaughtUp,
    MattesDoubted,
    RatesLowered,
    StepSkipped,
    WeightsInitialized,
)
from raymat.train.observability.validation_events import (
    ValidationBegun,
    ValidationDamaged,
    ValidationDied,
    ValidationDone,
    ValidationFound,
    ValidationInLoop,
    ValidationLost,
    ValidationRunning,
)

CHECKPOINT = "step-000000120-a002"
SIGN = LastSign(host="a", pid=9, silent=1.2, doing="training", step=130, since=1795857843.5)

EXAMPLES: tuple[Event, ...] = (
    RunLaunched(pid=7, host="a", lease="00000001", resumed=False, config={"stage": "base"}),
    RunExtended(step=800, examples=6400),
    DatasetGrown(
        step=800, examples=6400, from_example=6400, added={"pairs": 4}, listing="5f3a", valid_since=0
    ),
    DatasetMoved(files=40, places={"dataset": "s3://copy/data"}),
    AttemptStarted(
        world=1,
        ranks=[Participant(rank=0, pid=9, host="a")],
        stage="base",
        total_steps=800,
        device="cpu",
        arithmetic=[{"vectors": "AVX512", "torch": "2.13.0"}],
    ),
    ArithmeticChanged(step=120, difference="another processor (vectors AVX512 -> AVX2)"),
    AttemptEnded(
        outcome="complete",
        reason="the run's length",
        step=800,
        replaced=0,
        waited=0.0,
        saves={"begun": 7, "written": 7},
    ),
    AttemptEnded(outcome="failed", error="TrainingError: the feed ended before step 7"),
    PreemptionNoticed(reason="node 1f is drained", deadline=None, step=130),
    PreemptionWithdrawn(reason="node 1f is drained", step=131),
    WorkersLeft(reason="node 1f is drained", step=132, committed=132),
    WorkerStuck(
        rank=1, what="waiting for a batch", step=130, since=1795857843.5, stack="feed.py:12 in next"
    ),
    RoomChanged(workers=3, least=1),
    MachineLost(
        node="1f" * 28, ip="10.0.0.7", reason="health check failed", ranks=[], still=6.5
    ),
    WorkersFailed(ranks={"1": "WorkerCrashedError"}, last={"1": SIGN}),
    WeightsInitialized(url="base.pth", summary="init base.pth: 300 tensors, new: refiner (38)"),
    AverageStarted(step=120, summary="the average of the weights begins with those of step 120"),
    FirstStepDone(step=121, seconds=2.5, batch=1.5),
    StepSkipped(step=125, examples=[1000, 1007], loss="nan", gradient_norm="inf"),
    RatesLowered(step=400, reductions=1, lr={"backbone": 5e-5, "aspp": 0.00025}),
    MattesDoubted(likely="inverted", count=61, looked=80, path="train/pha/a.png"),
    LoggerBehind(logger="mlflow", step=120, reason="MLflow: no answer"),
    LoggerCaughtUp(logger="mlflow", step=160),
    ImageReplaced(path="train/fgr/a.png", reason="truncated", example=12),
    CheckpointRestored(
        attempt=3, checkpoint=CHECKPOINT, step=120, seconds=0.4, nearby_bytes=0, storage_bytes=463008
    ),
    CheckpointSkipped(checkpoint=CHECKPOINT, step=120, reason="torn: no manifest"),
    CheckpointCommitted(checkpoint=CHECKPOINT, step=120, seconds=0.4, stall=0.01, bytes=463008),
    IntervalChosen(step=120, interval=300, step_seconds=0.5, stall=0.01, save=0.4, losses=2, every=7200.0),
    CheckpointsDeleted(checkpoints=[CHECKPOINT], torn=True),
    NothingDeleted(right="s3:DeleteObject"),
    SaveFailed(checkpoint=CHECKPOINT, given_up=False, error="cannot write s3://b/run: no answer"),
    SaveSkipped(step=160),
    LocalCopyDamaged(checkpoint=CHECKPOINT, file="shard-00000-of-00002.safetensors", reason="its digest is another"),
    LocalCopiesOff(reason="No space left on device"),
    ValidationDone(
        step=400, loss=0.5, metrics={"sad": 0.25, "mse": None}, seconds=9.0, place="loop", waited=0.0, best=True
    ),
    ValidationBegun(step=400, place="a core of this machine", tries=1),
    ValidationRunning(step=400, who="process 12 on a"),
    ValidationFound(step=400, seconds=9.0),
    ValidationDied(step=400, error="its process died", tries=1),
    ValidationInLoop(step=400, reason="no core is free"),
    ValidationDamaged(
        path="validations/step-000000400-a002.json", reason="its digest is wrong"
    ),
    ValidationLost(step=400, reason="the validation set has changed"),
)  # fmt: skip
"""In the order of their classes."""


def note(kind: str, **values: Any) -> Event:
    """Return an event of any kind with any fields."""
    names = [(name, type(value)) for name, value in values.items()]
    made = make_dataclass(
        "Note", names, bases=(Event,), namespace={"kind": kind}, frozen=True, kw_only=True
    )
    event: Event = made(**values)
    return event


HEAD = """# Events

A run writes what happens to it as JSON lines into its `events/` folder: one object an event, in the order in which
each process writes them. Every event has `time` (Unix seconds), `attempt` (the attempt's number; a driver names the
newest one), `writer` (`rank-00000`, ..., or `driver`) and `kind`; then the fields below. A field that is marked
optional may be missing. Some events are also lines that the driver prints. Readers should pass over kinds and fields
that they do not know.

Made by `python -m tests.support.events > docs/events.md`."""


def document() -> str:
    """Return the document of all kinds of events."""
    sections, seen = [HEAD], set()
    for example in EXAMPLES:
        if example.kind not in seen:
            sections.append("\n".join(_section(example)))
        seen.add(example.kind)
    return "\n\n".join(sections) + "\n"


def _section(example: Event) -> Iterator[str]:
    yield f"## {example.kind}\n\n{example.__doc__}\n"
    hints = get_type_hints(type(example), include_extras=True)
    yield "| field | type | |\n| --- | --- | --- |"
    for field in fields(example):
        kind, *_, about = get_args(hints[field.name])
        name = kind.__name__ if get_origin(kind) is None and isinstance(kind, type) else str(kind)
        name = name.replace("typing.", "").replace("raymat.train.observability.attempt_events.", "")
        optional = "optional; " if field.default is None else ""
        yield f"| `{field.name}` | `{name.replace('|', chr(92) + '|')}` | {optional}{about} |"
    yield f"\n```json\n{json.dumps(example.to_dict())}\n```"
    if example.line is not None:
        yield f"\nThe driver prints: `{example.line}`"


if __name__ == "__main__":
    print(document(), end="")
