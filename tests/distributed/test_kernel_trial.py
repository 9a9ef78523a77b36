"""A card's kernels for batch norm are tried before a run trusts them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from raymat.distributed.batchnorm_kernels import FUSED_ON, PLAIN, FusedKernels, kernels_on
from raymat.distributed.kernel_trial import LARGEST_DIFFERENCE, largest_difference, require_right
from raymat.errors import TrainingError
from tests.support import fused_batchnorm

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fused_on_the_cpu() -> Iterator[None]:
    library = fused_batchnorm.install()
    yield
    FUSED_ON.discard("cpu")
    del library


@pytest.mark.parametrize("dtype", LARGEST_DIFFERENCE)
def test_kernels_that_are_right_pass_with_room(dtype: torch.dtype) -> None:
    kernels = kernels_on("cpu")
    assert isinstance(kernels, FusedKernels)
    require_right(kernels, CPU, dtype)
    assert 0 < largest_difference(kernels, CPU, dtype) < LARGEST_DIFFERENCE[dtype] / 3


class Biased(FusedKernels):
    """Takes the global variance without what the workers' means differ by."""

    def message(self, x: Tensor, eps: float) -> Tensor:
        found = super().message(x, eps)
        found[0] += 0.01
        return found


class Deaf(FusedKernels):
    """Counts an empty share as one picture."""

    NONE = 1.0


class Swapped(FusedKernels):
    """Adds up the two sums the other way round."""

    def spread(self, sums: Tensor, *rest: Any) -> Tensor:
        return super().spread(sums.view(2, -1).flip(0).reshape(-1), *rest)


class NotANumber(FusedKernels):
    """Divides by nothing."""

    def normalise(self, x: Tensor, *rest: Any) -> Tensor:
        return super().normalise(x, *rest) * float("nan")


@pytest.mark.parametrize("kernels", [Biased(), Deaf(), Swapped(), NotANumber()])
def test_kernels_that_compute_something_else_are_refused(kernels: FusedKernels) -> None:
    with pytest.raises(
        TrainingError,
        match=r"cpu: the kernels of batch norm are \S+ off torch's operations: begin the run anew with --batch-norm plain",
    ):
        require_right(kernels, CPU, torch.float32)


def test_kernels_that_fail_are_refused_with_what_they_said() -> None:
    class Failing(FusedKernels):
        def message(self, x: Tensor, eps: float) -> Tensor:
            raise RuntimeError("no kernel image is available\nfor execution")

    with pytest.raises(
        TrainingError,
        match=r"cpu: the kernels of batch norm fail \(no kernel image is available.*\): begin the run anew",
    ):
        require_right(Failing(), CPU, torch.float32)


def test_a_device_without_such_kernels_and_a_run_without_them_have_the_plain_ones() -> None:
    FUSED_ON.discard("cpu")
    assert kernels_on("cpu") is PLAIN
    assert kernels_on("cuda", fused=False) is PLAIN
    assert isinstance(kernels_on("cuda"), FusedKernels)
