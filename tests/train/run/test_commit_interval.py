"""How often a run commits if that is left to it."""

from __future__ import annotations

import pytest

from raymat.train.run.commit_interval import (
    Costs,
    Experience,
    best_seconds,
    best_steps,
    next_interval,
)

HOUR = 3600.0


@pytest.mark.parametrize(
    ("cost", "mean", "seconds"),
    [
        (0.5, HOUR, 59.67),  # sqrt(2 * 0.5 * 3600) = 60
        (60.0, 24 * HOUR, 3180.06),  # sqrt: 3219.94
        (10.0, 600.0, 102.98),
        (100.0, 40.0, 40.0),  # a checkpoint takes longer than machines live
    ],
)
def test_the_interval_is_dalys(cost: float, mean: float, seconds: float) -> None:
    assert best_seconds(cost, mean) == pytest.approx(seconds, abs=0.01)


def test_before_any_loss_one_in_eight_hours_of_a_worker_is_expected() -> None:
    assert Experience().mean_seconds(1) == 8 * HOUR
    assert Experience().mean_seconds(16) == HOUR / 2


def test_what_was_seen_outweighs_what_was_expected() -> None:
    seen = Experience(worker_seconds=92 * HOUR, losses=49)
    assert seen.mean_seconds(1) == 2 * HOUR
    assert Experience(worker_seconds=792 * HOUR).mean_seconds(1) == 800 * HOUR


def test_an_attempt_that_left_upon_notice_is_no_loss() -> None:
    assert Experience(losses=2).after_attempts(1).losses == 3
    assert Experience(losses=2, noticed=True).after_attempts(1) == Experience(losses=2)
    assert Experience(losses=2, noticed=True).after_attempts(3).losses == 4


def test_a_cheap_checkpoint_is_taken_every_minute_or_so_and_a_dear_one_rarely() -> None:
    cheap = Costs(step=0.1, stall=0.01, save=0.5)
    dear = Costs(step=0.1, stall=5.0, save=60.0)
    assert best_steps(cheap, Experience(), workers=1) == 758
    assert best_steps(dear, Experience(), workers=1) == 6735
    assert best_steps(cheap, Experience(losses=99), workers=1) == 75


def test_a_save_is_on_its_way_a_quarter_of_the_time_at_most() -> None:
    slow = Costs(step=1.0, stall=0.0, save=300.0)
    assert best_steps(slow, Experience(losses=10**6), workers=8) == 1200


def test_an_interval_grows_fourfold_at_most_and_does_not_flutter() -> None:
    assert [next_interval(20, best) for best in (1000, 60, 24, 17, 3)] == [80, 60, 20, 20, 3]


def test_experience_is_stored_and_read() -> None:
    kept = Experience(worker_seconds=12.5, losses=3, noticed=True, interval=77)
    assert Experience.read(kept.store()) == kept
    assert Experience.read(None) == Experience()
