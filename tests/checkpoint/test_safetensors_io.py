from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from raymat.checkpoint import safetensors_io
from raymat.errors import CheckpointError

State = dict[str, Tensor]


def _decode(data: bytes) -> State:
    whole = torch.frombuffer(bytearray(data + b"\0"), dtype=torch.uint8)
    return safetensors_io.decode(whole[: len(data)])


def _encode(state: State) -> bytes:
    return b"".join(safetensors_io.encode(state))


def test_a_file_comes_back_to_the_bit(make_state: Any, same: Any) -> None:
    state = make_state()
    assert same(_decode(_encode(state)), state)
    assert _decode(_encode({})) == {}


def test_the_library_reads_what_we_write_and_the_other_way_round(
    make_state: Any, same: Any
) -> None:
    state = make_state()
    assert same(safetensors.torch.load(_encode(state)), state)
    theirs = safetensors.torch.save(
        {name: t.contiguous() for name, t in state.items()}, {"format": "pt"}
    )
    assert same(_decode(theirs), state)


@pytest.mark.parametrize("dtype", list(safetensors_io.DTYPES.values()), ids=str)
def test_every_dtype_comes_back(dtype: torch.dtype, same: Any) -> None:
    zeros_and_ones = torch.tensor([[0, 1, 1], [1, 0, 0]])
    state = {
        "a": zeros_and_ones.to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "none": torch.empty(0, dtype=dtype),
    }
    assert same(_decode(_encode(state)), state)
    assert same(safetensors.torch.load(_encode(state)), state)


def test_tensors_lie_aligned_and_are_views(make_state: Any) -> None:
    data = torch.frombuffer(bytearray(_encode(make_state())), dtype=torch.uint8)
    inside = range(data.data_ptr(), data.data_ptr() + len(data))
    for tensor in safetensors_io.decode(data).values():
        if tensor.numel():
            assert tensor.data_ptr() in inside
            assert tensor.data_ptr() % tensor.element_size() == 0


def test_writing_copies_no_contiguous_tensor() -> None:
    tensor = torch.zeros(1000)
    _, piece = safetensors_io.encode({"a": tensor})
    tensor += 1
    assert bytes(piece[:4]) == b"\x00\x00\x80\x3f"


def test_unaligned_files_of_others_are_read() -> None:
    header = json.dumps({"b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                         "f": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}).encode()  # fmt: skip
    data = (
        len(header).to_bytes(8, "little")
        + header
        + b"\x07"
        + torch.tensor([1.5, -2.0]).numpy().tobytes()
    )
    state = _decode(data)
    assert state["b"].tolist() == [7]
    assert state["f"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, dtype=torch.complex64),
        torch.eye(2).to_sparse(),
        torch.empty(2, device="meta"),
    ],
)
def test_what_cannot_be_stored_is_named(tensor: Tensor) -> None:
    with pytest.raises(TypeError, match=r"tensor 'x' .* cannot be stored"):
        safetensors_io.encode({"x": tensor})


def _file(header: Any, data: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _one(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


def test_the_forger_of_these_tests_can_forge() -> None:
    assert _decode(_file(_one()))["x"].tolist() == [0.0, 0.0]


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch /tmp/raymat-bomb-went-off",)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"1234567", (2**63).to_bytes(8, "little"), (10**11).to_bytes(8, "little") + b"{}",
        (3).to_bytes(8, "little") + b"{}", pickle.dumps(Bomb()), pickle.dumps(Bomb()) + b"\0" * 100,
        _file(b""), _file(b"null"), _file(b"[]"), _file(b"\xff"), _file(b"[" * 100_000), _file({}),
        _file({"x": None}), _file({"x": {}}), _file(_one(more=1)),
        _file(b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
        _file(_one(dtype="F33")), _file(_one(dtype=None)), _file(_one(dtype=["F32"])),
        _file(_one(shape=[3])), _file(_one(shape=[-2])), _file(_one(shape=2)), _file(_one(shape=[2.0])),
        _file(_one(shape=[True, 2])), _file(_one(shape=[1] * 100 + [2])), _file(_one(shape=["2"])),
        _file(_one(data_offsets=[0, 4])), _file(_one(data_offsets=[8, 0])), _file(_one(data_offsets=[0])),
        _file(_one(data_offsets=[4, 12])), _file(_one(data_offsets=[-8, 0])), _file(_one(data_offsets=None)),
        _file(_one(), b"\0" * 7), _file(_one(), b"\0" * 9), _file(_one(shape=[2**61, 2], data_offsets=[0, 2**64])),
        _file(_one(shape=[2**62, 0], data_offsets=[0, 0]), b""),
        _file(_one(shape=[10**11 // 4], data_offsets=[0, 10**11])),
        _file({**_one(), "y": _one()["x"]}), _file({**_one(), "y": _one(data_offsets=[4, 12])["x"]}, b"\0" * 12),
        _file(_one(dtype="BOOL", shape=[8]), b"\x01\0\0\x02\0\0\0\0"),
    ],
)  # fmt: skip
def test_hostile_files_are_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError) as caught:
        _decode(data)
    assert len(str(caught.value)) < 300
    assert not os.path.exists("/tmp/raymat-bomb-went-off")


def test_random_damage_never_does_worse_than_an_error(make_state: Any) -> None:
    draws = random.Random(3)
    whole = _encode(make_state())
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(draws.choice([1, 2, 5])):
            damaged[draws.randrange(1500 if draws.random() < 0.8 else len(whole)) % len(whole)] = (
                draws.randrange(256)
            )
        if draws.random() < 0.3:
            del damaged[draws.randrange(len(damaged)) :]
        try:
            state = _decode(bytes(damaged))
        except CheckpointError:
            continue
        assert sum(t.numel() * t.element_size() for t in state.values()) < len(whole)
