"""What `ray up` itself says of a cluster file, before it asks a cloud for anything."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from click import ClickException
from jsonschema.exceptions import ValidationError
from ray._private.ray_constants import OBJECT_STORE_MINIMUM_MEMORY_BYTES
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start

from raymat.config.hints import closest
from raymat.errors import one_line

__all__ = ["VERSION", "schema_mistake", "start_options"]

VERSION = ray.__version__
"""Ray's, on this machine."""

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


def start_options(words: list[str]) -> dict[str, Any]:
    """Return what `ray start` would take these words for; nothing is started.

    Raises:
        ValueError: it would refuse them.
    """
    try:
        options = ray_start.make_context("ray start", [*words]).params
    except ClickException as error:
        raise ValueError(" ".join(error.format_message().split())) from None
    store = options["object_store_memory"]
    if store is not None and store < OBJECT_STORE_MINIMUM_MEMORY_BYTES:
        raise ValueError(
            f"--object-store-memory={store}: at least {OBJECT_STORE_MINIMUM_MEMORY_BYTES}"
        )
    return dict(options)


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
