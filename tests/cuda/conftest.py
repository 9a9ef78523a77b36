"""Tells at the end what was tried without a driver, and what could not be; `make test` leaves this folder out."""

from __future__ import annotations

import pytest
import torch

from tests.support.driverless import NOT_TRIED


def pytest_configure() -> None:
    if torch.version.cuda is None:
        raise pytest.UsageError(
            f"torch {torch.__version__} knows no CUDA devices: make cuda-dry-run installs one that does"
        )


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
