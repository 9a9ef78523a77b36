"""The result of a validation, as an object in storage."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field

from raymat.checkpoint.manifest import CheckpointId
from raymat.data.batch import Replacement
from raymat.storage.store import Store
from raymat.train.validation.evaluator import ValidationResult

FOLDER = "validations"
FORMAT = 1
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

    def to_json(self) -> bytes:
        """Encode the result as it is stored."""
        return json.dumps({"format": FORMAT} | asdict(self), allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> StoredResult | None:
        """Decode a stored result; None if it is damaged, or of another format."""
        try:
            values = json.loads(data)
            if values.pop("format") != FORMAT:
                return None
            values["found"] = ValidationResult(**values["found"])
            values["replaced"] = tuple(Replacement(**each) for each in values["replaced"])
            return cls(**values)
        except (ValueError, LookupError, TypeError, AttributeError):
            return None


def write_result(store: Store, checkpoint: CheckpointId, result: StoredResult) -> None:
    """Store the result of `checkpoint`. Raises StorageError."""
    store.write(f"{FOLDER}/{checkpoint}.json", result.to_json())


def read_result(store: Store, checkpoint: CheckpointId) -> StoredResult | None:
    """Read the checkpoint's result; None if there is none. Raises StorageError."""
    data = store.try_read(f"{FOLDER}/{checkpoint}.json")
    return None if data is None else StoredResult.from_json(data)


def find_result(store: Store, step: int) -> StoredResult | None:
    """Read the newest attempt's result for `step`; None if there is none. Raises StorageError."""
    names = [match[1] for file in store.list(FOLDER) if (match := _NAME.search(file.path))]
    found = sorted(c for n in names if (c := CheckpointId.try_parse(n)) and c.step == step)
    for checkpoint in reversed(found):
        result = read_result(store, checkpoint)
        if result is not None:
            return result
    return None
