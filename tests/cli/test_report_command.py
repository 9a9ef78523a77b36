"""`raymat report` writes one page that needs nothing else, and in which nothing from storage can run."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from raymat.analysis.goodput.ledger import CAUSES
from raymat.analysis.report.chart_data import chart_data
from raymat.analysis.report.story import read_story
from tests.support.troubled_run import TroubledRun

Command = Callable[..., tuple[int, list[str], list[str]]]
CHROMIUM = os.environ.get("RAYMAT_TEST_CHROMIUM") or shutil.which("chromium")
HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)>"'


class Page(HTMLParser):
    """What a browser makes of a page: its elements, the content of its scripts, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text.append(data)

    @property
    def data(self) -> Any:
        """What the charts draw."""
        return json.loads(self.scripts[0])


@pytest.fixture
def make(tmp_path: Path, raymat: Command) -> Callable[..., Page]:
    def report(*urls: str) -> Page:
        code, said, errors = raymat("report", *urls, "-o", str(tmp_path / "page.html"))
        assert (code, errors) == (0, [])
        assert re.fullmatch(r".*page\.html: [\d.]+ [kM]B", said[0])
        return Page((tmp_path / "page.html").read_text(encoding="utf-8"))

    return report


def test_a_page_loads_nothing_and_runs_its_own_scripts_alone(
    tmp_path: Path, make: Callable[..., Page]
) -> None:
    page = make(TroubledRun(tmp_path, "run").write(3, 20).url)
    links = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data")
    ]
    assert links
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert not [tag for tag, _ in page.elements if tag in ("link", "iframe", "object", "base")]
    policy = next(a["content"] for tag, a in page.elements if "http-equiv" in a)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts]
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests[1:])
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}"
    )


def test_names_paths_errors_and_options_from_storage_are_text(
    tmp_path: Path, make: Callable[..., Page]
) -> None:
    name = "<script>alert(0)<img src=x onerror=alert(3)>"
    run = TroubledRun(tmp_path, name, config={"dataset": HOSTILE, HOSTILE: "x"})
    for kind, fields in {
        "replaced": {"path": HOSTILE, "reason": HOSTILE, "example": 1},
        "machine_lost": {"node": "1", "ip": HOSTILE, "reason": "", "ranks": [], "still": 1.0},
        HOSTILE: {"field": HOSTILE},
    }.items():
        run.add(kind, 1, **fields)
    page = make(run.write(3, 20).url)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 3
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    pictures = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in pictures)
    assert "<" not in page.scripts[0]
    assert page.data["runs"][0]["name"] == name
    text = "".join(page.text)
    assert name in text
    assert text.count(HOSTILE) >= 3


def test_a_page_tells_what_a_run_did(tmp_path: Path, make: Callable[..., Page]) -> None:
    page = make(TroubledRun(tmp_path, "portraits").write(3, 20).url)
    text = " ".join(page.text)
    assert "portraits  complete" in text
    assert "the run is complete after step 2000: the run's length" in text
    assert "ActorDiedError: the worker's machine is gone" in text
    for title in ("Timeline", "Where the time went", "Curves", "Restarts", "What happened", "Checkpoints", "Pictures"):  # fmt: skip
        assert title in text
    kinds = [a["data-chart"] for _, a in page.elements if "data-chart" in a]
    assert kinds == ["time", "steps", "loss", "valid", "speed", "lr"]
    (run,) = page.data["runs"]
    assert len(run["train"]["steps"]) == 200
    assert run["valid"]["steps"] == [1000, 2000]
    assert [how for _, how, _ in run["time"]["marks"]].count("note") == 2


def test_a_driver_that_died_is_bad_news_and_what_it_lost_is_not_known(
    tmp_path: Path, make: Callable[..., Page]
) -> None:
    run = TroubledRun(tmp_path, "run")
    run.add("start", 0, world=1, ranks=[], stage="base", total_steps=100, device="cpu")
    run.add("launch", after=9.0, pid=8, host="b", lease="1", resumed=True, config={}, heard=1.0)
    page = make(run.write(0, 2).url)
    assert "0 or more steps done again" in " ".join(page.text)
    (bad,) = [mark for mark in page.data["runs"][0]["time"]["marks"] if mark[1] == "bad"]
    assert bad[2] == "process 8 on b drives the run; the previous driver died"


def test_the_timeline_covers_all_time_of_all_workers(tmp_path: Path) -> None:
    story = read_story(TroubledRun(tmp_path, "run").write(10, 400))
    spans = chart_data([story])["runs"][0]["time"]["spans"]
    drawn = sum((end - begin) * (high - low) for begin, end, _, low, high, _ in spans)
    assert drawn == pytest.approx(story.ledger.slot_seconds, rel=0.01)
    assert len(spans) < 400


def test_every_cause_has_a_colour_by_day_and_by_night() -> None:
    style = resources.files("raymat.analysis.report").joinpath("assets/page.css").read_text()
    colours = re.findall(r"--c(\d+): #[0-9a-f]{6};", style)
    assert colours == [str(number) for number in range(len(CAUSES))] * 2
    assert re.findall(r"\.c(\d+) \{", style) == colours[: len(CAUSES)]


def brightness(colour: str) -> float:
    """The relative luminance of #rrggbb, as WCAG 2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]  # fmt: skip
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("light", [0, 1], ids=["day", "night"])
def test_words_and_lines_stand_out_from_what_is_behind_them(light: int) -> None:
    style = resources.files("raymat.analysis.report").joinpath("assets/page.css").read_text()
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", style.split("@media")[light]))
    badges = re.findall(r"\.state\.\w+ \{ color: var\(--(\w+)\); background: var\(--(\w+)\)", style)
    assert badges == [("paper", "good"), ("paper", "bad"), ("paper", "dim")]

    def contrast(one: str, other: str) -> float:
        dark, bright = sorted(brightness(colours[name]) + 0.05 for name in (one, other))
        return bright / dark

    words = [("paper", name) for name in ("ink", "dim", "link", "bad", "warn", "good")]
    words += [("card", "ink"), ("card", "dim")]
    assert {pair: contrast(*pair) for pair in words if contrast(*pair) < 4.5} == {}
    lines = [("paper", f"run{number}") for number in range(8)]
    assert {pair: contrast(*pair) for pair in lines if contrast(*pair) < 3} == {}


def test_a_long_run_makes_a_page_that_a_phone_can_show(
    tmp_path: Path, make: Callable[..., Page]
) -> None:
    page = make(TroubledRun(tmp_path, "run").write(40, 1500).url)
    assert (tmp_path / "page.html").stat().st_size < 1e6
    (run,) = page.data["runs"]
    assert len(run["train"]["steps"]) <= 1501
    assert len(run["time"]["spans"]) <= 8000


def test_several_runs_are_compared(tmp_path: Path, make: Callable[..., Page]) -> None:
    one = TroubledRun(tmp_path, "one", 1, {"seed": 0, "lr_refiner": 1e-3}).write(1, 20)
    two = TroubledRun(tmp_path, "two", 2, {"seed": 0, "lr_refiner": 3e-4}).write(0, 20, False)
    page = make(one.url, two.url)
    text = " ".join(page.text)
    assert "option one two lr_refiner 0.001 0.0003 " in text
    assert "seed 0 0" not in text[: text.index("Timeline")]
    assert [run["name"] for run in page.data["runs"]] == ["one", "two"]
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert links == ["#run-0", "#run-1"]


def test_what_is_damaged_is_missing_from_the_page_and_nothing_else(
    tmp_path: Path, make: Callable[..., Page]
) -> None:
    store = TroubledRun(tmp_path, "run").write(2, 20)
    store.write("tensorboard/events.out.tfevents.000009999.a001", b"\x08" + b"\0" * 11 + b"\xff" * 12)  # fmt: skip
    store.write("metrics/000002001-000002100-a099.jsonl", b'{"step": "x"}\n\xff\n[]\n')
    odd = b'{"time": 1795000001, "attempt": 2, "kind": "start", "world": "many"}\n'
    store.write("events/a002-rank-00001-0badcafe-00000.jsonl", odd)
    page = make(store.url)
    assert len(page.data["runs"][0]["train"]["steps"]) == 200
    assert sum(tag == "img" for tag, _ in page.elements) == 2
    assert page.data["runs"][0]["time"]["spans"]


def test_what_is_no_run_or_no_page_is_refused(tmp_path: Path, raymat: Command) -> None:
    code, _, errors = raymat("report", str(tmp_path / "nothing"), "-o", str(tmp_path / "a.html"))
    assert (code, len(errors)) == (2, 1)
    assert "there is no run to report on" in errors[0]
    code, _, errors = raymat("report", str(tmp_path / "nothing"), "-o", str(tmp_path / "a.pdf"))
    assert (code, len(errors)) == (2, 1)
    assert raymat("report")[0] == 2


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("size", ["1200,900", "390,800"])
def test_a_browser_draws_all_charts(tmp_path: Path, make: Callable[..., Page], size: str) -> None:
    make(TroubledRun(tmp_path, "run", config={"name": HOSTILE}).write(5, 50).url)
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size}"]
    command += ["--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom"]
    page = f"file://{tmp_path}/page.html"
    done = subprocess.run([*command, page], capture_output=True, text=True, check=True)
    assert 'data-drawn="6"' in done.stdout
    assert "CONSOLE" not in done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_charts_that_were_drawn_before_their_frame_had_a_width_fill_it(
    tmp_path: Path, make: Callable[..., Page]
) -> None:
    make(TroubledRun(tmp_path, "run").write(1, 20).url)
    widths = "[...f.contentDocument.querySelectorAll('.uplot')].map(c => c.clientWidth)"
    (tmp_path / "frame.html").write_text(
        "<iframe id=f src=page.html style='width: 390px; height: 9000px; border: 0'></iframe>"
        f"<script>f.onload = () => setTimeout(() => document.title = {widths}, 500)</script>"
    )
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]  # fmt: skip
    command += ["--allow-file-access-from-files", "--dump-dom", f"file://{tmp_path}/frame.html"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "<title>370,370,370,370,370,370</title>" in done.stdout  # 390 without the page's margins


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_curve_of_one_value_is_a_point(tmp_path: Path, make: Callable[..., Page]) -> None:
    store = TroubledRun(tmp_path, "run").write(0, 1)
    (segment,) = (tmp_path / "run/metrics").iterdir()
    segment.write_text(segment.read_text().splitlines()[0] + "\n")
    assert make(store.url).data["runs"][0]["train"]["steps"] == [10]
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=800,3000"]
    command += ["--virtual-time-budget=5000", f"--screenshot={tmp_path}/page.png"]
    subprocess.run([*command, f"file://{tmp_path}/page.html"], capture_output=True, check=True)
    drawn = cv2.imread(f"{tmp_path}/page.png")
    assert drawn is not None
    orange = np.all(drawn == (0x02, 0x5F, 0xD9), axis=-1)  # --run1 by day
    # Data wait and one learning rate, each with its sign in the legend. Rings have gaps where their edge is blended.
    whole = cv2.dilate(orange.astype(np.uint8), np.ones((5, 5)))
    assert cv2.connectedComponents(whole)[0] - 1 == 4


def test_damaged_events_are_counted_among_what_is_missing(tmp_path: Path) -> None:
    store = TroubledRun(tmp_path, "run").write(0, 2)
    assert read_story(store).gaps == []
    store.write("events/a001-rank-00001-torn-00000.jsonl", b'{"time": 1.0, "ki\n')
    told = "1 line of the run's events left out: damaged, or of another raymat."
    assert read_story(store).gaps == [told]
