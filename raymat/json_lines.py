"""Lines that machines read: whatever a process prints becomes one JSON object a line (`--log-format json`).

Each object has `time` (ISO 8601, UTC), `level` (debug, info, warning, error, critical), `run`, `attempt`, `rank` (null for the
driver), `step` and `message`. What is known beside them follows: `kind` of an event, `logger` and `exception` of a log record.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO

FLAG = "--log-format"


def _nowhere() -> int | None:
    return None


@dataclass
class LogContext:
    """What the lines of a process have in common. It changes while the process runs."""

    run: str | None = None
    attempt: int | None = None
    rank: int | None = None
    step: Callable[[], int | None] = _nowhere
    """Returns the completed steps."""

    def at(self, attempt: int, step: int) -> None:
        """Note how far the run is."""
        self.attempt, self.step = attempt, lambda: step


class JsonLines(io.TextIOBase):
    """A text stream that makes an object of each line written to it, and writes that to another stream."""

    def __init__(self, stream: TextIO, context: LogContext) -> None:
        self._stream, self.context = stream, context
        self._lock = threading.RLock()  # a signal's handler prints in the middle of a print
        self._begun = threading.local()
        """Each thread's own line, as far as it is written."""

    @property
    def under(self) -> TextIO:
        """The other stream."""
        return self._stream

    def onto(self, stream: TextIO) -> JsonLines:
        """Return the same before another stream."""
        return JsonLines(stream, self.context)

    def record(self, message: str, level: str = "info", **fields: Any) -> None:
        """Write an object. `fields`: beside the usual ones, or in their place where they are not None."""
        import json  # not above: a command imports this before it has refused a file of that name

        now = datetime.datetime.now(datetime.timezone.utc)
        context = self.context
        usual = {
            "time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": level,
            "run": context.run,
            "attempt": context.attempt,
            "rank": context.rank,
            "step": context.step(),
            "message": message,
        }
        known = {name: value for name, value in fields.items() if value is not None}
        with self._lock:
            self._stream.write(json.dumps(usual | known, default=str) + "\n")
            self._stream.flush()

    def write(self, text: str) -> int:
        """Write text; each whole line becomes an object, but blank ones."""
        whole, _, rest = (getattr(self._begun, "text", "") + text).rpartition("\n")
        self._begun.text = rest
        for line in whole.splitlines():
            if line.strip():
                self.record(line)
        return len(text)

    def flush(self) -> None:
        """Write what the other stream holds."""
        self._stream.flush()

    def fileno(self) -> int:
        """Return the other stream's file."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Return False: nothing is redrawn."""
        return False

    def writable(self) -> bool:
        """Return True."""
        return True


def tell(text: str, level: str = "info", **fields: Any) -> None:
    """Print text to stderr: lines, or one object with these fields, which lines leave out.

    What cannot be printed is lost: a full disk below a log ends no run, and changes no exit code.
    """
    stream = sys.stderr
    with contextlib.suppress(OSError):
        if isinstance(stream, JsonLines):
            stream.record(text, level, **fields)
        else:
            print(text, file=stream, flush=True)


def asks_for_json(words: Sequence[str]) -> bool:
    """Return whether a command line asks for JSON; one that cannot be read may do so too."""
    return f"{FLAG}=json" in "=".join(word.replace("_", "-") for word in words)


def json_context() -> LogContext | None:
    """Return what this process's lines have in common; None where it prints text."""
    return sys.stderr.context if isinstance(sys.stderr, JsonLines) else None


def print_json(context: LogContext) -> None:
    """Have this process print JSON from now on: all text, records of logging, warnings, and the traceback that it dies of."""
    if json_context() is None:
        sys.stdout, sys.stderr = (JsonLines(s, context) for s in (sys.stdout, sys.stderr))
        logging.captureWarnings(True)
        logging.getLogger().addHandler(_RecordHandler(logging.WARNING))
        sys.excepthook = _tell_of_death


@contextlib.contextmanager
def output_as_before() -> Iterator[None]:
    """Undo `print_json` at the block's end."""
    printed_text, hook, handlers = (
        json_context() is None,
        sys.excepthook,
        logging.getLogger().handlers,
    )
    kept = list(handlers)
    try:
        yield
    finally:
        if printed_text and json_context() is not None:
            # Not the streams of before: where Ray was lost, stderr is another since.
            sys.stdout, sys.stderr = (plain(stream) for stream in (sys.stdout, sys.stderr))
            sys.excepthook = hook
            logging.captureWarnings(False)
            handlers[:] = kept


def plain(stream: TextIO) -> TextIO:
    """Return the stream that text is printed to, below that of JSON lines."""
    return stream.under if isinstance(stream, JsonLines) else stream


class _RecordHandler(logging.Handler):
    """Writes records of logging as objects."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; its traceback is a field."""
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else None
        level = record.levelname.lower()
        tell(record.getMessage(), level, logger=record.name, exception=trace)


def _tell_of_death(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    tell(f"{kind.__name__}: {error}", "critical", exception=text)
