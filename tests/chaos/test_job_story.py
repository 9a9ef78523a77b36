"""A run's life by `ray job`: submitted to a fresh head, a worker killed, a second submission refused, stopped, submitted again to
its end, exported, matted.

`RAYMAT_TRANSCRIPT=docs/job-story.md pytest -m chaos tests/chaos/test_job_story.py` writes what was typed and said.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from tests.support.datakit import encode, photo, write
from tests.support.heads import StandingHead, standing_head, wait_for
from tests.support.paths import ROOT

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

RUN = (
    *("--synthetic", "64", "--backbone", "mobilenetv2", "--resolution", "64", "--crop", "32:64", "--device", "cpu"),
    *("--checkpoint-interval", "10", "--valid-interval", "1000", "--valid-examples", "4"),
    *("--workers", "2", "--no-spares"),
)  # fmt: skip
LONG = 20_000
"""Steps that no machine trains while the story lasts."""
PATIENT = '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}'
SHOWN = re.compile(
    r"raymat: |is complete|stopped: |restart|restored|workers failed|validation of|submitted successfully|SUCCEEDED|FAILED|STOPPED"
    r"|was stopped|equal to the bit|cut|data  |run  |best  |goodput|training  "
)
"""Lines of an output that tell the story."""


class Story:
    """Commands on the head, each with what it said."""

    def __init__(self, head: StandingHead, folder: Path) -> None:
        self.lines: list[str] = []
        self._head, self._folder = head, folder
        address = f"http://127.0.0.1:{head.dashboard_port}"
        self._environment = head.environment | {"RAY_API_SERVER_ADDRESS": address}
        self._environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def say(self, text: str) -> None:
        self.lines += ["", text, ""]

    def run(self, *words: str, code: int = 0, told: str | None = None) -> str:
        """Run a command in the project; `told`: as the transcript has it."""
        done = wait_for(lambda: self._done(words), 120)
        said = done.stdout + done.stderr
        assert done.returncode == code, f"{words}: {done.returncode}\n{said[-4000:]}"
        shown = [*dict.fromkeys(line for line in said.splitlines() if SHOWN.search(line))]
        self.lines += [
            f"    $ {told or ' '.join(words)}",
            *(f"    {self._plain(line)}" for line in shown[-12:]),
        ]
        self.lines += [f"    (exit code {code})"] if code else []
        return said

    def _done(self, words: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
        """None while the head's agent, which starts jobs, has not come up yet."""
        done = subprocess.run(
            words, cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=1500
        )
        return None if "No available agent" in done.stderr else done

    def submit(
        self, steps: int, *, code: int = 0, name: str = "", wait: bool = True, storage: bool = True
    ) -> str:
        words = ["ray", "job", "submit", "--working-dir", ".", "--runtime-env-json", PATIENT]
        words += [] if wait else ["--no-wait"]
        words += ["--submission-id", name] if name else []
        run = ["python", "jobs/base.py", "--name", "night", *RUN, "--steps", str(steps)]
        run += ["--storage", str(self._folder / "runs")] if storage else []
        shown = " ".join(
            [
                *words,
                "--",
                "python",
                "jobs/base.py",
                "--name",
                "night",
                "--steps",
                str(steps),
                "...",
                *(["--storage", "/shared/runs"] if storage else []),
            ]
        )
        return self.run(*words, "--", *run, code=code, told=shown.replace(PATIENT, f"'{PATIENT}'"))

    def _plain(self, line: str) -> str:
        line = re.sub(r"\x1b\[[0-9;]*m", "", line)
        line = line.replace(str(self._folder), "/shared").replace(
            self._environment["RAY_TMPDIR"], "/tmp/ray"
        )
        line = re.sub(
            r"^[\d:, -]+\t[A-Z]+ cli\.py:\d+ -- ", "", line
        )  # Ray's own beginning of a line
        return re.sub(r"session_[\w-]+", "session_...", line)[:300].rstrip()


def events(store: Store, kind: str) -> list[dict[str, object]]:
    return [event for event in read_events(store) if event["kind"] == kind]


def committed(store: Store) -> int:
    return max((int(str(event["step"])) for event in events(store, "commit")), default=0)


def test_a_run_lives_through_jobs_kills_and_stops(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "runs"), "night")
    with standing_head() as head:
        story = Story(head, tmp_path)
        story.say(
            "Without `--storage` the run would lie in the copy of the project that Ray removes after the job:"
        )
        said = story.submit(LONG, storage=False, code=1)
        assert "goes with it" in said

        story.say("Submitted, without waiting:")
        story.submit(LONG, name="night-1", wait=False)
        wait_for(lambda: committed(store) >= 20, 900)

        story.say("The same run submitted once more, while it trains:")
        assert "is being trained by" in story.submit(LONG, code=1)

        story.say("A worker is killed (`kill -9`); the run goes on by itself.")
        ranks = events(store, "start")[-1]["ranks"]
        assert isinstance(ranks, list)
        os.kill(ranks[-1]["pid"], signal.SIGKILL)
        wait_for(lambda: len(events(store, "start")) >= 2, 600)
        reached = committed(store)
        wait_for(lambda: committed(store) > reached, 600)

        story.say("Stopped: the workers commit the step that they are in.")
        story.run("ray", "job", "stop", "night-1")
        assert "stopped: " in story.run("ray", "job", "logs", "night-1")
        stopped = committed(store)

        story.say("Submitted again, and to a nearer end:")
        said = story.submit(stopped + 30)
        assert f"is complete: step {stopped + 30} of {stopped + 30}" in said
        assert events(store, "restore")[-1]["step"] == stopped

        story.say("And once more: there is nothing left to do.")
        assert "nothing to do" in story.submit(stopped + 30)

        story.say("Then, without any cluster:")
        write(f"{tmp_path}/me.jpg", encode(photo(1), "JPEG"))
        write(f"{tmp_path}/room.jpg", encode(photo(2), "JPEG"))
        run, shared = f"{tmp_path}/runs/night", "/shared/runs/night"
        story.run("raymat", "restarts", run, told=f"raymat restarts {shared}")
        story.run(
            "raymat",
            "export",
            run,
            "-o",
            f"{tmp_path}/night.pth",
            told=f"raymat export {shared} -o night.pth",
        )
        matte = [
            "--source",
            f"{tmp_path}/me.jpg",
            "--background",
            f"{tmp_path}/room.jpg",
            "-o",
            f"{tmp_path}/cut.png",
        ]
        story.run(
            "raymat",
            "matte",
            f"{tmp_path}/night.pth",
            *matte,
            told="raymat matte night.pth --source me.jpg --background room.jpg -o cut.png",
        )
        assert (tmp_path / "cut.png").stat().st_size > 0
    if target := os.environ.get("RAYMAT_TRANSCRIPT"):
        head_line = (
            "# A run's life by `ray job`\n\nWritten by `tests/chaos/test_job_story.py` on a head of `ray start --head`: what was "
            "typed, and the lines of the answers that tell the story."
        )
        (ROOT / target).write_text("\n".join([head_line, *story.lines]) + "\n", encoding="utf-8")
