"""What `ray up` itself says of a cluster file, before it asks a cloud for anything."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from click import ClickException
from jsonschema.exceptions import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from raymat.config.hints import closest
from raymat.errors import one_line

__all__ = ["schema_mistake"]

RAYS_REFUSALS = (
    *(ValueError, TypeError, AttributeError, NotImplementedError, AssertionError, RuntimeError),
    ClickException,
)
"""What Ray raises for a file that it cannot use; some are its assertions, and some what its command line would end with."""


def schema_mistake(cluster: Mapping[str, Any]) -> str | None:
    """Return what Ray's schema has against a cluster file, in one line; None if nothing."""
    try:
        with _silence():
            validate_config(prepare_config(copy.deepcopy(dict(cluster))))
    except ValidationError as error:
        place = ".".join(map(str, error.absolute_path))
        return f"{place}: {_said(error)}" if place else _said(error)
    except KeyError as error:
        return f"{error.args[0]} is missing"
    except RAYS_REFUSALS as error:
        return one_line(error)
    return None


def _said(error: ValidationError) -> str:
    """Return what is wrong; of an unknown key also what was meant."""
    message = str(error.message)
    if error.validator != "additionalProperties":
        return message
    known = error.schema.get("properties", {})
    name, *_ = sorted(set(error.instance) - set(known))
    return message + closest(name, known, "Ray knows no such key")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Print nothing of what Ray remarks on: mounts that are files, fields that it adds and drops again."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
