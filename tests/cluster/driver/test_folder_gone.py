"""A disk that goes in mid-run: one line, nothing in its mount point, and the same command goes on when it is back."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymat.cli.verify import verify
from raymat.config.flags import parse_run
from raymat.storage.store import Store
from raymat.train.run.open_run import open_run
from tests.support.drivers import FLAGS, driver, ended
from tests.support.kit import wait_for
from tests.support.mounts import coming_and_going


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_run_whose_disk_goes_ends_with_that_reason_and_goes_on_when_it_is_back(
    tmp_path: Path,
) -> None:
    with coming_and_going(tmp_path) as disk:
        store = Store.open(str(disk.point), "run")
        with driver(disk.point, 100_000) as first:
            done = wait_for(store, "commit", lambda event: event["step"] >= 20)["step"]
            disk.detach()
            errors = ended(first, 2)
        assert errors.splitlines()[-1] == (
            f"raymat: error: {store.url} is gone: its run.json is missing or another run's; "
            "bring it back (is it mounted?), and the same command goes on"
        )
        assert list(disk.point.iterdir()) == []
        disk.attach()
        flags = ["--storage", str(disk.point), "--name", "run", "--steps", "100000"]
        again = open_run(parse_run("base", [*FLAGS, "--precision", "fp32", *flags]), store)
        assert (again.resumed, again.status.step >= done) == (True, True)
        assert verify(store.url).code == 0
