"""Tells at the end what was tried without a driver, and what could not be; `make test` leaves this folder out."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

import pytest
import torch

from tests.support.driverless import NOT_TRIED

# Before any test imports Triton: its kernels then run on the CPU.
os.environ["TRITON_INTERPRET"] = "1"

NO_CUDA = (
    f"torch {torch.__version__} knows no CUDA devices: make cuda-dry-run installs one that does"
)


def pytest_configure() -> None:
    if torch.version.cuda is None and importlib.util.find_spec("triton") is None:
        raise pytest.UsageError(NO_CUDA)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Without such a torch there may be Triton all the same: its kernels are tried."""
    if torch.version.cuda is None:
        for item in items:
            if "fused" not in item.path.name:
                item.add_marker(pytest.mark.skip(reason=NO_CUDA))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed = {
        report.location[2].partition("[")[0] for report in terminalreporter.getreports("passed")
    }
    terminalreporter.section("tried on CUDA devices without a driver")
    for name in sorted(passed):
        terminalreporter.line(name.removeprefix("test_").replace("_", " "))
    terminalreporter.section("not tried")
    for what, why in NOT_TRIED.items():
        terminalreporter.line(f"{what}: {why}")
