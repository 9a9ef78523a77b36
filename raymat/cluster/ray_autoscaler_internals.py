"""What `ray up` itself says of a cluster file, before it asks a cloud for anything."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema.exceptions import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

__all__ = ["schema_mistake"]


def schema_mistake(cluster: Mapping[str, Any]) -> str | None:
    """Return what Ray's schema has against a cluster file, in one line; None if nothing."""
    try:
        with _silence():
            validate_config(prepare_config(copy.deepcopy(dict(cluster))))
    except ValidationError as error:
        place = ".".join(map(str, error.absolute_path))
        return f"{place}: {error.message}" if place else str(error.message)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Print nothing of what Ray remarks on: mounts that are files, fields that it adds and drops again."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
