"""Laws of the standard streams: who listens changes no exit code, but for a result that nobody gets."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from raymat.console import Display
from raymat.json_lines import tell
from tests.support.paths import ROOT


def codes(command: str, *redirections: str) -> list[int]:
    raymat = f"{sys.executable} -m raymat {command}"
    script = "\n".join(f"{raymat} {each}; echo $? >&5" for each in redirections)
    done = subprocess.run(
        ["bash", "-c", f"exec 5>&1\n{script}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return [int(line) for line in done.stdout.splitlines() if line.isdigit()]


def test_a_command_whose_streams_are_closed_ends_as_with_open_ones() -> None:
    assert codes("--version", ">&-", "<&- >&- 2>&-") == [0, 0]
    assert codes("trian", "2>&-", "<&- >&- 2>&-") == [2, 2]


def test_a_result_that_cannot_be_written_is_an_error_and_a_message_is_not() -> None:
    assert codes("--version", ">/dev/full 2>&1") == [2]
    assert codes("trian", "2>/dev/full") == [2]


def test_a_closed_streams_number_goes_to_no_file_that_is_opened_later() -> None:
    script = """
import os, sys
from raymat.cli.streams import open_closed_streams
open_closed_streams()
print("lost")
numbers = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
sys.exit(0 if min(numbers) > 2 else 1)
"""
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{script}' <&- >&- 2>&-"], cwd=ROOT, check=False
    )
    assert done.returncode == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_below_a_log_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", full)
    display = Display()
    display.show("base 3/20")
    display.print("validation of step 3")
    tell("workers failed")


def test_a_full_disk_below_a_result_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.raises(OSError, match="No space left"):
        Display(sys.stdout).show("base 3/20")
