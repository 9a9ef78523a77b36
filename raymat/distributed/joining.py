"""When workers that train make way for more of them: a restart costs all of them time, and has to pay."""

from __future__ import annotations

ROOM_SECONDS = 10.0
"""How long room for more workers must have stood to be worth a restart: machines come in groups. Meanwhile the machines that
came start their workers' processes, beside those that train."""
LEAST_EXPECTED = 60.0
"""For so many seconds, at least, machines are expected to stay; then for as long again as they have been there."""


def worth_after(workers: int, possible: int, restart_seconds: float) -> float:
    """Return for how many seconds `workers` workers must have been there before `possible` ones (more) are worth a restart.

    The restart costs `restart_seconds` of all workers' time; then the work goes `possible / workers` times as fast, for as
    long as the number is expected to stand. It pays if more is done by then:
    `possible * (expected - restart_seconds) > workers * expected`.
    """
    needed = possible * restart_seconds / (possible - workers)
    return 0.0 if needed < LEAST_EXPECTED else needed
