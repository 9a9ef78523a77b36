"""Laws of `raymat checkpoints`: everything in storage is shown, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raymat.analysis.checkpoint_table import CheckpointTable, tabulate
from raymat.cli.checkpoints import text, totals
from raymat.train.run.run_url import open_run_url


def checkpoints(url: str, now: float | None = None) -> CheckpointTable:
    return tabulate(open_run_url(url), now)


def _words(line: str) -> str:
    return " ".join(line.split())


def _cut(folder: str, pattern: str) -> None:
    """Take the last byte of a file."""
    (path,) = Path(folder).glob(pattern)
    path.write_bytes(path.read_bytes()[:-1])


def test_each_checkpoint_is_a_row_and_the_totals_are_a_line(made: Any) -> None:
    made.commit(10)
    made.commit(20, attempt=1, ranks=1)
    made.commit(20, attempt=2)
    made.commit(30, attempt=2, losses={10: 0.5, 20: 0.25, 30: None})
    now = max(info.modified for info in made.store.list()) + 150
    total = sum(made.files().values())
    lines = text(checkpoints(made.url, now=now)).splitlines()
    assert [_words(line) for line in lines] == [
        "step attempt world bytes age valid loss best state",
        f"10 1 2 {_size(made, 10, 1)} 2 min 0.5 committed",
        f"20 1 - {_size(made, 20, 1)} 2 min - torn: manifest-00001-of-00002.json is missing",
        f"20 2 2 {_size(made, 20, 2)} 2 min 0.25 best committed",
        f"30 2 2 {_size(made, 30, 2)} 2 min - committed",
        f"4 checkpoints, {total / 1000:.1f} kB: 3 committed, 1 torn; best: loss 0.25 at step 20",
    ]


def _size(made: Any, step: int, attempt: int) -> str:
    folder = f"checkpoints/step-{step:09d}-a{attempt:03d}"
    total = sum(info.size for info in made.store.list(folder))
    return f"{total / 1000:.1f} kB" if total >= 1000 else f"{total} B"


def test_json_says_the_same(local: Any, raymat: Any) -> None:
    local.commit(10, losses={10: 0.5})
    local.commit(20, ranks=1)
    code, out, err = raymat("checkpoints", local.url, "--json")
    assert (code, err) == (0, [])
    told = json.loads("\n".join(out))
    assert told["run"] == local.url
    assert (told["committed"], told["torn"]) == (1, 1)
    assert told["best"] == told["best_validation"] == {"step": 10, "loss": 0.5}
    first, second = told["checkpoints"]
    assert {k: first[k] for k in ("checkpoint", "step", "attempt", "world", "state", "best")} == {
        "checkpoint": "step-000000010-a001",
        "step": 10,
        "attempt": 1,
        "world": 2,
        "state": "committed",
        "best": True,
    }
    assert 0 <= first["age"] < 60
    assert (second["state"], second["world"], second["loss"]) == ("torn", None, None)
    assert second["reason"] == "torn: manifest-00001-of-00002.json is missing"


def test_the_best_is_the_one_that_can_be_had_and_a_better_validation_is_told(local: Any) -> None:
    losses = {0: 0.25, 10: float("nan"), 20: 0.5, 30: 0.75}
    for step in (10, 20, 30):
        local.commit(step, losses=losses)
    found = checkpoints(local.url)
    assert [row.best for row in found.rows] == [False, True, False]
    assert totals(found).endswith(
        "; best: loss 0.5 at step 20; no checkpoint of the best validation, 0.25 at step 0"
    )


def test_the_best_is_by_the_metric_and_in_the_direction_that_the_run_was_told(
    local: Any, raymat: Any
) -> None:
    found = [
        {"step": step, "loss": 0.5, "metrics": {"sad": sad}}
        for step, sad in ((10, 3.0), (20, 7.0), (30, 5.0))
    ]
    for step in (10, 20, 30):
        local.commit(step, validations=found, config={"best_metric": "sad", "best_mode": "max"})
    listing = checkpoints(local.url)
    assert [row.best for row in listing.rows] == [False, True, False]
    assert totals(listing).endswith("; best: sad 7 at step 20")
    told = json.loads("\n".join(raymat("checkpoints", local.url, "--json")[1]))
    assert (told["metric"], told["best"]) == ("sad", {"step": 20, "sad": 7.0})
    assert [row["sad"] for row in told["checkpoints"]] == [3.0, 7.0, 5.0]
    code, out, _ = raymat("prune", local.url, "--keep", "1", "--yes")
    assert (code, local.names()) == (0, ["step-000000020-a001", "step-000000030-a001"]), out
    code, _, err = raymat("prune", local.url, "--keep", "1", "--loss-thresholds", "0.5")
    assert code == 2
    assert "the one by its sad: leave --loss-thresholds out" in err[-1]


def test_of_two_attempts_at_the_best_step_the_newer_is_the_best(local: Any) -> None:
    for attempt in (1, 2):
        local.commit(10, attempt, losses={10: 0.5})
    assert [row.best for row in checkpoints(local.url).rows] == [False, True]


def test_a_truncated_file_shows_though_all_files_are_there(local: Any) -> None:
    local.commit(10)
    _cut(local.url, "checkpoints/*/shard-00001*")
    (row,) = checkpoints(local.url).rows
    assert row.state == "torn"
    assert row.reason.startswith("damaged: shard-00001-of-00002.safetensors has ")


def test_losses_come_from_the_newest_state_that_verifies(local: Any) -> None:
    local.commit(10, losses={10: 0.5})
    local.commit(20, losses={10: 0.5, 20: 0.25})
    (state,) = Path(local.url).glob("checkpoints/step-000000020*/state.json")
    state.write_bytes(state.read_bytes().replace(b"0.25", b"0.75"))
    assert checkpoints(local.url).best == (10, 0.5)


@pytest.mark.parametrize("extra", [{}, {"validations": 3}, {"validations": [1, {"step": "x"}]}])
def test_a_state_without_validations_has_no_best(local: Any, extra: dict[str, Any]) -> None:
    local.commit(10, **extra)
    found = checkpoints(local.url)
    assert (found.best, found.best_validation) == (None, None)
    assert "best" not in totals(found)


def test_a_run_that_has_not_saved_yet_is_no_error(made: Any, raymat: Any) -> None:
    made.store.write("run.json", b"{}")
    code, out, _ = raymat("checkpoints", made.url)
    assert (code, out) == (0, [f"{made.store.url} has no checkpoints yet"])
    assert json.loads("\n".join(raymat("checkpoints", made.url, "--json")[1]))["checkpoints"] == []


NO_RUN = ("there is no run at {url}", "{url} is neither a weights file")
"""What is said of an URL that nothing lies at: to commands that take runs, and to those that take weights too."""


@pytest.mark.parametrize("command", ["checkpoints", "verify", "prune --keep 1", "export -o x.pth"])
@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("{tmp}/nothing", NO_RUN),
        ("memory://runs/nothing", NO_RUN),
        ("s3://", "s3:// names no bucket: write s3://BUCKET/FOLDER"),
        ("nonsense://x/y", "cannot open nonsense://x"),
        ("{tmp}/file", "{url} is a file"),
        ("{tmp}/file/run", "a file lies where a folder should be"),
    ],
)
def test_what_is_no_run_is_one_line_and_exit_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raymat: Any,
    command: str,
    url: str,
    line: str | tuple[str, str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    url = url.format(tmp=tmp_path)
    code, out, err = raymat(*command.split(), url)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith("raymat: error: ")
    expected = line if isinstance(line, str) else line[command.startswith("export")]
    assert expected.format(url=url) in err[0]


@pytest.mark.parametrize(
    "command",
    [
        *("checkpoints", "events", "restarts", "plan", "watch", "report", "evaluate --synthetic 8"),
        *("export -o x.pth", "select"),
    ],
)
def test_a_run_named_without_its_storage_is_looked_for_in_the_default_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raymat: Any, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/try").mkdir(parents=True)
    (tmp_path / "runs/try/run.json").write_bytes(b"{}")
    code, out, err = raymat(*command.split(), "try")
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].endswith("; did you mean runs/try?")


@pytest.mark.parametrize("command", ["checkpoints", "events", "watch", "report"])
@pytest.mark.parametrize("name", ["{tmp}/runs/try@best", "try@20"])
def test_weights_of_a_run_in_its_place_are_answered_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raymat: Any, command: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/try").mkdir(parents=True)
    (tmp_path / "runs/try/run.json").write_bytes(b"{}")
    code, _, err = raymat(command, name.format(tmp=tmp_path))
    meant = name.format(tmp=tmp_path).partition("@")[0] if "/" in name else "runs/try"
    assert (code, len(err)) == (2, 1)
    assert err[0].endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize("command", ["checkpoints", "prune --keep 1"])
def test_a_checkpoint_is_no_run(local: Any, raymat: Any, command: str) -> None:
    checkpoint = local.commit(10)
    code, _, err = raymat(*command.split(), f"{local.url}/checkpoints/{checkpoint}")
    assert code == 2
    assert err == [f"raymat: error: expected the URL of a run, got a checkpoint's: use {local.url}"]
