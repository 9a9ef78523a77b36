"""Laws of averages of weights and of the greedy choice, with numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from raymat.analysis.averaging.soup import Trial, WeightSum, greedy
from raymat.errors import WeightsError


def weights(*values: float, steps: int = 0) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values), "n": torch.tensor(steps)}


def mean(*networks: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    total = WeightSum(networks[0], "a")
    for network in networks[1:]:
        total.add(network, "b")
    own = weights(*[9.0] * networks[0]["w"].numel(), steps=7)
    total.mean_into(own)
    return own


def test_the_average_is_the_mean_of_each_weight_and_leaves_counters_alone() -> None:
    found = mean(weights(1.0, -2.0), weights(2.0, 4.0), weights(6.0, 4.0))
    assert found["w"].tolist() == [3.0, 2.0]
    assert found["n"] == 7


def test_sums_are_float64() -> None:
    # In float32 each of the ones would be lost beside 2**24.
    found = mean(weights(2.0**24), weights(1.0), weights(1.0), weights(2.0))
    assert found["w"].tolist() == [(2.0**24 + 4) / 4]


def test_half_precision_and_double_weights_may_be_mixed() -> None:
    half = {"w": torch.tensor([1.0], dtype=torch.bfloat16)}
    double = {"w": torch.tensor([2.0], dtype=torch.float64)}
    assert mean(half, double)["w"].tolist() == [1.5]


def test_one_more_may_count_without_being_added() -> None:
    total = WeightSum(weights(1.0), "a")
    own = weights(0.0)
    total.mean_into(own, weights(3.0), "b")
    assert own["w"].tolist() == [2.0]
    total.mean_into(own)
    assert own["w"].tolist() == [1.0]


@pytest.mark.parametrize("other", [{"w": torch.ones(2)}, {"v": torch.ones(1)}, {}])
def test_other_networks_are_refused_before_anything_is_added(
    other: dict[str, torch.Tensor],
) -> None:
    total = WeightSum(weights(1.0), "a")
    with pytest.raises(WeightsError, match="b is another network than a"):
        total.add(other, "b")
    own = weights(0.0)
    total.mean_into(own)
    assert own["w"].tolist() == [1.0]


def cook(values: dict[str, float], **options: str) -> list[Trial]:
    """Greedy over networks that are a number each; the metric is the distance of their average from 10."""
    taken: list[float] = []

    def alone(name: str) -> float:
        return abs(values[name] - 10)

    def together(name: str) -> float:
        return abs(math.fsum([*taken, values[name]]) / (len(taken) + 1) - 10)

    names = options.pop("order", "".join(values))
    trials = greedy(names, alone, together, lambda name: taken.append(values[name]))
    assert [values[t.name] for t in trials if t.taken] == taken
    return trials


def test_greedy_takes_what_helps_and_refuses_what_does_not() -> None:
    # 11 alone is 1 off; with 8 (9.5) a half; with 13 (10.67) worse; with 7 (8.67) worse.
    found = cook({"a": 13.0, "b": 8.0, "c": 11.0, "d": 6.0})
    assert [(t.name, t.alone, t.taken) for t in found] == [
        ("c", 1.0, True),
        ("b", 2.0, True),
        ("a", 3.0, False),
        ("d", 4.0, False),
    ]
    assert [t.together for t in found] == pytest.approx([1.0, 0.5, 2 / 3, 5 / 3])


def test_greedy_takes_what_is_as_good() -> None:
    assert [t.taken for t in cook({"a": 9.0, "b": 9.0})] == [True, True]


def test_greedy_does_not_depend_on_the_order_of_the_candidates() -> None:
    values = {"a": 12.0, "b": 8.0, "c": 11.0, "d": 9.0}
    first = cook(values, order="abcd")
    assert cook(values, order="dcba") == first
    assert [t.name for t in first] == ["c", "d", "a", "b"]


def test_what_is_not_finite_comes_last_and_is_refused() -> None:
    found = cook({"a": math.nan, "b": 7.0})
    assert [(t.name, t.taken) for t in found] == [("b", True), ("a", False)]


def test_greedy_by_a_metric_that_should_rise() -> None:
    values = {"a": 1.0, "b": 3.0, "c": 2.0}
    trials = greedy(values, values.__getitem__, lambda name: values[name], lambda name: None, "max")
    assert [(t.name, t.taken) for t in trials] == [("b", True), ("c", False), ("a", False)]
