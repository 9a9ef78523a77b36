"""An event as a line for people."""

from __future__ import annotations

from typing import Any


def told(event: dict[str, Any]) -> str | None:
    """An event as a line for whoever watches the driver; None for those that only the log keeps."""
    kind = event["kind"]
    if kind == "restore":
        return f"resumed from {event['checkpoint']} (attempt {event['attempt']})"
    if kind == "skip":
        return f"skipped {event['checkpoint']}: {event['reason']}"
    if kind == "replaced":
        return (
            f"cannot use {event['path']}: {event['reason']}; another stands in for it, as for "
            f"example {event['example']}"
        )
    if kind == "notice":
        return f"notice after step {event['step']}: {event['reason']}"
    if kind == "leave":
        return (
            f"the workers leave after step {event['step']}, step {event['committed']} is committed"
        )
    if kind == "stuck":
        return (
            f"rank {event['rank']} stands still {event['what']} after step {event['step']}; "
            "its stack is in the events"
        )
    if kind == "save_failed":
        what = "was given up" if event["given_up"] else "fails and is tried again"
        return f"saving {event['checkpoint']} {what}: {event['error']}"
    if kind == "validation_died":
        return f"the validation of step {event['step']} died: {event['error']}"
    if kind == "validation_lost":
        return f"the validation of step {event['step']} is lost: {event['reason']}"
    if kind == "plateau":
        lowered = ", ".join(f"{part} {rate:.3g}" for part, rate in event["lr"].items())
        return f"learning rates lowered after step {event['step']}: {lowered}"
    if kind == "nonfinite":
        return f"step {event['step']} was skipped: loss {event['loss']}, gradient norm {event['gradient_norm']}"
    return str(event["summary"]) if kind in ("init", "ema") else None
