from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.checkpoint.store import Store
from raymat.errors import ConfigError
from raymat.tools.diff import compare, diff, is_circumstance, main, report
from raymat.world import World

EXTRA = {
    "cursor": {"next_example": 80},
    "best": 0.5,
    "history": [1.0, math.nan],
    "config": {"seed": 0, "name": "x"},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _state() -> dict[str, Tensor]:
    return {
        "weight": torch.arange(12.0).reshape(3, 4),
        "nan": torch.tensor([math.nan, math.inf, 0.0]),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "count": torch.tensor(2**60),
        "empty": torch.empty(0, 2),
    }


def _write(
    folder: Path, name: str, step: int = 10, world: int = 1, attempt: int = 1, **changes: Any
) -> str:
    extra = EXTRA | changes.pop("extra", {})
    snapshot = Snapshot.take(step, {**_state(), **changes}, extra)
    store = Store.open(str(folder), name)
    for rank in range(world):
        write_share(store, CheckpointId(step, attempt), snapshot, World(rank, world), name)
    return f"{folder}/{name}"


def _report(a: str, b: str, **more: Any) -> tuple[int, list[str]]:
    out = io.StringIO()
    code = report(a, b, out=out, **more)
    return code, out.getvalue().splitlines()


def test_equal_states_are_equal_whoever_wrote_them(tmp_path: Path) -> None:
    a = _write(tmp_path, "a", world=1)
    b = _write(tmp_path, "b", world=3, attempt=7)
    code, lines = _report(a, b)
    assert code == 0
    assert lines == [
        f"A  {tmp_path}/a step-000000010-a001",
        f"B  {tmp_path}/b step-000000010-a007",
        "equal to the bit: 5 tensors, 6 values",
    ]


def test_a_run_stands_for_its_newest_checkpoint(tmp_path: Path) -> None:
    a = _write(tmp_path, "a", step=10)
    _write(tmp_path, "a", step=20, weight=torch.zeros(1))
    b = _write(tmp_path, "b", step=10)
    assert _report(a, b)[0] == 1
    assert _report(f"{a}/checkpoints/step-000000010-a001", b + "/")[0] == 0


@pytest.mark.parametrize(
    ("name", "changed", "elements", "absolute", "relative"),
    [
        ("weight", torch.arange(12.0).reshape(3, 4).index_fill(0, torch.tensor([2]), 8.0), 3, 3.0, 3 / 11),
        ("weight", torch.tensor([-0.0, *range(1, 12)]).reshape(3, 4), 1, 0.0, 0.0),
        ("nan", torch.tensor([1.0, math.inf, 0.0]), 1, math.inf, math.inf),
        ("nan", torch.tensor([math.nan, -math.inf, 0.0]), 1, math.inf, math.inf),
        ("half", torch.tensor([1.0, 1.0, 1.0078125], dtype=torch.bfloat16), 1, 0.0078125, 0.0078125 / 1.0078125),
        ("count", torch.tensor(2**60 + 1), 1, 1.0, 2.0**-60),
    ],
)  # fmt: skip
def test_a_tensor_that_differs_is_measured(
    tmp_path: Path, name: str, changed: Tensor, elements: int, absolute: float, relative: float
) -> None:
    result = diff(_write(tmp_path, "a"), _write(tmp_path, "b", **{name: changed}))
    assert not result.equal
    (found,) = result.different_tensors
    assert (found.name, found.kind, found.elements) == (name, "values", elements)
    assert found.absolute == absolute
    assert found.relative == pytest.approx(relative)
    assert result.line == "different: 1 of 5 tensors, 0 of 6 values"


def test_a_nan_equals_only_the_same_nan() -> None:
    quiet, other = (
        torch.tensor([0x7FC00000], dtype=torch.int32),
        torch.tensor([0x7FC00001], dtype=torch.int32),
    )
    a, b = (Snapshot(0, {"x": bits.view(torch.float32)}) for bits in (quiet, other))
    assert compare("a", a, "b", a).equal
    assert not compare("a", a, "b", b).equal


def test_names_shapes_and_dtypes_count(tmp_path: Path) -> None:
    a = _write(tmp_path, "a", extra_a=torch.ones(2), weight=torch.ones(4, 3))
    b = _write(tmp_path, "b", extra_b=torch.ones(2), half=torch.ones(3))
    code, lines = _report(a, b)
    assert code == 1
    table = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[3:-1] if line}
    assert table == {
        "tensor": "elements max abs max rel",
        "extra_a": "float32[2] only in A",
        "extra_b": "float32[2] only in B",
        "half": "bfloat16[3] -> float32[3] dtype",
        "weight": "float32[4,3] -> float32[3,4] shape",
    }
    assert lines[-1] == "different: 4 of 7 tensors, 0 of 6 values"


def test_values_are_compared_key_by_key(tmp_path: Path) -> None:
    changed = {"cursor": {"next_example": 81}, "history": [1.0, math.nan, 2.0], "more": {}}
    result = diff(_write(tmp_path, "a"), _write(tmp_path, "b", step=11, extra=changed))
    assert [(d.name, d.a, d.b) for d in result.different_values] == [
        ("cursor.next_example", "80", "81"),
        ("history.2", "-", "2.0"),
        ("more", "-", "{}"),
        ("step", "10", "11"),
    ]
    assert "cursor.next_example  80  81" in result.text()


def test_times_attempts_and_places_do_not_count(tmp_path: Path) -> None:
    changed = {
        "attempt": 4, "time": 1.5, "run_id": "b", "host": {"name": "h2"}, "wall_seconds": 3, "saved_at": 1,
        "config": {"seed": 0, "name": "another", "storage": "s3://x", "dataset": "gs://d", "init": "y"},
    }  # fmt: skip
    assert diff(_write(tmp_path, "a"), _write(tmp_path, "b", extra=changed)).equal


@pytest.mark.parametrize(
    "name", ["step", "config.seed", "best", "validations.0.loss", "config.threads", "name", "rate"]
)
def test_other_names_do_count(name: str) -> None:
    assert not is_circumstance(name)


def test_the_table_is_short_and_worst_first(tmp_path: Path) -> None:
    ones = {f"t{i:02d}": torch.ones(2, dtype=torch.float64) for i in range(30)}
    moved = {name: t + 2.0 ** (-int(name[1:])) for name, t in ones.items()}
    code, lines = _report(_write(tmp_path, "a", **ones), _write(tmp_path, "b", **moved))
    assert code == 1
    rows = [line for line in lines if line.startswith("t") and not line.startswith("tensor")]
    assert [row.split()[0] for row in rows] == [f"t{i:02d}" for i in range(20)]
    assert rows[0].split() == ["t00", "float64[2]", "2", "1", "0.5"]
    assert "... and 10 more tensors" in lines
    assert lines[-1] == "different: 30 of 35 tensors, 0 of 6 values"


def test_what_was_passed_over_is_said(tmp_path: Path) -> None:
    a, b = _write(tmp_path, "a"), _write(tmp_path, "b")
    _write(tmp_path, "b", step=20)
    shard = next((tmp_path / "b/checkpoints/step-000000020-a001").glob("shard*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    code, lines = _report(a, b)
    assert code == 0
    assert lines[2].startswith(
        f"note: {tmp_path}/b: step-000000020-a001 is damaged: shard-00000-of-00001"
    )


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ("{tmp}/nothing", "cannot compare: there is no committed checkpoint in "),
        (
            "{tmp}/a/checkpoints/step-000000099-a001",
            "cannot compare: step-000000099-a001 is torn: no manifest",
        ),
        ("s3://", "cannot compare: expected the URL of a run"),
        ("nonsense://x/y", "cannot compare: cannot open nonsense://x"),
        ("{tmp}/torn", "(1 cannot be used, the newest: step-000000010-a001 is torn: no manifest)"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str, line: str
) -> None:
    a = _write(tmp_path, "a")
    _write(tmp_path, "torn")
    next((tmp_path / "torn/checkpoints/step-000000010-a001").glob("manifest*")).unlink()
    for pair in ((a, wrong.format(tmp=tmp_path)), (wrong.format(tmp=tmp_path), a)):
        code, lines = _report(*pair)
        assert (code, lines) == (2, [])
        error = capsys.readouterr().err
        assert line in error
        assert error.count("\n") == 1


def test_the_command_takes_two_urls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = _write(tmp_path, "a"), _write(tmp_path, "b", step=11)
    assert main([a, a]) == 0
    assert capsys.readouterr().out.endswith("equal to the bit: 5 tensors, 6 values\n")
    assert main([a, b]) == 1
    assert main(["--help"]) == 0
    assert "usage: raymat diff A B" in capsys.readouterr().out
    for wrong in ([], [a], [a, b, a], ["--all", a]):
        with pytest.raises(ConfigError, match="expected two URLs: raymat diff A B"):
            main(wrong)
