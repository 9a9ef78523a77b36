"""Options that must not change when a run is resumed; each option's field says whether it may."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from raymat.config.options import OnResume, options_of
from raymat.config.run import RunConfig, all_options, to_dict
from raymat.errors import ConfigError

RULES = {
    name: option.on_resume
    for name, option in ({"stage": options_of(RunConfig)["stage"]} | all_options()).items()
}
"""The rule of each option."""

DATASET = tuple(name for name, rule in RULES.items() if rule is OnResume.GROWABLE)
"""Options that may change only where the run's dataset has grown."""

LENGTH = tuple(name for name, rule in RULES.items() if rule is OnResume.LENGTH)
"""Options whose new values continue a run to another length."""


def refuse_changes(
    stored: RunConfig, asked: RunConfig, what: str, but: Collection[str] = ()
) -> None:
    """Refuse a configuration that changes fixed options of the one a run was begun with.

    `what` was begun with `stored`; changes of the options in `but` are allowed.

    Raises:
        ConfigError: naming `what`, each changed option with both values, and the fix.
    """
    changes = promise_changes(stored, asked)
    changes = {name: values for name, values in changes.items() if name not in but}
    if changes:
        told = ", ".join(
            f"--{name.replace('_', '-')} was {old}, is {new}"
            for name, (old, new) in changes.items()
        )
        grown = changes.keys() <= set(DATASET)
        raise ConfigError(
            f"{what} was begun with another configuration: {told}; "
            f"use the old one, or another --name{', or --grow-dataset for more data' if grown else ''}"
        )


def promise_changes(stored: RunConfig, asked: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return the fixed options whose values differ, as {name: (stored, asked)}."""
    old, new = to_dict(stored), to_dict(asked)
    free = {OnResume.FREE, OnResume.LENGTH}
    if "plateau" not in stored.schedules.values():
        free.add(OnResume.FIXED_BY_PLATEAU)
    changed = {
        name: (old[name], new[name])
        for name, rule in RULES.items()
        if rule not in free and old[name] != new[name]
    }
    # Beside and auto are alike to a plateau: with both, a result counts from the next validation on.
    if "loop" not in changed.get("validation", "loop"):
        del changed["validation"]
    return {
        name: (was, now)
        for name, (was, now) in changed.items()
        if not (RULES[name] is OnResume.ADDABLE and was is None)
    }
