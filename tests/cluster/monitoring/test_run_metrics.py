"""Laws of a run's metrics: Prometheus finds what the document and the dashboard name, and a worker's death doubles nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from raymat.cluster.monitoring.run_metrics import LABELS, METRICS, PREFIX, MetricsExporter
from raymat.cluster.nodes import metrics_url
from raymat.storage.store import Store
from raymat.train.observability.progress import Progress
from tests.support.heads import wait_for
from tests.support.kit import starts, tiny
from tests.support.kit import wait_for as wait_for_event
from tests.support.paths import ROOT

NAMES = {PREFIX + metric.name for metric in METRICS}
PROGRESS = Progress(
    stage="base",
    step=120,
    total_steps=800,
    examples_left=5440,
    examples_per_second=15.25,
    loss=0.5,
    valid_loss=None,
    commit_step=112,
    commit_time=1.5e9,
    world=2,
    attempt=3,
    data_wait=0.125,
    step_seconds=0.25,
    save_stall=0.75,
    replaced=7,
    goodput=0.9375,
)
SHOWN = {
    "ray_raymat_step": 120,
    "ray_raymat_planned_steps": 800,
    "ray_raymat_examples_left": 5440,
    "ray_raymat_loss": 0.5,
    "ray_raymat_step_seconds": 0.25,
    "ray_raymat_examples_per_second": 15.25,
    "ray_raymat_data_wait_ratio": 0.125,
    "ray_raymat_commit_step": 112,
    "ray_raymat_commit_timestamp_seconds": 1.5e9,
    "ray_raymat_save_stall_seconds": 0.75,
    "ray_raymat_restarts": 2,
    "ray_raymat_replaced_examples": 7,
    "ray_raymat_goodput_ratio": 0.9375,
    "ray_raymat_workers": 2,
}


def scrape(url: str, run: str) -> dict[str, list[float]]:
    """The values of a run's metrics, as a Prometheus would read them; of each, one for every series."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(ray_raymat_\w+)\{(.*)\} (\S+)", line)
        if match and f'run="{run}"' in match[2]:
            found.setdefault(match[1], []).append(float(match[3]))
    return found


def test_the_document_lists_each_metric_with_its_meaning() -> None:
    text = (ROOT / "docs/metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `(ray_raymat_\w+)` \| (.+) \|$", text, re.MULTILINE)
    assert rows == [(PREFIX + metric.name, metric.meaning) for metric in METRICS]
    assert set(re.findall(r"ray_raymat_\w+", text)) == NAMES


def test_the_dashboard_and_its_variable_ask_for_metrics_that_exist() -> None:
    board = json.loads((ROOT / "deploy/raymat_dashboard.json").read_text("utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    (variable,) = [each for each in board["templating"]["list"] if each["name"] == "run"]
    queries.append(variable["query"]["query"])
    asked = {name for query in queries for name in re.findall(r"ray_\w+", query)}
    assert asked == NAMES
    assert all("ray_raymat_" in query for query in queries)
    labels = {label for query in queries for label in re.findall(r"\{(\w+)[=~]", query)}
    assert labels == {"run"}


def test_names_have_units_and_no_label_grows() -> None:
    assert LABELS == ("run", "stage")
    for metric in METRICS:
        assert re.fullmatch(r"raymat_[a-z_]+", metric.name)
        assert not metric.name.endswith("_total"), "a gauge"
    seconds = {metric.name for metric in METRICS if "_seconds" in metric.name}
    assert seconds == {
        "raymat_step_seconds",
        "raymat_commit_timestamp_seconds",
        "raymat_save_stall_seconds",
    }


class _Counted:
    def __init__(self) -> None:
        self.values: list[float] = []

    def set(self, value: float) -> None:
        self.values.append(value)


def test_they_are_set_once_for_each_progress_and_left_alone_where_nothing_is_known(
    tmp_path: Path, cluster: None
) -> None:
    exporter = MetricsExporter(tiny("base", tmp_path, "run"))
    gauges = {metric.name: _Counted() for metric in METRICS}
    exporter._gauges = [(metric, gauges[metric.name]) for metric in METRICS]  # type: ignore[misc]
    for progress in (PROGRESS, PROGRESS, dataclasses.replace(PROGRESS, step=130, loss=None)):
        exporter.look(progress, [])
    assert gauges["raymat_step"].values == [120, 130]
    assert gauges["raymat_loss"].values == [0.5]
    assert gauges["raymat_valid_loss"].values == []


@pytest.mark.slow
def test_a_scrape_of_rays_agent_has_what_the_run_is(tmp_path: Path, cluster: None) -> None:
    exporter = MetricsExporter(tiny("base", tmp_path, "scraped"))
    url = metrics_url()
    assert url is not None
    exporter.look(PROGRESS, [])
    wait_for(lambda: scrape(url, "scraped") or None, 60)
    assert scrape(url, "scraped") == {name: [value] for name, value in SHOWN.items()}


@pytest.mark.chaos
def test_a_scrape_of_a_real_run_has_each_metric_once_before_and_after_a_workers_death(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "raymat", "base", "--name", "run", "--storage", str(tmp_path)]
    command += ["--synthetic", "64", "--backbone", "mobilenetv2", "--resolution", "48"]
    command += ["--crop", "32:48", "--batch-size", "8", "--device", "cpu", "--workers", "2"]
    command += ["--log-loss-interval", "1", "--checkpoint-interval", "20", "--steps", "100000"]
    command += ["--epoch-examples", "1000000", "--valid-examples", "0"]
    environment = os.environ | {"RAY_ADDRESS": "local"}
    store = Store.open(str(tmp_path), "run")
    log = tmp_path / "log"
    with log.open("w") as output:
        driver = subprocess.Popen(command, env=environment, stderr=output, stdout=output, cwd=ROOT)
    try:
        wait_for_event(store, "commit", lambda event: event["step"] >= 20)
        found = re.search(r"^metrics +(\S+)$", log.read_text(), re.MULTILINE)
        assert found, log.read_text()
        wait_for(lambda: "ray_raymat_goodput_ratio" in scrape(found[1], "run") or None, 90)
        before = scrape(found[1], "run")
        assert before.keys() == NAMES - {"ray_raymat_valid_loss"}
        assert before["ray_raymat_restarts"] == [0]
        victim = starts(store)[-1]["ranks"][1]["pid"]
        os.kill(victim, signal.SIGKILL)
        wait_for_event(store, "first_step", lambda event: event["attempt"] == 2)
        time.sleep(25)
        after = scrape(found[1], "run")
        print(f"before {before}\nafter {after}")
        assert {name: len(values) for name, values in after.items()} == dict.fromkeys(before, 1)
        assert after["ray_raymat_restarts"] == [1]
        assert after["ray_raymat_workers"] == [2]
        (step,) = after["ray_raymat_step"]
        (left,) = after["ray_raymat_examples_left"]
        assert left == (100_000 - step) * 8
        newest = max(e["step"] for e in [wait_for_event(store, "commit", lambda e: True)])
        assert step > newest
    finally:
        driver.send_signal(signal.SIGTERM)
        driver.wait(120)
