"""Arithmetic of one thread in every test of this folder."""

from tests.support.made_run import one_thread  # noqa: F401
