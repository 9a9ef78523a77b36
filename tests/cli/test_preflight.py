"""Laws of `raymat check`: each thing that is wrong is named, with its file and what to do, and nothing is left behind."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from raymat.analysis.preflight.storage_room import checkpoint_bytes
from raymat.analysis.run_pictures import RunPictures
from raymat.config.flags import parse_run
from raymat.config.run import build as build_config
from raymat.config.run import to_dict
from raymat.config.sections import ModelConfig
from raymat.distributed.world import World
from raymat.model.matting import build
from raymat.train.run.open_run import open_run
from tests.support import runs
from tests.support.datakit import disc, encode, photo, write_dataset
from tests.support.mounts import small_disk

Command = Callable[..., tuple[int, list[str], list[str]]]


class Dataset:
    """A dataset of five pairs and four backgrounds, of two each to validate on, in which nothing is wrong."""

    def __init__(self, folder: Path) -> None:
        data, walls = write_dataset(str(folder))
        self.data, self.walls = Path(data), Path(walls)
        self.words = ("--dataset", data, "--backgrounds", walls)
        self.words += ("--resolution", "64", "--crop", "32:64")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path / "ds")


@pytest.fixture
def check(raymat: Command, dataset: Dataset) -> Callable[..., tuple[int, list[str]]]:
    """`raymat check` on the dataset: exit code and lines on stdout."""

    def run(*words: str) -> tuple[int, list[str]]:
        code, out, _ = raymat("check", *dataset.words, *words)
        return code, out

    return run


def findings(lines: list[str], severity: str = "error") -> list[str]:
    mark = f"  {severity}: "
    return [line.removeprefix(mark) for line in lines if line.startswith(mark)]


def table(lines: list[str]) -> list[list[str]]:
    rows = [line.split(maxsplit=7) for line in lines if line.startswith(("  train ", "  valid "))]
    return [[" ".join(row[:2]), *row[2:]] for row in rows]


def test_a_good_dataset_is_fine_and_its_sizes_are_told(check: Any, dataset: Dataset) -> None:
    code, out = check()
    assert code == 0
    assert out[-1] == "result: fine"
    assert table(out) == [
        ["train pairs", "5", "5", "96x64", "96x64", "96x64", "jpg, png"],
        ["train backgrounds", "4", "4", "80x80", "80x80", "80x80", "jpeg, png, webp"],
        ["valid pairs", "2", "2", "96x64", "96x64", "96x64", "jpg, png"],
        ["valid backgrounds", "2", "2", "80x80", "80x80", "80x80", "jpeg, webp"],
    ]
    assert max(len(line) for line in out if str(dataset.data) not in line) <= 80


def test_a_sample_is_as_large_as_asked_for_and_all_is_all(check: Any) -> None:
    assert [row[2] for row in table(check("--sample", "1")[1])] == ["1", "1", "1", "1"]
    assert [row[2] for row in table(check("--sample", "1", "--all")[1])] == ["5", "4", "2", "2"]


def test_a_broken_picture_is_found_wherever_it_is(check: Any, dataset: Dataset) -> None:
    path = dataset.data / "train/fgr/clip1/0003.jpg"
    path.write_bytes(path.read_bytes()[:900])
    code, out = check("--all")
    assert code == 1
    (line,) = findings(out)
    assert line.startswith(f"cannot be used: {path} (")
    assert line.endswith("; training takes another picture in its place: replace or remove it")
    assert table(out)[0][1:3] == ["5", "4"]
    assert out[-1] == "result: 1 error"


def test_a_matte_of_another_size_is_found(check: Any, dataset: Dataset) -> None:
    (dataset.data / "train/pha/clip0/0002.png").write_bytes(encode(disc(2, 90, 64), "PNG"))
    code, out = check()
    assert code == 1
    assert findings(out) == [
        f"cannot be used: {dataset.data}/train/fgr/clip0/0002.jpg (is 96 x 64 pixels, but its alpha "
        "train/pha/clip0/0002.png is 90 x 64); training takes another picture in its place: "
        "replace or remove it"
    ]


def test_alike_findings_are_one_line_with_a_count_and_three_files(
    check: Any, dataset: Dataset
) -> None:
    for path in sorted(dataset.walls.glob("*/*")):
        path.write_text(f"no picture, but {path}")
    code, out = check()
    assert code == 1
    (line,) = findings(out)
    assert line.startswith(f"6 x cannot be used: {dataset.walls}/train/0000.jpeg (")
    assert line.count(str(dataset.walls)) == 3
    assert ", ...; training takes" in line


def test_a_missing_split_is_found_and_the_other_is_looked_at(check: Any, dataset: Dataset) -> None:
    shutil.rmtree(dataset.data / "valid")
    (dataset.data / "train/pha/clip0/0002.png").write_bytes(b"no picture")
    code, out = check()
    assert code == 1
    folder, picture = findings(out)
    assert str(dataset.data / "valid/fgr") in folder
    assert picture.startswith(f"cannot be used: {dataset.data}/train/pha/clip0/0002.png")
    assert table(out)[0][1] == "5"


def test_pictures_that_are_not_read_are_found_and_what_systems_leave_behind_is_told(
    check: Any, dataset: Dataset
) -> None:
    (dataset.data / "train/fgr/@eaDir").mkdir()
    (dataset.data / "train/fgr/@eaDir/0000.jpg").write_bytes(b"a thumbnail")
    code, out = check()
    assert (code, findings(out, "warning")) == (0, [])
    assert any(line.startswith("  passed over, ") and "@eaDir" in line for line in out)
    (dataset.walls / "train/x.heic").write_bytes(b"a picture of a phone")
    code, out = check()
    assert code == 1
    (line,) = findings(out, "warning")
    assert line.startswith(f"left out below {dataset.walls}/train, only ")
    assert "heic" in line


def test_the_kinds_of_mattes_with_an_ending_are_told(raymat: Command, dataset: Dataset) -> None:
    for path in sorted(dataset.data.glob("*/pha/*/*")):
        path.rename(path.with_stem(f"{path.stem}_mask"))
    code, out, _ = raymat("check", *dataset.words, "--pair-suffix", "_mask")
    assert code == 0
    assert table(out)[0][-1] == "jpg, png"


def test_what_is_wrong_in_both_splits_is_found_at_once(check: Any, dataset: Dataset) -> None:
    (dataset.data / "train/pha/clip0/0002.png").unlink()
    (dataset.data / "valid/fgr/clip0/0000.jpg").unlink()
    code, out = check()
    assert code == 1
    train, valid = findings(out)
    assert "train/fgr/clip0/0002.jpg" in train
    assert "valid/pha/clip0/0000.png" in valid


def test_pictures_of_training_in_validation_are_found_under_any_name(
    check: Any, dataset: Dataset
) -> None:
    shutil.copy(
        dataset.data / "train/fgr/clip1/0003.jpg", dataset.data / "valid/fgr/clip1/0001.jpg"
    )
    shutil.copy(dataset.walls / "train/0000.jpeg", dataset.walls / "valid/0000.jpeg")
    code, out = check("--sample", "1000")
    advice = "; validation would measure what was learnt by heart: remove one of them"
    assert code == 1
    assert findings(out) == [
        f"foregrounds that are in train/ and in valid/: {dataset.data}/train/fgr/clip1/0003.jpg "
        f"(as valid/fgr/clip1/0001.jpg){advice}",
        f"backgrounds that are in train/ and in valid/: {dataset.walls}/train/0000.jpeg "
        f"(as valid/0000.jpeg){advice}",
    ]


def test_a_sample_bounds_how_many_files_are_compared(dataset: Dataset, check: Any) -> None:
    """All of one size in bytes, as raw mattes are: none is told from its size."""
    same = sorted(dataset.walls.glob("*/*"))
    for number, path in enumerate(same):
        path.write_bytes(encode(photo(number, 80, 80), "PNG").ljust(30_000, b"\0"))
    assert len({path.stat().st_size for path in same}) == 1
    _, out = check("--sample", "1", "--batch-size", "4")
    assert "  backgrounds: a sample of those with equal sizes (--all: all of them)" in out
    _, out = check("--sample", "1", "--all")
    assert not any("a sample of those" in line for line in out)


def test_animations_of_which_only_the_first_picture_is_read_are_found(
    check: Any, dataset: Dataset
) -> None:
    path = dataset.data / "train/fgr/clip0/0002.jpg"
    frames = [Image.fromarray(photo(i)) for i in range(3)]
    frames[0].save(path, "WEBP", save_all=True, append_images=frames[1:])
    code, out = check()
    assert code == 1
    assert findings(out, "warning") == [
        "an animation, or a file of several pages, of which only the first picture is read: "
        f"{path} (3 pictures); unpack it to train on all of them"
    ]


def test_options_that_the_run_would_not_use_are_found(check: Any) -> None:
    code, out = check("--refine-mode", "full")
    assert code == 1
    assert findings(out, "warning") == ["--refine-mode: not used, base has no refiner"]


def test_pictures_that_would_be_enlarged_are_found(raymat: Command, dataset: Dataset) -> None:
    code, out, _ = raymat("check", *dataset.words[:4], "--resolution", "256", "--crop", "32:64")
    assert code == 1
    (line,) = findings(out, "warning")
    assert line.startswith("13 x smaller than half of --resolution 256: ")
    assert "(96x64)" in line


ODD: dict[str, Callable[[Any], Any]] = {
    "look inverted": lambda matte: 255 - matte,
    "are transparent everywhere": lambda matte: matte * 0,
    "are opaque everywhere": lambda matte: matte * 0 + 255,
    "hardly any soft edge": lambda matte: (matte > 127).astype(np.uint8) * 255,
    "half transparent nearly everywhere": lambda matte: cv2.cvtColor(
        photo(9, 96, 64) // 2 + 60, cv2.COLOR_RGB2GRAY
    ),
}


@pytest.mark.parametrize("words", ODD)
def test_mattes_that_cannot_be_meant_are_found(check: Any, dataset: Dataset, words: str) -> None:
    files = sorted(dataset.data.glob("*/pha/*/*"))
    for path in files:
        form = "PNG" if path.suffix == ".png" else "JPEG"
        matte = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        path.write_bytes(encode(np.asarray(ODD[words](matte), np.uint8), form))
    code, out = check()
    assert code == 1
    (line,) = findings(out, "warning")
    assert line.startswith("7 of 7 mattes ")
    assert words in line.partition(": /")[0]
    assert str(files[0]) in line


def test_foregrounds_multiplied_by_their_alpha_are_found(check: Any, dataset: Dataset) -> None:
    for path in sorted(dataset.data.glob("*/fgr/*/*")):
        seed = int(path.stem) + 1000 * ("valid" in str(path))
        matte = cv2.GaussianBlur(disc(seed), (15, 15), 0)
        pha = path.parents[2] / "pha" / path.parent.name
        (mate,) = pha.glob(f"{path.stem}.*")
        mate.write_bytes(encode(matte, "PNG" if mate.suffix == ".png" else "JPEG"))
        bright = photo(seed) // 2 + 127
        path.write_bytes(
            encode((bright * (matte[..., None] / 255)).astype(np.uint8), "JPEG", quality=95)
        )
    code, out = check()
    assert code == 1
    assert "already multiplied by their alpha" in " ".join(findings(out, "warning"))


def test_one_frame_without_a_person_is_a_note(check: Any, dataset: Dataset) -> None:
    for i in range(10, 20):
        (dataset.data / f"train/fgr/{i}.jpg").write_bytes(encode(photo(i), "JPEG", quality=95))
        matte = disc(i) * (i != 13)
        (dataset.data / f"train/pha/{i}.png").write_bytes(encode(matte, "PNG"))
    code, out = check()
    assert code == 0
    assert any("1 of 17 mattes are transparent everywhere" in line for line in out)


def test_storage_that_cannot_be_reached_is_no_verdict(raymat: Command, dataset: Dataset) -> None:
    code, out, _ = raymat(
        "check", "--dataset", "nosuch://data", "--backgrounds", str(dataset.walls)
    )
    assert code == 2
    assert len(findings(out, "unseen")) == 1
    assert "pictures: not looked at" in out
    assert "storage: not looked at: give --storage and --name" in out
    assert out[-1] == "result: 1 not looked at"


# Weights.


def test_weights_are_read_and_compared(check: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(build("base", ModelConfig(backbone="mobilenetv2"), 1).state_dict(), path)
    code, out = check("--backbone", "mobilenetv2", "--init", str(path))
    assert code == 0
    assert any(line.startswith("  loaded ") and str(path) in line for line in out)
    code, out = check("--backbone", "resnet50", "--init", str(path))
    assert code == 1
    assert findings(out) == [
        f"{path} has the backbone mobilenetv2, this network resnet50: use --backbone mobilenetv2 or other weights"
    ]
    code, out = check("--init", str(tmp_path / "none.pth"))
    assert code == 1
    assert "none.pth" in findings(out)[0]


@pytest.mark.slow
def test_weights_of_a_trained_run_are_not_read_again(check: Any, tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    torch.save(build("base", ModelConfig(backbone="mobilenetv2"), 1).state_dict(), weights)
    config = runs.tiny(tmp_path, "night", steps=2, init=str(weights))
    runs.without_ray(config)
    weights.unlink()
    where = ("--storage", str(tmp_path), "--backbone", "mobilenetv2", "--init", str(weights))
    code, out = check(*where, "--name", "night")
    assert "  --init is not read: the run goes on from its newest checkpoint" in out
    code, out = check(*where, "--name", "other")
    assert code == 1
    assert any("w.pth" in line for line in findings(out))


# Storage.


def test_storage_is_tried_and_left_as_it_was(check: Any, tmp_path: Path) -> None:
    code, out = check("--storage", str(tmp_path / "a/runs"), "--name", "night")
    assert code == 0
    assert f"  {tmp_path}/a/runs/night: written, read, listed and deleted" in out
    assert not (tmp_path / "a").exists()


def test_storage_that_cannot_be_written_is_found(check: Any, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    code, out = check("--storage", str(tmp_path / "runs"), "--name", "night")
    assert code == 1
    assert str(tmp_path / "runs") in findings(out)[0]


def test_a_disk_without_room_for_the_checkpoints_is_found(check: Any, tmp_path: Path) -> None:
    with small_disk(tmp_path, 20 * 2**20) as disk:
        code, out = check("--storage", str(disk), "--name", "night", "--backbone", "mobilenetv2")
    assert code == 1
    (line,) = findings(out)
    assert line.startswith("21.0 MB free, too little: a checkpoint has ")
    assert line.endswith("make room, use another --storage, or a smaller --keep")


def test_milestones_need_room_too(check: Any, tmp_path: Path) -> None:
    words = ("--storage", str(tmp_path), "--name", "night", "--backbone", "mobilenetv2")
    _, out = check(
        *words, "--steps", "1000", "--keep-every", "300", "--checkpoint-at-loss", "0.2,0.1"
    )
    (line,) = (line for line in out if "a checkpoint has " in line)
    assert "with --keep 3, 5 milestones, the best and one in the making: " in line


def test_a_run_of_other_options_is_found(
    check: Any, raymat: Command, dataset: Dataset, tmp_path: Path
) -> None:
    options = dict(zip(dataset.words[::2], dataset.words[1::2], strict=True))
    named = {k.removeprefix("--"): v for k, v in options.items()}
    named |= {"resolution": 64, "storage": str(tmp_path), "name": "night", "steps": 2}  # type: ignore[dict-item]
    # As a driver stores it: with a precision, which the command may leave open as it may the recipe.
    config = build_config("base", named | {"precision": "fp32"})
    open_run(config, runs.store_of(config))
    words = ("--storage", str(tmp_path), "--name", "night")
    code, out = check(*words, "--steps", "2")
    assert (code, findings(out)) == (0, [])
    code, out = check(*words, "--seed", "7")
    assert code == 1
    assert "--seed was 0, is 7" in findings(out)[0]
    elsewhere = str(shutil.copytree(dataset.data, tmp_path / "elsewhere"))
    moved = ("--dataset", elsewhere, *dataset.words[2:])
    code, out, _ = raymat("check", *moved, *words, "--steps", "2")
    assert (code, findings(out)) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}, {"precision": "fp64"}])
def test_a_checkpoint_is_as_large_as_was_said(tmp_path: Path, options: dict[str, Any]) -> None:
    config = runs.tiny(tmp_path, "run", steps=2, **options)
    runs.train(World(), config)
    (first, *_) = sorted((tmp_path / "run/checkpoints").iterdir())
    real = sum(path.stat().st_size for path in first.iterdir())
    assert 1 <= real / checkpoint_bytes(config) < 1.02


# The picture.


def test_the_contact_sheet_shows_the_examples_that_the_run_begins_with(
    check: Any, dataset: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "sheet.png"
    assert check("--contact-sheet", str(path))[0] == 0
    sheet = cv2.imread(str(path))
    assert sheet.shape == (18 + 8 * 256, 4 * 256, 3)
    words = [*dataset.words, "--name", "x"]
    pictures = RunPictures.of(parse_run("base", words))
    first = next(pictures.train(8, torch.device("cpu")))
    for column, shown in ((0, first.src), (2, first.pha)):
        cell = sheet[18 : 18 + 256, 256 * column : 256 * (column + 1)]
        true = shown[0].numpy().transpose(1, 2, 0)[..., ::-1] * 255
        side = max(true.shape[:2])
        top, left = ((side - n) // 2 for n in true.shape[:2])
        padded = np.full((side, side, 3), 128.0)
        padded[top : top + true.shape[0], left : left + true.shape[1]] = true
        true = cv2.resize(padded, (256, 256), interpolation=cv2.INTER_AREA)
        assert np.abs(cell - true).mean() < 2


def test_a_contact_sheet_that_cannot_be_drawn_is_told(raymat: Command, tmp_path: Path) -> None:
    words = ["--dataset", str(tmp_path), "--backgrounds", str(tmp_path)]
    code, _, err = raymat("check", *words, "--contact-sheet", str(tmp_path / "sheet.png"))
    assert (code, err) == (
        1,
        ["note: no contact sheet was drawn: there is nothing yet to train on"],
    )
    assert not (tmp_path / "sheet.png").exists()


def test_a_contact_sheet_is_a_png(check: Any, raymat: Command) -> None:
    code, _, err = raymat("check", "--synthetic", "3", "--contact-sheet", "sheet.jpg")
    assert (code, err) == (
        2,
        ["raymat: error: --contact-sheet must end in .png, got 'sheet.jpg'"],
    )


# The length.


def test_the_length_is_told_and_a_batch_of_one_is_found(check: Any) -> None:
    _, out = check("--epochs", "2", "--batch-size", "2")
    assert "  5 steps of 2 examples: 10 examples, 2 epochs of 5" in out
    code, out = check("--batch-size", "1")
    assert code == 1
    assert findings(out)[0].startswith("--batch-size 1 cannot be trained")


# The configuration, and the forms of the output.


def test_the_printed_configuration_reads_back(raymat: Command, tmp_path: Path) -> None:
    words = ("--synthetic", "3", "--name", "x", "--workers", "1:4", "--lr-aspp", "1e-4")
    code, out, _ = raymat("check", "refine", *words, "--print-config")
    assert code == 0
    file = tmp_path / "run.yaml"
    file.write_text("\n".join(out))
    read_back = parse_run("refine", ["--config", str(file)])
    assert to_dict(read_back) == to_dict(parse_run("refine", list(words)))
    assert raymat("check", "refine", "--config", str(file), "--storage", str(tmp_path))[0] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_only_other_machines_may_have_is_said_and_is_no_error(
    raymat: Command,
) -> None:
    words = ("--synthetic", "9", "--resolution", "64", "--crop", "32:64")
    code, out, _ = raymat("check", *words, "--device", "cuda")
    assert (code, out[-3:]) == (
        0,
        [
            "device: fine",
            "  this machine has no GPU: a run with --device cuda is refused here, and starts only on a cluster whose "
            "workers have one",
            "result: fine",
        ],
    )
    assert not any("GPU" in line for line in raymat("check", *words)[1])


def test_a_name_that_was_not_given_is_not_printed(raymat: Command) -> None:
    _, out, _ = raymat("check", "--synthetic", "3", "--print-config")
    assert not any(line.startswith("name:") for line in out)


def test_the_printed_configuration_names_what_is_settled_later(raymat: Command) -> None:
    words = ("--synthetic", "3", "--print-config")
    assert raymat("check", *words)[1][1] == (
        "# settled when the run begins: epochs, checkpoint_interval, valid_interval, log_images_interval, precision, "
        "recipe, batch_norm"
    )
    named = ("--steps", "9", "--valid-interval", "3", "--precision", "fp32")
    assert raymat("check", *words, *named)[1][1] == (
        "# settled when the run begins: checkpoint_interval, log_images_interval, recipe, batch_norm"
    )


def test_programs_get_json(raymat: Command, dataset: Dataset) -> None:
    path = dataset.data / "train/pha/clip0/0002.png"
    path.write_bytes(b"no picture")
    code, out, _ = raymat("check", *dataset.words, "--json")
    told = json.loads("\n".join(out))
    assert (code, told["code"]) == (1, 1)
    pictures = {s["title"]: s["findings"] for s in told["sections"]}["pictures"]
    (error,) = (f for f in pictures if f["severity"] == "error")
    assert error["what"] == "cannot be used"
    assert error["count"] == 1
    assert [e["where"] for e in error["examples"]] == [str(path)]
    (sizes,) = (f["data"] for f in pictures if f["severity"] == "note")
    assert sizes[0] == {
        "what": "train pairs",
        "count": 5,
        "readable": 4,
        "kinds": {"jpg": 7, "png": 3},
        "smallest": [96, 64],
        "median": [96, 64],
        "largest": [96, 64],
    }


def test_options_that_cannot_be_used_are_refused(raymat: Command) -> None:
    assert raymat("check")[0] == 2
    code, _, err = raymat("check", "--synthetic", "3", "--sampel", "4")
    assert code == 2
    assert err == ["raymat: error: unknown flag --sampel: did you mean --sample?"]


def test_a_terminal_of_80_columns_gets_lines_that_fit(dataset: Dataset) -> None:
    (dataset.data / "train/pha/clip0/0002.png").write_bytes(encode(disc(2, 90, 64), "PNG"))
    lines = on_terminal("check", *dataset.words)
    assert any("cannot be used" in line for line in lines)
    long = [line for line in lines if len(line) > 80 and " " in line.strip()]
    assert long == []


def on_terminal(*words: str) -> list[str]:
    """What `raymat WORDS` writes to a terminal of 80 columns, without what it overwrites."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm"}
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "raymat"), *words],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            written += os.read(ours, 65536)
        except OSError:
            break
    process.wait()
    os.close(ours)
    return written.decode().splitlines()
