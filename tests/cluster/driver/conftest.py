"""Fixtures of the driver's tests."""

from tests.support.stores import memory, store  # noqa: F401
