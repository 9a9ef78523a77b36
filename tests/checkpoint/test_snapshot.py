from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from raymat.checkpoint.snapshot import Snapshot, SnapshotBuffer, dump_extra


def test_training_that_goes_on_changes_no_snapshot(make_state: Any, same: Any) -> None:
    state, history = make_state(), {"losses": [0.5]}
    snapshot = Snapshot.take(7, state, history)
    for tensor in state.values():
        tensor.zero_()
    history["losses"].append(0.25)
    assert snapshot.step == 7
    assert same(snapshot.tensors, make_state())
    assert snapshot.extra == {"losses": [0.5]}


def test_snapshots_are_plain_contiguous_cpu_tensors(make_state: Any) -> None:
    state = make_state() | {"parameter": torch.nn.Parameter(torch.ones(2, 3))}
    for tensor in Snapshot.take(0, state, {}).tensors.values():
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        assert tensor.device.type == "cpu"


def test_a_buffer_is_used_again_without_new_memory(make_state: Any, same: Any) -> None:
    buffer = SnapshotBuffer()
    first = Snapshot.take(1, make_state(1), {}, buffer)
    places = {name: t.data_ptr() for name, t in first.tensors.items()}
    second = Snapshot.take(2, make_state(2), {}, buffer)
    assert {name: t.data_ptr() for name, t in second.tensors.items()} == places
    assert same(second.tensors, make_state(2))


def test_a_buffer_fits_itself_to_another_state(make_state: Any, same: Any) -> None:
    buffer = SnapshotBuffer()
    Snapshot.take(1, make_state(1), {}, buffer)
    grown = make_state(2) | {"more": torch.ones(1000)}
    taken = Snapshot.take(2, grown, {}, buffer).tensors
    assert same(taken, grown)
    assert taken["more"].untyped_storage().nbytes() >= 4000
    small = {"only": torch.ones(3, dtype=torch.float64)}
    taken = Snapshot.take(3, small, {}, buffer).tensors
    assert same(taken, small)
    assert taken["only"].untyped_storage().nbytes() == 64


def test_two_buffers_are_two_snapshots(make_state: Any, same: Any) -> None:
    one, two = SnapshotBuffer(), SnapshotBuffer()
    first = Snapshot.take(1, make_state(1), {}, one)
    Snapshot.take(2, make_state(2), {}, two)
    assert same(first.tensors, make_state(1))


def test_extra_comes_as_it_will_be_read() -> None:
    extra = {
        "a": (1, 2.5),
        "b": {"c": None, "d": [True, "ü\n"]},
        "big": 2**70,
        "tiny": 5e-324,
        "third": 1 / 3,
    }
    snapshot = Snapshot.take(0, {}, extra)
    assert snapshot.extra == extra | {"a": [1, 2.5]}


def test_not_a_number_and_infinity_are_kept() -> None:
    extra = Snapshot.take(0, {}, {"x": [math.nan, math.inf, -math.inf, -0.0]}).extra
    assert math.isnan(extra["x"][0])
    assert extra["x"][1:3] == [math.inf, -math.inf]
    assert math.copysign(1, extra["x"][3]) == -1


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"a": {1: 2}}, r"extra\.a has the key 1"),
        ({"a": [0, {"b": torch.ones(1)}]}, r"extra\.a\[1\]\.b is a Tensor"),
        ({"a": {1, 2}}, r"extra\.a is a set"),
        ({"a": b"x"}, r"extra\.a is a bytes"),
    ],
)
def test_what_json_would_change_is_refused_by_name(extra: dict[str, Any], named: str) -> None:
    with pytest.raises(TypeError, match=named):
        dump_extra(extra)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_snapshot_from_a_gpu_is_pinned_and_equal(make_state: Any, same: Any) -> None:
    state = {name: t.cuda() for name, t in make_state().items()}
    snapshot = Snapshot.take(0, state, {}, SnapshotBuffer())
    for tensor in state.values():
        tensor.zero_()
    assert same(snapshot.tensors, make_state())
    assert all(t.is_pinned() for t in snapshot.tensors.values() if t.numel())
