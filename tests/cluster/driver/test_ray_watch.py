"""Ray dies under a driver: one line, the exit code of any failure, within seconds."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.heads import descendants, wait_for
from tests.support.paths import ROOT

SCRIPT = """
import os, sys, time
from raymat.cli.main import fail
from raymat.cluster.driver.cluster_setup import running_ray
from raymat.errors import RayLostError
import ray

def hang():
    print("hangs", flush=True)
    ray.get(ray.remote(num_cpus=0)(lambda: time.sleep(600)).remote())

try:
    with running_ray() as watch:
        watch.call(hang)
except RayLostError as error:
    os._exit(fail(error))
"""


def process_of(driver: int, words: bytes) -> int:
    """A process below the driver whose command line has the words."""

    def found() -> int | None:
        for pid in descendants(driver):
            try:
                if words in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
            except OSError:
                continue
        return None

    pid: int = wait_for(found, 60)
    return pid


@pytest.mark.slow
@pytest.mark.parametrize("what", ["gcs_server", pytest.param("raylet", marks=pytest.mark.chaos)])
def test_a_ray_of_its_own_that_dies_ends_a_driver_with_one_line(what: str, short_tmp: Path) -> None:
    environment = os.environ | {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(short_tmp)}
    driver = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert driver.stdout is not None
        first = driver.stdout.readline()
        assert first == "hangs\n", first + driver.communicate(timeout=60)[0]
        time.sleep(1)
        os.kill(process_of(driver.pid, b"/" + what.encode()), signal.SIGKILL)
        killed = time.monotonic()
        said, _ = driver.communicate(timeout=60)
        seconds = time.monotonic() - killed
    finally:
        driver.kill()
    assert driver.returncode == 2
    assert re.fullmatch(
        rf"raymat: error: Ray's {what} \(process \d+\) was killed by signal 9 \(its logs: {short_tmp}/\S+\): give the "
        r"same command again, and the run goes on from its newest checkpoint\n",
        said,
    ), said
    assert seconds < 10  # Ray's own way takes 14 to 61 s
