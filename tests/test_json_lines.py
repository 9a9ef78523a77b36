"""Laws of lines that machines read: whatever a process prints is one object a line, and all of it says where it belongs."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from typing import Any

import pytest

from raymat.json_lines import (
    JsonLines,
    LogContext,
    asks_for_json,
    json_context,
    output_as_before,
    print_json,
    tell,
)
from tests.support.paths import ROOT

USUAL = ["time", "level", "run", "attempt", "rank", "step", "message"]


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_each_line_is_an_object_that_says_where_it_belongs() -> None:
    under, context = io.StringIO(), LogContext("night", attempt=3, rank=1, step=lambda: 120)
    stream = JsonLines(under, context)
    print("first", file=stream)
    stream.write("sec")
    stream.write("ond\n\n  \nthird\r\nnot yet")
    found = objects(under.getvalue())
    assert [each["message"] for each in found] == ["first", "second", "third"]
    assert list(found[0]) == USUAL
    assert {name: found[0][name] for name in USUAL[1:]} == {
        "level": "info",
        "run": "night",
        "attempt": 3,
        "rank": 1,
        "step": 120,
        "message": "first",
    }
    assert found[0]["time"].endswith("Z")
    assert len(found[0]["time"]) == len("2026-11-29T12:00:00.000Z")


def test_lines_of_threads_do_not_mix() -> None:
    under = io.StringIO()
    stream = JsonLines(under, LogContext())
    together = threading.Barrier(4)

    def talk(name: str) -> None:
        together.wait()
        for _ in range(200):
            print(name * 20, file=stream)

    threads = [threading.Thread(target=talk, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [each["message"] for each in objects(under.getvalue())]
    assert sorted(said) == sorted(name * 20 for name in "abcd" for _ in range(200))


def test_known_fields_take_the_place_of_the_usual_ones() -> None:
    under = io.StringIO()
    stream = JsonLines(under, LogContext("night", attempt=3, step=lambda: 120))
    stream.record("failed", "warning", kind="failure", attempt=2, rank=None, step=100)
    (found,) = objects(under.getvalue())
    assert (found["level"], found["attempt"], found["rank"], found["step"]) == (
        "warning",
        2,
        None,
        100,
    )
    assert found["kind"] == "failure"


def test_logging_warnings_and_prints_all_become_objects_until_the_block_ends(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with output_as_before():
        print_json(LogContext("night"))
        print("printed")
        tell("told", "error", kind="x")
        logging.getLogger("raymat.here").warning("logged %d", 5)
        logging.getLogger("raymat.here").info("not said")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("warned", UserWarning, stacklevel=1)
        try:
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("raymat.here").exception("caught")
    assert json_context() is None
    tell("text again")
    out, err = capsys.readouterr()
    assert [each["message"] for each in objects(out)] == ["printed"]
    *found, last = err.splitlines()
    assert last == "text again"
    told, logged, warned, caught = objects("\n".join(found))
    assert (told["message"], told["level"], told["kind"]) == ("told", "error", "x")
    assert (logged["message"], logged["level"], logged["logger"]) == (
        "logged 5",
        "warning",
        "raymat.here",
    )
    assert "warned" in warned["message"]
    assert (caught["message"], caught["level"]) == ("caught", "error")
    assert caught["exception"].splitlines()[-1] == "ValueError: broken"


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["base", "--log-format", "json"], True),
        (["base", "--log-format=json", "--nonsense"], True),
        (["base", "--log_format", "json"], True),
        (["base", "--log-format", "text"], False),
        (["base", "--name", "json"], False),
        ([], False),
    ],
)
def test_a_command_line_says_whether_it_wants_json(words: list[str], asked: bool) -> None:
    assert asks_for_json(words) is asked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nonsense"], "raymat: error: unknown flag --nonsense"),
        (
            ["--name", "x"],
            "raymat: error: give either --dataset and --backgrounds, or --synthetic N",
        ),
    ],
)
def test_the_last_error_is_an_object_too_even_where_no_run_is_known(
    words: list[str], message: str
) -> None:
    command = [sys.executable, "-m", "raymat", "base", "--log-format", "json", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stdout == ""
    (found,) = objects(done.stderr)
    assert found["message"].startswith(message)
    assert found["level"] == "error"


def test_a_death_of_the_process_is_an_object_with_its_traceback() -> None:
    script = (
        "from raymat.json_lines import LogContext, print_json\n"
        "print_json(LogContext('night'))\n"
        "raise RuntimeError('gone')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    (found,) = objects(done.stderr)
    assert (found["level"], found["message"], found["run"]) == (
        "critical",
        "RuntimeError: gone",
        "night",
    )
    assert found["exception"].startswith("Traceback")
