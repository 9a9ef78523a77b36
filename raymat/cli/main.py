"""The `raymat` command, and the entry point of the jobs."""

from __future__ import annotations

import errno
import functools
import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymat.cli.streams import (
    discard_output,
    discard_unwritable_messages,
    open_closed_streams,
    print_all_text,
)
from raymat.config.hints import closest
from raymat.config.shadows import refuse_shadows
from raymat.errors import ConfigError, RayLostError, RaymatError, StoppedError, StorageError
from raymat.json_lines import (
    LogContext,
    asks_for_json,
    output_as_before,
    print_json,
    tell,
)
from raymat.storage.urls import redact_urls
from raymat.version import __version__

if TYPE_CHECKING:
    from raymat.config.sections import Stage

INTERRUPTED = 130
CLOSED_PIPE = 141
"""As a shell has it for a program that ends by SIGPIPE."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the place raises that the output is redirected to. Storage's own errors are StorageErrors."""


@dataclass(frozen=True)
class Command:
    """A subcommand: its line in the overview, and the function from its arguments to the exit code."""

    help: str
    run: Callable[[Sequence[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `raymat ARGV` and return the exit code: the subcommand's own, or the error's (130 when interrupted)."""
    words = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _dispatch(words), words)


def job_main(stage: Stage, argv: Sequence[str] | None = None) -> int:
    """Train or resume the run that a command line describes, print a summary, and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _train(stage, words), words)


def fail(error: RaymatError) -> int:
    """Print the error as one line and return its exit code."""
    kind = "" if isinstance(error, StoppedError) else "error: "
    tell(f"raymat: {kind}{redact_urls(error.line)}", "error" if kind else "warning")
    return error.exit_code


def _guarded(action: Callable[[], int], words: Sequence[str]) -> int:
    open_closed_streams()
    try:
        with output_as_before():
            if asks_for_json(words):  # even if they turn out to be no command
                print_json(LogContext())
            return _caught(action)
    finally:
        discard_unwritable_messages()


def _caught(action: Callable[[], int]) -> int:
    try:
        try:
            print_all_text()
            refuse_shadows(os.environ)
            return action()
        finally:
            sys.stdout.flush()  # here, where its error can still be caught
    except RayLostError as error:
        code = fail(error)
        discard_unwritable_messages()  # and write the others, which os._exit leaves out
        os._exit(code)  # Ray's client waits for the dead at an orderly end, and complains
    except RaymatError as error:
        return fail(error)
    except BrokenPipeError:  # `raymat base --help | head`: nobody reads on
        discard_output()
        return CLOSED_PIPE
    except OSError as error:
        if error.errno not in _FULL:
            raise
        discard_output()
        return fail(StorageError(f"the output cannot be written: {error.strerror}"))
    except KeyboardInterrupt:
        tell("raymat: interrupted", "error")
        return INTERRUPTED


def _train(stage: Stage, argv: Sequence[str]) -> int:
    # Imported late: the overview needs none of this, and --help and wrong flags do not need Ray.
    with importing("raymat.config.flags"):
        from raymat.config.flags import parse_run

    config = parse_run(stage, argv)
    if (
        config.monitoring.log_format == "json"
    ):  # here: the last line, too, which is printed when all else is over
        print_json(LogContext(config.name))
    with importing("raymat.cluster.driver.launch"):
        from raymat.cluster.driver.launch import timed_fit

    print(timed_fit(config))
    return 0


def _later(target: str) -> Callable[[Sequence[str]], int]:
    """Return a function that imports `module:function` when it is called."""

    def run(argv: Sequence[str]) -> int:
        module, _, name = target.partition(":")
        with importing(module):
            function = getattr(importlib.import_module(module), name)
        code: int = function(argv)
        return code

    return run


@contextmanager
def importing(module: str) -> Iterator[None]:
    """Import a command's module in the block without looks for garbage, neither now nor, of what stays, at the end.

    Packages make hundreds of thousands of objects that all stay: with Ray and torch the looks take a fifth of the imports'
    time, and half a second as the process ends.

    Raises:
        ConfigError: this Python lacks a package that raymat needs.
    """
    if module in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "raymat").partition(".")[0] == "raymat":
            raise
        raise ConfigError(
            f"{sys.executable} lacks {error.name}, which raymat needs: take the Python that raymat is installed for; "
            "a job has the one of the machine that it starts on"
        ) from error
    finally:
        gc.freeze()
        gc.enable()


COMMANDS: dict[str, Command] = {
    "base": Command(
        "train the base network, or resume a run of it", functools.partial(_train, "base")
    ),
    "refine": Command(
        "train the refine network, or resume a run of it", functools.partial(_train, "refine")
    ),
    "check": Command(
        "look at a run's pictures, storage and weights before it begins",
        _later("raymat.cli.pictures.preflight:main"),
    ),
    "prepare": Command(
        "make a smaller copy of a dataset, which is quicker to decode",
        _later("raymat.cli.pictures.prepare:main"),
    ),
    "demo": Command(
        "train both stages on synthetic pictures, with a kill and a resume",
        _later("raymat.cli.demo:main"),
    ),
    "diff": Command(
        "compare two runs or checkpoints, tensor by tensor", _later("raymat.cli.diff:main")
    ),
    "checkpoints": Command("list a run's checkpoints", _later("raymat.cli.checkpoints:main")),
    "evaluate": Command(
        "measure networks on a dataset: SAD, MSE, Grad, Conn", _later("raymat.cli.evaluate:main")
    ),
    "events": Command("tell what happened to a run, in words", _later("raymat.cli.history:main")),
    "restarts": Command(
        "list a run's restarts, with the steps and seconds they cost",
        _later("raymat.cli.restarts:main"),
    ),
    "select": Command(
        "name the best checkpoints of a run, or the one before its plateau",
        _later("raymat.cli.select:main"),
    ),
    "average": Command("average the weights of checkpoints", _later("raymat.cli.average:main")),
    "verify": Command(
        "verify every digest of a run's checkpoints", _later("raymat.cli.verify:main")
    ),
    "export": Command(
        "write a network as weights, TorchScript or ONNX", _later("raymat.cli.export:main")
    ),
    "matte": Command(
        "cut subjects out of pictures and videos", _later("raymat.cli.pictures.matte_command:main")
    ),
    "runs": Command(
        "list all runs of a storage, and where each stands",
        _later("raymat.cli.runs.runs_command:main"),
    ),
    "plan": Command(
        "say what a run will take on spot machines, and which setting is best",
        _later("raymat.cli.runs.plan_command:main"),
    ),
    "watch": Command(
        "follow a run from anywhere that can read its storage",
        _later("raymat.cli.runs.watch_command:main"),
    ),
    "report": Command(
        "write a run's whole past as one HTML page, or compare several",
        _later("raymat.cli.runs.report_command:main"),
    ),
    "prune": Command("delete old checkpoints", _later("raymat.cli.prune:main")),
    "cluster": Command(
        "look for what a cluster file lacks, before a machine is paid for",
        _later("raymat.cli.cluster_command:main"),
    ),
    "spot-watch": Command(
        "drain this machine's node when its cloud reclaims it",
        _later("raymat.cluster.spot.watch:main"),
    ),
}


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["help"] and words[1:]:  # `raymat help base`
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version", "version"):
        print(f"raymat {__version__}")
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        texts = {name: command.help for name, command in COMMANDS.items()}
        hint = closest(words[0], COMMANDS, f"there are {', '.join(COMMANDS)}", texts)
        raise ConfigError(f"unknown command {words[0]!r}{hint}")
    return command.run(words[1:])


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: raymat COMMAND ...", "", *lines, "", "raymat COMMAND --help says more."]
    )
