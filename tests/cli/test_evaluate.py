"""Laws of `raymat evaluate`: the run's own numbers again, one table for all, nothing but what was asked for is written."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raymat.analysis.evaluation import METRICS, Candidate, mean, measure
from raymat.analysis.examples import spread
from raymat.config.run import RunConfig, to_dict
from raymat.config.sections import ModelConfig
from raymat.data.batch import Geometry
from raymat.data.dataset.source import SourceSpec
from raymat.distributed.world import World
from raymat.model.matting import build
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.run.open_run import open_run
from tests.support import runs
from tests.support.datakit import write_dataset

Command = Callable[..., tuple[int, list[str], list[str]]]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """A run of each stage, of two steps, with one validation at the end."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for stage in ("base", "refine"):
        options = {"steps": 2, "valid_interval": 2, "checkpoint_interval": 2, "ema_decay": 0.9}
        options |= {"valid_metrics": "loss,sad,mse,grad,conn"}
        found[stage] = runs.tiny(folder, stage, stage, **options)
        runs.train(World(), found[stage])
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with a base network that was never trained."""
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(build("base", ModelConfig(backbone="mobilenetv2"), 1).state_dict(), path)
    return str(path)


@pytest.fixture
def memory() -> Iterator[None]:
    fsspec.filesystem("memory").store.clear()
    yield
    fsspec.filesystem("memory").store.clear()


def url_of(config: RunConfig) -> str:
    return f"{config.storage}/{config.name}"


def contents(folder: str) -> dict[str, tuple[int, int]]:
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(f): (f.stat().st_size, f.stat().st_mtime_ns) for f in files}


# The same numbers as in training.


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["base", "refine"])
@pytest.mark.parametrize("prefix", ["", "ema_"])
def test_a_checkpoint_s_validation_is_found_again_to_the_bit(
    stage: str, prefix: str, trained: dict[str, RunConfig], raymat: Command, memory: None
) -> None:
    config = trained[stage]
    rows = read_metrics(runs.store_of(config))
    validation = next(r for r in rows if r["kind"] == "valid" and r["step"] == 2)
    validation |= validation["metrics"]
    before = contents(url_of(config))
    what = url_of(config) + ("@ema" if prefix else "")
    code, out, _ = raymat("evaluate", what, "--examples", "3", "--json", "memory://e.json")
    assert (code, len(out)) == (0, 3)
    (row,) = json.loads(fsspec.filesystem("memory").cat("/e.json"))["rows"]
    assert (row["step"], row["ema"]) == (2, bool(prefix))
    for metric in ("loss", "sad", "mse", "grad", "conn"):
        assert row["means"][metric] == validation[f"{prefix}{metric}"], metric
    assert contents(url_of(config)) == before


def test_the_examples_are_those_of_validation() -> None:
    source = SourceSpec.synthetic(count=20, seed=5, size=32, valid_count=9).open()
    examples = spread(source, "valid", 5, 4, Geometry("base", 32))
    order = runs.order_of(runs.tiny("x", "x", valid_examples=4, seed=5))
    order = type(order)(**{**vars(order), "valid_pairs": 9, "valid_backgrounds": 9})
    made = [batch.examples for batch in examples.batches()]
    assert made == [(example,) for example in order.valid_examples_list()]
    assert [example.pair for (example,) in made] == [0, 2, 4, 6]


def test_the_training_split_is_seen_without_augmentation() -> None:
    source = SourceSpec.synthetic(count=5, seed=0, size=32, valid_count=9).open()
    geometry = Geometry("base", 32)
    (here, *others) = spread(source, "train", 0, None, geometry).batches()
    assert [b.examples[0].pair for b in (here, *others)] == [0, 1, 2, 3, 4]
    assert not here.train
    (there, *_) = spread(source, "valid", 0, 5, geometry).batches()
    assert not np.array_equal(here.fgr, there.fgr)


def test_more_examples_than_pairs_are_the_pairs() -> None:
    source = SourceSpec.synthetic(count=5, seed=0, size=32, valid_count=3).open()
    assert spread(source, "valid", 0, 50, Geometry("base", 32)).count == 3


def test_few_examples_are_held_however_many_there_are() -> None:
    source = SourceSpec.synthetic(count=1, seed=0, size=32, valid_count=400).open()
    opened: list[int] = []
    inner = source.open_background
    source.open_background = lambda index, valid=False: opened.append(index) or inner(index, valid)  # type: ignore[method-assign]
    found = measure(
        [flat(0.5)], spread(source, "valid", 0, None, Geometry("base", 32)), device=CPU, precision="fp32"
    )  # fmt: skip
    for _ in range(10):
        next(found)
    found.close()  # type: ignore[attr-defined]
    assert len(opened) <= 10 + 2 * 2 + 1 + 2


# Means of predictions.


class Flat(nn.Module):
    """Predicts the same alpha and foreground everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, src: Tensor, bgr: Tensor) -> tuple[Tensor, ...]:
        pha = torch.full_like(src[:, :1], self.value)
        return pha, torch.full_like(src, self.value), torch.zeros_like(pha), src


def flat(value: float) -> Candidate:
    return Candidate(f"flat {value}", "base", Flat(value))  # type: ignore[arg-type]


def test_an_ensemble_is_the_mean_of_predictions_and_not_of_numbers() -> None:
    source = SourceSpec.synthetic(count=1, seed=0, size=32, valid_count=2).open()
    examples = spread(source, "valid", 0, None, Geometry("base", 32))
    both = [flat(0.2), flat(0.8)]
    for seen in measure(both, examples, device=CPU, precision="fp64", ensemble=True):
        low, high, joint = seen.values
        pha, fgr = seen.batch.pha / 255, seen.batch.fgr[seen.batch.pha > 0] / 255
        assert joint["sad"] == pytest.approx(np.abs(pha - 0.5).sum() / 1000)
        assert joint["mse"] == pytest.approx(1000 * ((pha - 0.5) ** 2).mean())
        assert joint["fgr_mse"] == pytest.approx(1000 * ((fgr - 0.5) ** 2).mean())
        assert joint["loss"] is None
        assert low["sad"] == pytest.approx(np.abs(pha - 0.2).sum() / 1000)
        assert high["sad"] == pytest.approx(np.abs(pha - 0.8).sum() / 1000)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, None, 2.0], 1.5), ([None], None), ([], None), ([1.0, math.nan], None), ([0.1] * 10, 0.1)],
)  # fmt: skip
def test_a_mean_is_of_what_is_there_and_finite(
    values: list[float | None], expected: float | None
) -> None:
    assert mean(values) == expected


# What is written and shown.


def test_table_and_files_say_the_same(
    trained: dict[str, RunConfig], weights: str, raymat: Command, tmp_path: Path, memory: None
) -> None:
    data, walls = write_dataset(str(tmp_path / "d"), valid=3)
    files = ["--csv", str(tmp_path / "new/e.csv"), "--json", "memory://b/e.json"]
    worst = ["--worst", str(tmp_path / "w.png"), "--worst-by", "mse"]
    whats = [url_of(trained["base"]), url_of(trained["refine"]), weights]
    code, out, err = raymat(
        "evaluate", *whats, "--ensemble", "--dataset", data, "--backgrounds", walls, *files, *worst
    )
    assert code == 0
    assert err[0] == f"note: {whats[1]} was trained at 64 pixels, and is measured at 32"
    found = json.loads(fsspec.filesystem("memory").cat("/b/e.json"))
    assert [example["name"] for example in found["examples"]] == [
        "clip0/0000",
        "clip0/0002",
        "clip1/0001",
    ]
    labels = [*whats, "mean of the 3 predictions"]
    assert [row["what"] for row in found["rows"]] == labels
    assert [row.get("stage") for row in found["rows"]] == ["base", "refine", "base", None]
    read = list(csv.DictReader(io.StringIO((tmp_path / "new/e.csv").read_text())))
    assert len(read) == 4 * (3 + 1)
    for i, row in enumerate(found["rows"]):
        mine = read[4 * i : 4 * i + 4]
        assert [line["number"] for line in mine] == ["0", "1", "2", "mean"]
        for metric in METRICS:
            values = [example[metric] for example in row["examples"]]
            texts = [
                "" if value is None else str(value) for value in [*values, row["means"][metric]]
            ]
            assert [line[metric] for line in mine] == texts
            if None not in values:
                assert row["means"][metric] == pytest.approx(sum(values) / 3)
        assert out[1 + i].startswith(row["what"])
    assert found["rows"][3]["means"]["loss"] is None
    header, *lines = [line.split() for line in out[:5]]
    assert header == ["what", "step", "loss", "SAD", "MSE", "Grad", "Conn", "fgr", "MSE"]
    sads = [row["means"]["sad"] for row in found["rows"]]
    shown = [line[-5] for line in lines]
    assert [cell.endswith("*") for cell in shown] == [sad == min(sads) for sad in sads]
    assert [float(cell.rstrip("*")) for cell in shown] == pytest.approx(sads, abs=5e-5)
    assert out[5] == (
        f"3 examples of valid/ of {data} at 32 x 32 (seed 0), cpu, fp32; SAD, Grad and Conn in thousands, "
        "MSE in thousandths; * is the least"
    )
    picture = cv2.imread(str(tmp_path / "w.png"))
    assert picture is not None
    assert picture.shape == (18 + 3 * 224, 5 * 224, 3)


def test_the_worst_come_first_and_the_first_of_equals() -> None:
    from raymat.analysis import worst_examples as module

    source = SourceSpec.synthetic(count=1, seed=0, size=32, valid_count=12).open()
    examples = spread(source, "valid", 0, None, Geometry("base", 32))
    kept = module.Worst("sad")
    sads = []
    for seen in measure([flat(0.0)], examples, device=CPU, precision="fp32"):
        kept.see(seen, "")
        sads.append(seen.values[0]["sad"] or 0.0)
    wanted = sorted(range(12), key=lambda number: (-sads[number], number))[: module.KEPT]
    assert [-number for _, number, _ in sorted(kept._heaps[0], reverse=True)] == wanted


def test_a_picture_that_cannot_be_read_is_told(
    weights: str, raymat: Command, tmp_path: Path
) -> None:
    data, walls = write_dataset(str(tmp_path), valid=2)
    (Path(data) / "valid/fgr/clip0/0000.jpg").write_bytes(b"no picture")
    sizes = ["--resolution", "32", "--examples", "2"]
    code, _, err = raymat("evaluate", weights, "--dataset", data, "--backgrounds", walls, *sizes)
    assert code == 0
    assert err[0].startswith("note: example 0: another picture stands in for ")


def test_a_run_s_dataset_is_the_one_that_it_listed(
    local: Any, raymat: Command, tmp_path: Path
) -> None:
    data, walls = write_dataset(str(tmp_path), valid=2)
    folders = {"dataset": data, "backgrounds": walls, "synthetic": None, "valid_examples": 2}
    storage, _, name = local.url.rpartition("/")
    config = runs.tiny(storage, name, **folders)
    open_run(config, local.store)
    network = build("base", config.model, 1).state_dict()
    local.commit(5, tensors={f"model/{n}": t for n, t in network.items()}, config=to_dict(config))
    for half in ("fgr", "pha"):
        (have,) = Path(f"{data}/valid/{half}/clip0").iterdir()
        have.with_stem("0009").write_bytes(have.read_bytes())
    code, out, _ = raymat("evaluate", local.url)
    assert (code, out[-1][:28]) == (0, f"2 examples of valid/ of {data}"[:28])
    code, out, _ = raymat("evaluate", local.url, "--dataset", data, "--backgrounds", walls)
    assert (code, out[-1][:10]) == (0, "3 examples")


def test_what_has_only_the_half_that_is_looked_at_is_enough(
    weights: str, raymat: Command, tmp_path: Path
) -> None:
    data, walls = write_dataset(str(tmp_path), valid=2)
    for folder in (data, walls):
        os.rename(f"{folder}/train", f"{folder}/elsewhere")
    where = ["--dataset", data, "--backgrounds", walls, "--resolution", "32"]
    assert raymat("evaluate", weights, *where)[0] == 0
    code, _, err = raymat("evaluate", weights, *where, "--split", "train")
    line = f"raymat: error: no such folder: {data}/train/fgr: {data} has elsewhere/, valid/"
    assert (code, err) == (2, [line])


# What goes wrong.


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "name what to evaluate: weights files or runs (raymat evaluate --help)"),
        (["W"], "W does not say what to evaluate on: give --dataset and --backgrounds, or --synthetic N"),
        (["W", "--dataset", "d"], "--dataset and --backgrounds go together: one of them is missing"),
        (["W", "--synthetic", "0"], "--synthetic must be at least 1, got 0"),
        (["W", "--synthetic", "2", "--dataset", "d"], "give either --dataset and --backgrounds, or --synthetic N"),
        (["W", "--synthetic", "2", "--examples", "0"], "--examples must be at least 1, got 0"),
        (["W", "--synthetic", "2", "--threads", "0"], "--threads must be in 1..1024, got 0"),
        (["W", "--synthetic", "2", "--resolution", "30"], "--resolution must be a positive multiple of 4, got 30"),
        (["W", "--synthetic", "2", "--seed", "-1"], "--seed must be in 0..2**63-1, got -1"),
        (["W", "--synthetic", "2", "--ensemble"], "--ensemble is a mean of several predictions: name at least two"),
        (["W", "W", "--ensemble", "--worst-by", "loss"], "--worst-by loss: an ensemble has no loss, use another metric"),
        (["W", "--synthetic", "2", "--worst", "x.jpg"], "--worst must end in .png, got 'x.jpg'"),
        (["W", "--synthetic", "2", "--csv", "/tmp"], "--csv /tmp: expected a file's name, got a folder"),
        (["W", "--synthetic", "2", "--json", "no://x"], "--json: cannot open no://x: Protocol not known: no"),
        (["W", "--dataset", "/no/where", "--backgrounds", "/no/where"], "no such folder: /no/where/valid/fgr"),
        (["/no/where"], "/no/where is neither a weights file (.pth, .pt, .ckpt, .bin, .safetensors) nor a run with a checkpoint"),
        (["W", "--split", "test"], "--split: expected one of valid, train, got 'test'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    argv: list[str], said: str, weights: str, raymat: Command, tmp_path: Path
) -> None:
    code, out, err = raymat("evaluate", *(weights if word == "W" else word for word in argv))
    assert (code, out, len(err)) == (2, [], 1)
    line = err[0].replace(weights, "W")
    assert line.startswith("raymat: error: ")
    assert said in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_one_line(weights: str, raymat: Command) -> None:
    code, _, err = raymat("evaluate", weights, "--synthetic", "2", "--device", "cuda")
    assert (code, err) == (
        2, ["raymat: error: --device cuda: torch finds no CUDA device here, use --device cpu"],
    )  # fmt: skip


def test_an_interrupt_leaves_one_line_and_no_file(
    weights: str, raymat: Command, tmp_path: Path
) -> None:
    path = tmp_path / "e.csv"
    sizes = ["--synthetic", "3000", "--resolution", "32"]
    # Whoever runs the tests may have all processes but its first leave the signal to that one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        code, out, err = raymat("evaluate", weights, *sizes, "--csv", str(path))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out, err) == (130, [], ["raymat: interrupted"])
    assert not path.exists()
