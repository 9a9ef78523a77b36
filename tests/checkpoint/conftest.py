"""Stores of each kind, states to put into them, and arithmetic of one thread."""

from tests.support.stores import *  # noqa: F403
