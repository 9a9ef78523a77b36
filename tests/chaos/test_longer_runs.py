"""A finished run on Ray that goes on on more data, killed on the way."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from raymat.cluster.driver.launch import fit
from raymat.data.sample_order import digest_lanes, digest_text
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from raymat.train.run.open_run import open_run
from tests.support.kit import rows, starts, tiny, wait_for

SHORT: dict[str, Any] = {"steps": None, "synthetic": 24, "epochs": 3, "epoch_examples": 30}
LONG: dict[str, Any] = {"steps": None, "synthetic": 40, "epochs": 4, "epoch_examples": 50}
"""90 examples in batches of 8, the last of 2; then up to 200, of more pairs from 96 on."""


def kill_one(store: Store) -> None:
    """SIGKILL to a worker of the attempt that goes on on more data, after its first step."""
    wait_for(store, "first_step", lambda event: event["attempt"] == 2)
    os.kill(starts(store)[-1]["ranks"][1]["pid"], signal.SIGKILL)


@pytest.mark.chaos
def test_a_longer_run_on_more_data_that_is_killed_trains_on_what_its_order_says(
    cluster: None, tmp_path: Path
) -> None:
    store = Store.open(str(tmp_path), "run")
    fit(tiny("base", tmp_path, "run", workers="2", **SHORT))
    killer = threading.Thread(target=kill_one, args=(store,))
    killer.start()
    fit(tiny("base", tmp_path, "run", workers="2", grow_dataset=True, **LONG))
    killer.join()
    assert [event["attempt"] for event in starts(store)] == [1, 2, 3]
    order = open_run(tiny("base", tmp_path, "run", precision="fp32", **LONG), store).order
    expected = []
    for step in range(26):
        numbers = order.step_numbers(step)
        digest = digest_text(digest_lanes(order.examples(numbers)))
        expected.append((step + 1, numbers.stop, digest))
    assert [(step, examples, digest) for step, examples, _, digest in rows(store)] == expected
    assert [row[:2] for row in expected[10:14]] == [(11, 88), (12, 90), (13, 98), (14, 106)]
    told = {event["kind"]: event for event in read_events(store)}
    assert (told["longer"]["step"], told["longer"]["examples"]) == (12, 90)
    assert (told["grow"]["from_example"], told["grow"]["added"]["pairs"]) == (96, 16)
