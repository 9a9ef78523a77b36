"""Laws of the threads around the network: order, bounds, errors where they belong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import pytest

from raymat.inference.pipeline import Behind, ahead


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_and_no_more_than_so_many_are_made_ahead(threads: int) -> None:
    made: list[int] = []

    def make(i: int) -> int:
        time.sleep(0.002 * (i % 3))
        made.append(i)
        return i

    taken = []
    with closing(ahead((partial(make, i) for i in range(30)), threads=threads, depth=4)) as results:  # type: ignore[type-var]
        for i in results:
            taken.append(i)
            assert len(made) <= len(taken) + 4
    assert taken == [*range(30)]


def test_an_error_is_raised_where_its_result_was_due() -> None:
    def make(i: int) -> int:
        if i == 2:
            raise ValueError("the third")
        return i

    results = ahead((partial(make, i) for i in range(9)), threads=1, depth=5)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(results)


def test_nothing_runs_on_when_the_results_are_given_up() -> None:
    def tasks() -> Iterator[Callable[[], int]]:
        while True:
            yield lambda: 1

    before = threading.active_count()
    results = ahead(tasks(), threads=2, depth=3)
    assert next(results) == 1
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_calls_behind_are_made_in_order_and_their_error_comes_back() -> None:
    done: list[int] = []
    with Behind(threads=1, depth=2) as behind:
        for i in range(20):
            behind.submit(partial(done.append, i))
    assert done == [*range(20)]

    def fail() -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"), Behind(threads=1, depth=2) as behind:
        behind.submit(fail)


def test_a_caller_that_fails_leaves_undone_what_has_not_begun() -> None:
    done: list[int] = []

    def slow(i: int) -> None:
        time.sleep(0.05)
        done.append(i)

    with pytest.raises(ValueError, match="mine"), Behind(threads=1, depth=9) as behind:
        for i in range(9):
            behind.submit(partial(slow, i))
        raise ValueError("mine")
    assert len(done) <= 1
