"""Fresh stores of each kind, and states to put into them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.asyn import sync_wrapper
from torch import Tensor

from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store
from tests.support.s3 import S3Server


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def memory() -> Iterator[Store]:
    """A store in memory, empty at the beginning."""
    fsspec.filesystem("memory").store.clear()
    yield Store.open("memory://runs", "run")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A fresh store of each kind."""
    if request.param == "local":
        return Store.open(str(tmp_path / "runs"), "run")
    if request.param == "memory":
        return request.getfixturevalue("memory")
    server: S3Server = request.getfixturevalue("s3_server")
    return server.store(f"bucket-{time.monotonic_ns()}")


@pytest.fixture
def impatient() -> RetryPolicy:
    return RetryPolicy(total=0.0)


@pytest.fixture
def make_state() -> Callable[[int], dict[str, Tensor]]:
    """A small state with every kind of tensor; another `seed` gives other values everywhere."""

    def make(seed: int = 0) -> dict[str, Tensor]:
        draws = torch.Generator().manual_seed(seed)
        state = {
            "conv.weight": torch.randn(4, 3, 3, 3, generator=draws).to(
                memory_format=torch.channels_last
            ),
            "conv.bias": torch.randn(7, generator=draws),
            "half": torch.randn(5, 2, generator=draws).half(),
            "brain": torch.randn(3, generator=draws).bfloat16(),
            "double": torch.randn(2, 2, generator=draws, dtype=torch.float64),
            "transposed": torch.randn(3, 5, generator=draws).t(),
            "odd": torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45]),
            "mask": torch.rand(9, generator=draws) > 0.5,
            "step": torch.tensor(seed),
            "counts": torch.randint(-(2**62), 2**62, (6,), generator=draws),
            "bytes": torch.randint(0, 256, (11,), generator=draws, dtype=torch.uint8),
            "short": torch.randint(-99, 99, (3,), generator=draws, dtype=torch.int16),
            "empty": torch.empty(0, 4),
            "größe 'x' \" \\": torch.ones(1),
        }
        state["odd"][4] *= seed + 1
        return state

    return make


@pytest.fixture
def same() -> Callable[[dict[str, Tensor], dict[str, Tensor]], bool]:
    """Whether two states are equal to the bit, NaN included, with the same shapes and dtypes."""

    def bits(tensor: Tensor) -> bytes:
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    def compare(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
        return a.keys() == b.keys() and all(
            (a[n].shape, a[n].dtype, bits(a[n])) == (b[n].shape, b[n].dtype, bits(b[n])) for n in a
        )

    return compare


@pytest.fixture
def request_counter() -> Callable[[Store], list[str]]:
    """Gives, for a store on S3, the list of the operations that it sends from now on."""

    def count(store: Store) -> list[str]:
        filesystem: Any = store.backend.filesystem  # type: ignore[attr-defined]
        calls: list[str] = []
        send = filesystem._call_s3

        async def counted(method: str, *args: Any, **kwargs: Any) -> Any:
            calls.append(method)
            return await send(method, *args, **kwargs)

        filesystem._call_s3 = counted
        filesystem.call_s3 = sync_wrapper(counted, obj=filesystem)
        return calls

    return count
