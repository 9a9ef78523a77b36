"""The result of a validation, as an object in storage."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from raymat.checkpoint.manifest import CheckpointId, refuse_format
from raymat.data.batch import Replacement
from raymat.errors import CheckpointError, NewerFormatError, first_line
from raymat.storage.digest import is_sealed, seal
from raymat.storage.fields import parse_fields, parse_object
from raymat.storage.store import Store
from raymat.train.validation.evaluator import ValidationResult

FOLDER = "validations"
FORMATS = (1, 2)
"""2: with the run's id, the checkpoint and a digest. 1: without, as runs that an older raymat began may still need."""
_NAME = re.compile(rf"(?:^|/){FOLDER}/(step-\d+-a\d+)\.json$")


@dataclass(frozen=True)
class StoredResult:
    """The result of a validation, and how it was found."""

    found: ValidationResult
    place: str
    """`beside` training, or in the `loop`."""
    seconds: float
    replaced: tuple[Replacement, ...] = field(default=())
    """Files that could not be read."""

    def encode(self, run: str, checkpoint: CheckpointId) -> bytes:
        """Encode the result of a checkpoint of the run with the id `run` as it is stored."""
        values = asdict(self)
        values |= {"format": FORMATS[-1], "run": run, "checkpoint": str(checkpoint)}
        return json.dumps(seal(values), allow_nan=False).encode()

    @classmethod
    def decode(cls, data: bytes, run: str, checkpoint: CheckpointId) -> StoredResult:
        """Decode the result of a checkpoint of the run with the id `run`.

        Raises:
            NewerFormatError: a newer raymat wrote it. CheckpointError: it is damaged, or of another checkpoint or run.
        """
        try:
            values = parse_object(data)
            refuse_format(values, FORMATS, "a validation's result")
            if values["format"] != 1 or "digest" in values:
                _require_own(values, run, checkpoint)
            return parse_fields(cls, values)
        except ValueError as error:
            raise CheckpointError(f"it cannot be read: {first_line(error)}") from error


@dataclass(frozen=True)
class ResultFolder:
    """The results of a run's validations in its storage."""

    store: Store
    run: str
    """The run's id."""
    on_damage: Callable[[str, str], None] = lambda path, why: None
    """Called for each result that is as good as none, and why: it is found again."""

    def write(self, checkpoint: CheckpointId, result: StoredResult) -> None:
        """Store the result of `checkpoint`. Raises StorageError."""
        self.store.write(_path(checkpoint), result.encode(self.run, checkpoint))

    def read(self, checkpoint: CheckpointId) -> StoredResult | None:
        """Read the checkpoint's result; None if there is none that verifies.

        Raises:
            NewerFormatError: a newer raymat wrote it. StorageError: storage cannot be read.
        """
        data = self.store.try_read(_path(checkpoint))
        if data is None:
            return None
        try:
            return StoredResult.decode(data, self.run, checkpoint)
        except NewerFormatError as error:
            raise NewerFormatError(f"{self.store.url}/{_path(checkpoint)}: {error.line}") from error
        except CheckpointError as error:
            self.on_damage(_path(checkpoint), error.line)
            return None

    def find(self, step: int) -> StoredResult | None:
        """Read the newest attempt's result for `step`; None if there is none. Raises as `read` does."""
        names = [match[1] for file in self.store.list(FOLDER) if (match := _NAME.search(file.path))]
        found = sorted(c for n in names if (c := CheckpointId.try_parse(n)) and c.step == step)
        return next(filter(None, map(self.read, reversed(found))), None)


def _require_own(values: dict[str, Any], run: str, checkpoint: CheckpointId) -> None:
    if not is_sealed(values):
        raise CheckpointError("its digest is wrong")
    if (values.get("run"), values.get("checkpoint")) != (run, str(checkpoint)):
        raise CheckpointError("it is of another checkpoint or run")


def _path(checkpoint: CheckpointId) -> str:
    return f"{FOLDER}/{checkpoint}.json"
