"""What a user gets wrong is told in one line that names it, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from raymat.cli.main import job_main
from raymat.cluster.driver.cluster_setup import resolve_auto
from raymat.config.flags import parse_run
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from raymat.train.run.open_run import open_run
from tests.support.kit import rows

Job = Callable[..., str]


def write_image(path: Path, channels: int, side: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (side, side, 3) if channels == 3 else (side, side)
    pixels = np.random.Generator(np.random.Philox(len(path.name))).integers(0, 256, shape)
    assert cv2.imwrite(str(path), pixels.astype(np.uint8))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Eight training pairs and backgrounds, two for validation, 48 pixels square."""
    for split, count in (("train", 8), ("valid", 2)):
        for index in range(count):
            write_image(tmp_path / "pairs" / split / "fgr" / f"{index:02d}.jpg", 3)
            write_image(tmp_path / "pairs" / split / "pha" / f"{index:02d}.png", 1)
            write_image(tmp_path / "scenes" / split / f"{index:02d}.jpg", 3)
    return tmp_path


def words(dataset: Path, *flags: str) -> list[str]:
    """A small run's flags, with these in place of some."""
    plain = {
        "--dataset": str(dataset / "pairs"),
        "--backgrounds": str(dataset / "scenes"),
        "--storage": str(dataset / "runs"),
        "--name": "run",
        "--backbone": "mobilenetv2",
        "--device": "cpu",
        "--resolution": "32",
        "--crop": "32",
        "--batch-size": "4",
        "--steps": "2",
        "--checkpoint-interval": "1",
        "--valid-examples": "2",
        "--log-loss-interval": "1",
    }
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    merged = {name: value for name, value in (plain | given).items() if value != "-"}
    return [word for pair in merged.items() for word in pair]


@pytest.fixture
def job(dataset: Path, capsys: pytest.CaptureFixture[str]) -> Job:
    """Runs the base job with some flags; expects it to fail, and gives its one line."""

    def run(*flags: str, fails: bool = True) -> str:
        code = job_main("base", words(dataset, *flags))
        captured = capsys.readouterr()
        if not fails:
            assert code == 0, captured.err
            return captured.out + captured.err
        assert code == 2
        lines = [line for line in captured.err.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("raymat: error: ")]
        assert errors == lines[-1:], captured.err
        assert "Traceback" not in captured.err
        return errors[0]

    return run


def test_a_dataset_url_that_is_not_there_is_named(cluster: None, job: Job, dataset: Path) -> None:
    assert str(dataset / "nowhere") in job("--dataset", str(dataset / "nowhere"))


def test_an_unknown_key_in_the_yaml_is_named_with_the_nearest_known_one(
    job: Job, dataset: Path
) -> None:
    file = dataset / "run.yaml"
    file.write_text("batch-sise: 8\n")
    line = job("--config", str(file))
    assert "batch-sise" in line
    assert "did you mean batch_size" in line
    assert str(file) in line


def test_a_batch_with_fewer_examples_than_workers_is_refused_with_the_fix(job: Job) -> None:
    line = job("--workers", "5")
    assert "--workers 5" in line
    assert "use --workers 4" in line


def test_a_crop_that_is_no_multiple_of_four_is_refused(job: Job) -> None:
    assert "--crop must be multiples of 4, got 30" in job("--crop", "30")


def test_files_without_a_partner_are_named(cluster: None, job: Job, dataset: Path) -> None:
    (dataset / "pairs/train/pha/03.png").unlink()
    assert "03" in job()


def test_an_image_that_cannot_be_read_is_named_and_replaced(
    cluster: None, job: Job, dataset: Path
) -> None:
    broken = dataset / "pairs/train/fgr/05.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    said = job("--steps", "4", fails=False)
    assert f"error: cannot be used: {broken} (" in said
    assert "a first look at 10 pairs and 10 backgrounds, 48x48 pixels" in said
    assert "mattes are half transparent nearly everywhere, as a photograph is" in said
    store = Store.open(str(dataset / "runs"), "run")
    replaced = [event for event in read_events(store) if event["kind"] == "replaced"]
    assert len(replaced) == 1
    assert replaced[0]["path"].endswith("05.jpg")
    (end,) = [event for event in read_events(store) if event["kind"] == "end"]
    count = end["substitutes"]
    assert count > 0
    assert (
        f"step 4 of 4, {count} examples with a substitute for a picture that cannot be read, after"
        in said
    )
    assert [row[:2] for row in rows(store)] == [(1, 4), (2, 8), (3, 12), (4, 16)]


def test_storage_that_cannot_be_written_is_named(cluster: None, job: Job, dataset: Path) -> None:
    (dataset / "file").write_text("not a folder")
    assert str(dataset / "file") in job("--storage", str(dataset / "file"))


def test_weights_of_which_nothing_matches_are_refused(
    cluster: None, job: Job, dataset: Path
) -> None:
    torch.save({"something.else": torch.zeros(3)}, dataset / "other.pth")
    assert "other.pth" in job("--init", str(dataset / "other.pth"))


def test_resuming_with_another_backbone_is_refused_and_the_difference_shown(
    cluster: None, job: Job, dataset: Path
) -> None:
    begun = resolve_auto(parse_run("base", words(dataset)), None, dict)
    open_run(begun, Store.open(begun.storage, begun.name))
    line = job("--backbone", "resnet50")
    assert "--backbone was mobilenetv2, is resnet50" in line
