"""What a run has cost: workers that are there are paid for, whatever they do."""

from __future__ import annotations

from raymat.analysis.goodput.ledger import Ledger, Span
from raymat.analysis.goodput.money import bill
from raymat.analysis.goodput.table import goodput_table
from raymat.config.prices import Prices

HOUR = 3600.0
LEDGER = Ledger(
    (
        Span(0, 1 * HOUR, "start-up", 2, 0),
        Span(1 * HOUR, 9 * HOUR, "training", 2, 1),
        Span(9 * HOUR, 10 * HOUR, "data wait", 2, 1),
        Span(10 * HOUR, 11 * HOUR, "lost", 2, 1),
        Span(11 * HOUR, 15 * HOUR, "capacity", 2, 1),
        Span(15 * HOUR, 16 * HOUR, "undriven", 2, 1),
    )
)


def test_slots_without_a_machine_cost_nothing_and_all_others_the_price_of_spot() -> None:
    found = bill(LEDGER, Prices(spot=0.5))
    assert found.by_cause == {"training": 8.0, "data wait": 1.0, "lost": 1.0, "start-up": 1.0}
    assert (found.total, found.lost, found.undisturbed) == (11.0, 2.0, None)


def test_an_undisturbed_run_on_demand_pays_for_what_counts_alone() -> None:
    found = bill(LEDGER, Prices(spot=0.5, ondemand=2.0))
    assert found.undisturbed == 18 * 2.0
    assert found.words == (
        "cost 11.00, 2.00 of it for time that an undisturbed run does not have; "
        "undisturbed on demand 36.00: saved 25.00 (69%)"
    )


def test_a_run_that_cost_more_than_on_demand_has_saved_nothing() -> None:
    assert bill(LEDGER, Prices(spot=2.0, ondemand=1.0)).words.endswith(
        "undisturbed on demand 18.00: 26.00 less (144%)"
    )


def test_the_table_has_a_column_of_costs_where_prices_are_known() -> None:
    table = goodput_table(LEDGER, Prices(spot=0.5)).splitlines()
    assert table[0].split() == ["time", "of", "all", "workers", "hours", "share", "cost"]
    assert table[1].startswith("training             16.000  50.0%  8.00  steps that count")
    assert table[2].startswith("capacity             8.000   25.0%  -     no machine")
    assert table[-2:] == [
        "goodput 50.0% of 32.00 hours",
        "cost 11.00, 2.00 of it for time that an undisturbed run does not have",
    ]
    assert "cost" not in goodput_table(LEDGER)
