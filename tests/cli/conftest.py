"""Arithmetic of one thread in every test of this folder, and checks of cluster files."""

from tests.support.cluster_files import check  # noqa: F401
from tests.support.made_run import one_thread  # noqa: F401
