"""Laws of `raymat prepare`: the copy trains as the dataset does, goes on where it was killed, and says what it lacks."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import ray
from PIL import Image

from raymat.data.dataset.discovery import build_listing
from raymat.data.decode import EncodedImage
from raymat.errors import DataError
from raymat.storage.store import Store
from tests.support.datakit import disc, encode, photo, write, write_dataset
from tests.support.s3 import S3Server

Command = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def command(raymat: Command) -> Command:
    """`raymat`, with words that may be paths: exit code, lines on stdout, lines on stderr."""
    return lambda *words: raymat(*map(str, words))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_dataset(str(tmp_path))
    return tmp_path / "data"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "small"


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def record_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "prepared.jsonl").read_text().splitlines()]


def read(path: Path, grey: bool = False) -> np.ndarray[Any, Any]:
    return EncodedImage(path.read_bytes(), str(path), grey).decode()


def test_the_copy_has_the_same_names_and_is_a_dataset(
    command: Command, dataset: Path, out: Path, tmp_path: Path
) -> None:
    walls = tmp_path / "small-walls"
    code, lines, _ = command("prepare", dataset, out, "--longest", "48")
    assert code == 0
    assert lines[-1].startswith(f"{out}: 14 pictures, ")
    assert command("prepare", tmp_path / "walls", walls, "--longest", "48")[0] == 0
    before = build_listing(str(dataset), str(tmp_path / "walls"))
    after = build_listing(str(out), str(walls))
    assert after.counts == before.counts
    for split in ("train", "valid"):
        for part in ("fgr", "pha", "backgrounds"):
            stems = [getattr(getattr(listing, split), part).stems for listing in (before, after)]
            assert stems[0] == stems[1]
    code, told, _ = command(
        "check", "--dataset", out, "--backgrounds", walls, "--resolution", "48", "--crop", "32:48"
    )
    assert code == 0
    assert f"  {out} was prepared from {dataset} with --longest 48 --quality 92 --alpha png" in told


def test_pixels_are_averages_and_alphas_are_exact(
    command: Command, dataset: Path, out: Path
) -> None:
    assert command("prepare", dataset, out, "--longest", "48", "--quality", "95")[0] == 0
    name = "train/pha/clip0/0002.png"
    whole = read(dataset / name, grey=True)
    assert np.array_equal(
        read(out / name, grey=True), cv2.resize(whole, (48, 32), interpolation=cv2.INTER_AREA)
    )
    name = "train/fgr/clip0/0002.jpg"
    colours = cv2.resize(read(dataset / name), (48, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(read(out / name).astype(int) - colours).mean() < 5


def test_jpeg_alphas_are_grey_and_err_by_little(command: Command, dataset: Path, out: Path) -> None:
    assert command("prepare", dataset, out, "--longest", "48", "--alpha", "jpeg")[0] == 0
    data = (out / "train/pha/clip0/0002.jpg").read_bytes()
    assert EncodedImage(data, "a", grey=True).decode().shape == (32, 48)
    whole = read(dataset / "train/pha/clip0/0002.png", grey=True)
    small = cv2.resize(whole, (48, 32), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(read(out / "train/pha/clip0/0002.jpg", grey=True) - small).mean() < 4


def test_a_turned_photograph_is_upright_in_the_copy(
    command: Command, dataset: Path, out: Path
) -> None:
    exif = Image.Exif()
    exif[274] = 6
    turned = encode(photo(0, 64, 96), "JPEG", quality=95, exif=exif)
    write(str(dataset / "train/fgr/clip0/0000.jpg"), turned)
    assert command("prepare", dataset, out, "--longest", "48")[0] == 0
    image = Image.open(out / "train/fgr/clip0/0000.jpg")
    assert (image.size, dict(image.getexif())) == ((48, 32), {})


def test_what_is_small_enough_is_copied_to_the_byte(
    command: Command, dataset: Path, out: Path
) -> None:
    assert command("prepare", dataset, out, "--longest", "96")[0] == 0
    copy = files_of(out)
    del copy["prepared.jsonl"]
    whole = {name.replace(".JPG", ".jpg"): data for name, data in files_of(dataset).items()}
    assert copy == whole


def test_the_record_has_a_true_digest_of_every_file(
    command: Command, dataset: Path, out: Path
) -> None:
    assert command("prepare", dataset, out, "--longest", "48")[0] == 0
    head, *lines = record_of(out)
    assert (head["longest"], head["quality"], head["alpha"]) == (48, 92, "png")
    told = {path: (size, digest) for line in lines for path, size, digest in line["files"]}
    there = {
        name: (len(data), f"sha256:{hashlib.sha256(data).hexdigest()}")
        for name, data in files_of(out).items()
        if name != "prepared.jsonl"
    }
    assert told == there
    body = (out / "prepared.jsonl").read_bytes().partition(b"\n")[2]
    assert head["content"] == f"sha256:{hashlib.sha256(body).hexdigest()}"


def test_an_unreadable_picture_is_named_and_left_out_with_its_partner_until_it_is_mended(
    command: Command, dataset: Path, out: Path
) -> None:
    path = dataset / "train/fgr/clip1/0003.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:900])
    code, lines, _ = command("prepare", dataset, out, "--longest", "48")
    assert code == 1
    assert lines[0].startswith(f"left out: {path}: ")
    assert lines[-1].endswith("left out: 1 of 7 pairs or backgrounds")
    assert not (out / "train/pha/clip1/0003.png").exists()
    assert sum("left_out" in line for line in record_of(out)) == 1
    path.write_bytes(whole)
    code, lines, _ = command("prepare", dataset, out, "--longest", "48")
    assert code == 0
    assert (out / "train/pha/clip1/0003.png").exists()


def test_a_picture_that_was_removed_from_the_dataset_leaves_its_copy_too(
    command: Command, dataset: Path, out: Path
) -> None:
    assert command("prepare", dataset, out, "--longest", "48")[0] == 0
    for half in ("fgr/clip0/0002.jpg", "pha/clip0/0002.png"):
        (dataset / "train" / half).unlink()
    assert command("prepare", dataset, out, "--longest", "48")[0] == 0
    assert not list(out.rglob("0002.*"))


KILLED = """
import os, signal, sys
from raymat.cli.pictures import prepare
from raymat.data.preparation.copy_job import CopyJob

copy, begun = CopyJob.copy, []

def copy_some(job, place):
    begun.append(place)
    if len(begun) > 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return copy(job, place)

CopyJob.copy = copy_some
prepare._SECONDS = 0.0
prepare.main(sys.argv[1:])
"""


def test_a_killed_copy_goes_on_and_ends_as_one_that_nobody_killed(
    command: Command, tmp_path: Path, out: Path
) -> None:
    for i in range(40):
        write(f"{tmp_path}/walls/train/{i:02}.png", encode(photo(i), "PNG"))
    walls, words = tmp_path / "walls", ("--longest", "48")
    killed = subprocess.run([sys.executable, "-c", KILLED, walls, out, *words], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "prepared.jsonl").exists()
    with pytest.raises(DataError, match="is a copy that raymat prepare has not finished"):
        build_listing(str(tmp_path / "data"), str(out))
    written = {path: path.stat().st_mtime_ns for path in out.rglob("train/*.jpg")}
    assert 5 < len(written) < 30
    for path in written:
        read(path)
    assert command("prepare", walls, out, *words)[0] == 0
    kept = [path for path, when in written.items() if path.stat().st_mtime_ns == when]
    assert len(kept) > len(written) // 2
    assert command("prepare", walls, tmp_path / "undisturbed", *words)[0] == 0
    assert files_of(out) == files_of(tmp_path / "undisturbed")


def test_pictures_that_the_copy_did_not_make_are_named_and_stay(
    command: Command, dataset: Path, out: Path
) -> None:
    command("prepare", dataset, out, "--longest", "48")
    write(f"{out}/train/fgr/old.jpg", encode(photo(1), "JPEG"))
    write(f"{out}/train/notes.txt", b"mine")
    code, _, err = command("prepare", dataset, out, "--longest", "48")
    assert code == 1
    assert (
        f"note: 1 picture in {out} that a run would take and that the copy did not make: train/fgr/old.jpg: remove what is "
        "not meant"
    ) in err
    assert (out / "train/fgr/old.jpg").exists()
    (out / "train/fgr/old.jpg").unlink()
    assert command("prepare", dataset, out, "--longest", "48")[0] == 0


def test_a_file_that_was_damaged_is_made_again(command: Command, dataset: Path, out: Path) -> None:
    assert command("prepare", dataset, out, "--longest", "48")[0] == 0
    before = files_of(out)
    (out / "train/pha/clip0/0002.png").write_bytes(b"shorter")
    (out / "train/fgr/clip0/0004.jpg").unlink()
    words = ("check", "--dataset", out, "--backgrounds", dataset.parent / "walls")
    told = command(*words, "--resolution", "48", "--crop", "32:48", "--skip-unpaired")[1]
    assert [line for line in told if "not as raymat prepare wrote it" in line]
    assert command("prepare", dataset, out, "--longest", "48")[0] == 0
    assert files_of(out) == before


def test_a_record_that_is_damaged_or_newer_is_said_in_one_line(
    command: Command, dataset: Path, out: Path
) -> None:
    words = ("prepare", dataset, out, "--longest", "48")
    assert command(*words)[0] == 0
    record = out / "prepared.jsonl"
    whole = record.read_bytes()
    head, _, body = whole.partition(b"\n")
    for changed, expected in {
        whole[:-40]: "is damaged (its digest does not match)",
        b"[]\n" + body: "is damaged (it is no JSON object)",
        head.replace(b'"longest": 48', b'"longest": "x"') + b"\n" + body: "is damaged (longest: ",
        head.replace(b'"format": 1', b'"format": 2') + b"\n" + body: "has format 2, this version",
    }.items():
        record.write_bytes(changed)
        code, _, errors = command(*words)
        assert (code, len(errors)) == (2, 1)
        assert expected in errors[0]
        check = ("check", "--dataset", out, "--backgrounds", dataset.parent / "walls")
        told = command(*check, "--resolution", "48", "--crop", "32:48")[1]
        assert any(expected in line for line in told)


def test_what_cannot_be_done_is_refused_in_one_line(
    command: Command, dataset: Path, out: Path, tmp_path: Path
) -> None:
    assert command("prepare", dataset, out, "--longest", "48")[0] == 0
    walls = tmp_path / "walls"
    refusals = {
        (dataset, out, "--longest", "32"): "was begun with --longest 48: say the same",
        (dataset, out, "--longest", "48", "--alpha", "jpeg"): "was begun with --alpha png",
        (dataset, walls, "--longest", "48"): "is not empty, and no copy that raymat prepare began",
        (dataset, dataset, "--longest", "48"): "lies in IN",
        (dataset, dataset / "train/small", "--longest", "48"): "lies in IN",
        (tmp_path / "nowhere", out, "--longest", "48"): "no such folder",
        (dataset / "train", out, "--longest", "48"): "give the folder above",
        (dataset, out): "Missing from raymat prepare: --longest N",
        (dataset, out, "--longest", "8"): "--longest must be at least 16",
        (dataset, out, "--longest", "48", "--quality", "0"): "--quality must be from 1 to 100",
        (dataset, "nfs9://b/out", "--longest", "48"): "nfs9",
        (dataset, f"file://{tmp_path}/my%20copy", "--longest", "48"): "write the path",
    }
    before = files_of(tmp_path)
    for words, expected in refusals.items():
        code, lines, errors = command("prepare", *words)
        assert (code, lines, len(errors)) == (2, [], 1), words
        assert expected in errors[0]
    assert files_of(tmp_path) == before


def test_a_copy_is_made_from_bucket_to_bucket(
    command: Command, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (s3_server.environment | {"RAY_ADDRESS": "local"}).items():
        monkeypatch.setenv(name, value)
    ray.shutdown()  # another test's, which has no keys, would be asked to copy
    source = s3_server.store("copies", "in")
    for i in range(3):
        source.write(f"train/fgr/{i}.jpg", encode(photo(i), "JPEG"))
        source.write(f"train/pha/{i}.png", encode(disc(i), "PNG"))
    words = ("s3://copies/runs/in", "s3://copies/runs/out", "--longest", "48")
    code, lines, errors = command("prepare", *words)
    assert code == 0, errors
    assert lines[-1].split(",")[0] == "s3://copies/runs/out: 6 pictures"
    assert command("prepare", *words)[0] == 0
    copy = Store.open("s3://copies/runs", "out", options=s3_server.options)
    expected = [
        f"train/{half}"
        for half in ("fgr/0.jpg", "fgr/1.jpg", "fgr/2.jpg", "pha/0.png", "pha/1.png", "pha/2.png")
    ]
    assert sorted(info.path for info in copy.list()) == ["prepared.jsonl", *expected]
    head = json.loads(copy.read("prepared.jsonl").splitlines()[0])
    assert head["source"] == "s3://copies/runs/in"
