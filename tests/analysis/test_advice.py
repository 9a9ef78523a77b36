"""Laws of what `raymat plan` sums its draws up to."""

from __future__ import annotations

from raymat.analysis.planning.advice import Spread
from raymat.cli.runs.plan_command import _spread


def test_a_few_very_bad_draws_leave_the_number_that_is_shown_inside_of_its_range() -> None:
    hours = Spread.of([10.0] * 10 + [11.0] * 87 + [900.0] * 3)
    assert (hours.low, hours.median, hours.high) == (10.0, 11.0, 11.0)
    assert hours.mean == 37.57
    assert _spread(hours, "{:.2f}") == "11.00 (10.00 to 11.00)"
