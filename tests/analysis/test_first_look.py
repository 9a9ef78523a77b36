"""Laws of the first look at a run's pictures: it takes a second, says what it saw, and ends no run."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from raymat.analysis.preflight.first_look import first_look
from raymat.config.run import RunConfig, build
from raymat.data.dataset.discovery import build_listing
from raymat.data.dataset.source import FolderSource
from raymat.data.decode import OpenImage
from raymat.errors import DataError
from tests.support.datakit import MemorySource, encode, write_dataset


def config_of(folder: Path, **options: object) -> RunConfig:
    named = {"dataset": f"{folder}/data", "backgrounds": f"{folder}/walls"}
    sizes = {"resolution": 64, "crop": "32:64", "name": "x"}
    return build("base", named | sizes | options)  # type: ignore[arg-type]


def source_of(folder: Path) -> FolderSource:
    return FolderSource(build_listing(f"{folder}/data", f"{folder}/walls"))


def test_a_good_dataset_is_told_in_one_line(tmp_path: Path) -> None:
    write_dataset(str(tmp_path))
    (line,) = first_look(config_of(tmp_path), source_of(tmp_path), seconds=60)
    assert line == (
        "a first look at 7 pairs and 6 backgrounds, 96x64 to 80x80 pixels: nothing wrong"
    )


def test_what_is_wrong_is_told_with_its_files(tmp_path: Path) -> None:
    write_dataset(str(tmp_path))
    mattes = sorted((tmp_path / "data").glob("*/pha/*/*.png"))
    for path in mattes:
        matte: NDArray[np.uint8] = 255 - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        path.write_bytes(encode(matte, "PNG"))
    broken = tmp_path / "walls/train/0001.webp"
    broken.write_bytes(b"no picture")
    source = source_of(tmp_path)
    first, *others = first_look(config_of(tmp_path), source, seconds=60)
    assert first.endswith(": raymat check with --all looks at all")
    assert len(others) == 2
    assert others[0].startswith(f"error: cannot be used: {broken} (is not an image")
    assert others[1].startswith("warning: 4 of 7 mattes look inverted: ")
    assert str(mattes[0]) in others[1]


def test_far_pictures_end_it_after_its_time(tmp_path: Path) -> None:
    began = time.monotonic()
    lines = list(first_look(config_of(tmp_path), MemorySource(50, 10, wait=30), seconds=0.5))
    assert time.monotonic() - began < 5
    assert lines == ["a first look at the pictures: none could be read in 0.5 s"]


class SilentSource(MemorySource):
    def open_background(self, index: int, valid: bool = False) -> OpenImage:
        raise DataError("the storage does not answer")


def test_storage_that_does_not_answer_ends_no_run(tmp_path: Path) -> None:
    (line,) = first_look(config_of(tmp_path), SilentSource(50, 10), seconds=60)
    assert line.startswith("a first look at 1 pair and 0 backgrounds, 96x64 pixels: ")


def test_made_pictures_are_not_looked_at() -> None:
    config = build("base", {"synthetic": 3, "name": "x"})
    assert list(first_look(config, MemorySource(3))) == []
