from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raymat.analysis.compare import compare, diff, is_circumstance
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.cli.diff import main, report, summary, text
from raymat.distributed.world import World
from raymat.errors import ConfigError
from raymat.storage.store import Store

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
    assert summary(result) == "different: 1 of 5 tensors, 0 of 6 values"


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
    first = lines.index(next(line for line in lines if line.startswith("tensor")))
    table = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[first:-1] if line}
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
    assert "cursor.next_example  80  81" in text(result)


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
        ("{tmp}/nothing", "cannot compare: {tmp}/nothing is neither a weights file"),
        (
            "{tmp}/a/checkpoints/step-000000099-a001",
            "cannot compare: there is no step-000000099-a001 in {tmp}/a: the nearest that is committed is @10",
        ),
        ("{tmp}/a@99", "cannot compare: there is no checkpoint of step 99 in {tmp}/a"),
        ("{tmp}/a@ema", "step-000000010-a001 holds no"),
        ("s3://", "cannot compare: expected the URL of a run"),
        ("nonsense://x/y", "cannot compare: cannot open nonsense://x"),
        (
            "{tmp}/torn",
            "no checkpoint that verifies for {tmp}/torn: step-000000010-a001 is torn: no manifest",
        ),
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
        assert line.format(tmp=tmp_path) in error
        assert error.count("\n") == 1


def test_the_command_takes_two_urls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = _write(tmp_path, "a"), _write(tmp_path, "b", step=11)
    assert main([a, a]) == 0
    assert capsys.readouterr().out.endswith("equal to the bit: 5 tensors, 6 values\n")
    assert main([a, b]) == 1
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "usage: raymat diff" in capsys.readouterr().out
    for wrong in ([], [a], [a, b, a], ["--all", a], [a, b, "--limit", "-1"]):
        with pytest.raises(ConfigError) as refused:
            main(wrong)
        assert "\n" not in refused.value.line


# What changed, by part and by layer.

A = {
    "model/backbone.conv1.weight": torch.tensor([3.0, 0.0]),
    "model/backbone.conv2.weight": torch.tensor([0.0, 4.0]),
    "model/backbone.bn1.running_mean": torch.tensor([1.0]),
    "model/backbone.bn1.num_batches_tracked": torch.tensor(5),
    "model/decoder.conv4.bias": torch.zeros(2),
    "optimizer/exp_avg/backbone.conv1.weight": torch.tensor([1.0, 0.0]),
}
B = {
    "model/backbone.conv1.weight": torch.tensor([0.0, 3.0]),
    "model/backbone.conv2.weight": torch.tensor([0.0, 4.0]),
    "model/backbone.bn1.running_mean": torch.tensor([1.5]),
    "model/backbone.bn1.num_batches_tracked": torch.tensor(6),
    "model/decoder.conv4.bias": torch.zeros(2),
    "model/refiner.conv1.weight": torch.ones(1),
    "optimizer/exp_avg/backbone.conv1.weight": torch.tensor([-1.0, 0.0]),
}


def test_the_change_of_each_part_is_measured() -> None:
    parts = {p.name: p for p in compare("a", Snapshot(1, A), "b", Snapshot(1, B)).parts}
    assert list(parts) == [
        "model backbone", "model decoder", "model refiner", "model statistics", "optimizer exp_avg backbone",
    ]  # fmt: skip
    backbone = parts["model backbone"]
    assert (backbone.tensors, backbone.differ, backbone.only_a, backbone.only_b) == (2, 1, 0, 0)
    # A is (3, 0, 0, 4), of length 5; B is (0, 3, 0, 4): 3 * sqrt(2) apart, their product is 16.
    assert backbone.absolute == pytest.approx(3 * math.sqrt(2))
    assert backbone.relative == pytest.approx(3 * math.sqrt(2) / 5)
    assert backbone.cosine == pytest.approx(16 / 25)
    statistics = parts["model statistics"]
    assert (statistics.tensors, statistics.differ, statistics.relative) == (2, 2, 0.5)
    assert parts["optimizer exp_avg backbone"].cosine == -1.0
    decoder = parts["model decoder"]
    assert (decoder.differ, decoder.absolute, decoder.relative) == (0, 0.0, 0.0)
    assert math.isnan(decoder.cosine)
    assert (parts["model refiner"].only_a, parts["model refiner"].only_b) == (0, 1)


def test_the_summary_stands_before_the_tensors_and_the_last_line_stays() -> None:
    lines = text(compare("a", Snapshot(1, A), "b", Snapshot(1, B))).splitlines()
    heading = "part tensors differ |B - A| / |A| cosine only in A only in B"
    assert " ".join(lines[3].split()) == heading
    assert lines[4].split() == [
        "model",
        "backbone",
        "2",
        "1",
        "4.24",
        "0.849",
        "0.640000",
        "-",
        "-",
    ]
    assert lines[6].split() == ["model", "refiner", "1", "0", "0", "0", "-", "-", "1"]
    assert lines[-1] == "different: 5 of 7 tensors, 0 of 1 values"


def test_what_is_not_finite_has_no_norm_and_no_cosine() -> None:
    a, b = (Snapshot(1, {"model/aspp.w": torch.tensor([1.0, x])}) for x in (math.nan, 2.0))
    (part,) = compare("a", a, "b", b).parts
    assert math.isnan(part.relative)
    assert math.isnan(part.cosine)
    assert "aspp" in text(compare("a", a, "b", b))


def test_layers_are_the_modules_with_weights_in_the_networks_order() -> None:
    names = ["model/decoder.conv1.weight", "model/backbone.features.10.0.weight", "model/backbone.features.2.0.weight",
             "model/backbone.features.2.0.bias", "model/aspp.project.1.running_var", "ema/aspp.x.weight"]  # fmt: skip
    a, b = (Snapshot(1, {n: torch.full((1,), v) for n in names}) for v in (2.0, 3.0))
    found = compare("a", a, "b", b).layers
    assert [(layer.name, layer.tensors, layer.relative) for layer in found] == [
        ("backbone.features.2.0", 2, 0.5),
        ("backbone.features.10.0", 1, 0.5),
        ("decoder.conv1", 1, 0.5),
    ]


def test_weights_alone_are_compared_where_one_side_is_a_file_or_an_average(tmp_path: Path) -> None:
    a = _write(tmp_path, "a", **{"model/x": torch.ones(2), "ema/x": torch.zeros(2)})
    torch.save({"x": torch.ones(2)}, tmp_path / "w.pth")
    code, lines = _report(a, str(tmp_path / "w.pth"))
    assert code == 0
    assert lines[1:] == [
        f"B  {tmp_path}/w.pth",
        "note: the weights alone are compared",
        "equal to the bit: 1 tensors, 0 values",
    ]
    code, lines = _report(f"{a}@ema", str(tmp_path / "w.pth"))
    assert code == 1
    assert lines[0] == f"A  {tmp_path}/a step-000000010-a001 (average)"
    assert lines[-1] == "different: 1 of 1 tensors, 0 of 0 values"
    assert _report(f"{a}@10", a)[0] == 0


def test_the_picture_has_a_bar_for_each_layer_as_long_as_its_change(tmp_path: Path) -> None:
    from PIL import Image

    from raymat.analysis.change_plot import BARS, COLOURS, LABEL, MARGIN, ROW, TOP

    def network(*moved: float) -> dict[str, Tensor]:
        names = ("backbone.conv1", "aspp.conv", "decoder.conv1", "refiner.conv1")
        return {
            f"model/{n}.weight": torch.tensor([1.0 + m]) for n, m in zip(names, moved, strict=False)
        }

    a = _write(tmp_path, "a", **network(0.0, 0.0, 0.0))
    b = _write(tmp_path, "b", **network(0.05, 0.5, 0.0, 1.0))
    path = tmp_path / "out.png"
    code, lines = _report(a, b, picture=str(path))
    assert (code, lines[-1][:10]) == (1, "different:")
    image = Image.open(path)
    left = MARGIN + LABEL
    assert image.size == (left + BARS + MARGIN, TOP + 4 * ROW + MARGIN)
    # The scale goes from 0.01 to 1: 0.05 is at 0.35 of the width, 0.5 at 0.85.
    shares = {"backbone": 0.3495, "aspp": 0.8495, "decoder": 0.0, "refiner": 0.0}
    for row, (part, share) in enumerate(shares.items()):
        line = [image.getpixel((x, TOP + ROW * row + 3)) for x in range(left, left + BARS + 1)]
        assert line.count(COLOURS[part]) == pytest.approx(BARS * share, abs=3), part


def test_a_picture_that_cannot_be_written_is_said_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, line in (("x.jpg", "must end in .png"), ("nonsense://x.png", "nonsense")):
        assert _report(f"{tmp_path}/nothing", f"{tmp_path}/nothing", picture=path)[0] == 2
        error = capsys.readouterr().err
        assert line in error
        assert "nothing" not in error
