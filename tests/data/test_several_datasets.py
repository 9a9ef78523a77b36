"""Several datasets in one run: each pair of each once an epoch, each file from its own place, and more may be added."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from raymat.cluster.driver.launch import absolute_paths
from raymat.config.flags import parse_run
from raymat.config.run import RunConfig
from raymat.data.batch import Geometry
from raymat.data.batch_maker import make_train_batch
from raymat.data.dataset.discovery import build_listing
from raymat.data.dataset.growth import grow
from raymat.data.dataset.listing import Listing
from raymat.data.dataset.run_dataset import grow_dataset, list_dataset, source_of
from raymat.data.dataset.source import FolderSource
from raymat.errors import ConfigError, DataError
from raymat.storage.store import Store
from tests.support import runs
from tests.support.datakit import encode, make_order, photo, write, write_dataset


@pytest.fixture
def urls(tmp_path: Path) -> tuple[str, str, str, str]:
    """Two datasets of 4 and 3 pairs that have files of the same names, and their backgrounds."""
    first = write_dataset(str(tmp_path / "a"), pairs=4, backgrounds=3)
    second = write_dataset(str(tmp_path / "b"), pairs=3, backgrounds=2)
    for i in range(3):
        name = f"{second[0]}/train/fgr/clip{i % 2}/{i:04}.jpg"
        write(name, encode(photo(700 + i), "JPEG", quality=95))
    return (*first, *second)


def both(urls: tuple[str, str, str, str]) -> Listing:
    return build_listing(f"{urls[0]}\n{urls[2]}", f"{urls[1]}\n{urls[3]}")


def test_all_pairs_of_all_datasets_are_there_and_read_from_their_own_place(
    urls: tuple[str, str, str, str],
) -> None:
    listing = both(urls)
    assert listing.counts == {
        "pairs": 7, "backgrounds": 5, "valid_pairs": 4, "valid_backgrounds": 4,
    }  # fmt: skip
    source = FolderSource(Listing.from_bytes(listing.to_bytes()))
    seen = {source.name_of(i): source.open_pair(i)[0].path for i in range(7)}
    assert len({*seen.values()}) == 7
    assert seen["clip0/0002"] == f"{urls[0]}/train/fgr/clip0/0002.jpg"
    assert seen["@2/clip0/0002"] == f"{urls[2]}/train/fgr/clip0/0002.jpg"
    alone = FolderSource(build_listing(urls[2], urls[3]))
    number = next(i for i in range(7) if source.name_of(i) == "@2/clip0/0002")
    other = next(i for i in range(3) if alone.name_of(i) == "clip0/0002")
    for mine, theirs in zip(source.open_pair(number), alone.open_pair(other), strict=True):
        assert np.array_equal(mine.decode(), theirs.decode())
    backgrounds = {source.open_background(i).path for i in range(5)}
    assert {path.rsplit("/", 3)[0] for path in backgrounds} == {
        url.rpartition("/")[0] for url in (urls[1], urls[3])
    }


def test_each_pair_of_each_dataset_is_used_once_an_epoch(urls: tuple[str, str, str, str]) -> None:
    source = FolderSource(both(urls))
    order = make_order(
        pairs=source.pairs, backgrounds=source.backgrounds, batch_size=7, total_examples=21
    )
    geometry = Geometry("base", resolution=32)
    for step in range(3):
        batch = make_train_batch(source, order, geometry, step, range(7))
        assert batch.replaced == ()
        assert sorted(example.pair for example in batch.examples) == [*range(7)]


def test_a_dataset_alone_keeps_the_listing_that_it_always_had(
    urls: tuple[str, str, str, str],
) -> None:
    alone = build_listing(urls[0], urls[1])
    assert alone.train.fgr.stems == ["clip0/0000", "clip0/0002", "clip1/0001", "clip1/0003"]
    assert alone.dataset_url == urls[0]


def test_a_second_dataset_may_be_added_to_a_run(urls: tuple[str, str, str, str]) -> None:
    alone = build_listing(urls[0], urls[1])
    grown = grow(alone, both(urls)).listing
    assert grown.train.fgr.stems[:4] == alone.train.fgr.stems
    assert grown.train.fgr.stems[4:] == ["@2/clip0/0000", "@2/clip0/0002", "@2/clip1/0001"]
    source = FolderSource(grown)
    assert source.open_pair(5)[0].path.startswith(urls[2])
    turned = build_listing(f"{urls[2]}\n{urls[0]}", f"{urls[3]}\n{urls[1]}")
    with pytest.raises(DataError, match="may only grow"):
        grow(alone, turned)


def test_some_may_lack_a_validation_set_but_none_its_training_set(
    urls: tuple[str, str, str, str],
) -> None:
    write(f"{urls[0]}/train/fgr/@eaDir/a.jpg", encode(photo(1), "JPEG"))
    shutil.rmtree(Path(urls[2]) / "valid")
    assert both(urls).counts["valid_pairs"] == 2
    shutil.rmtree(Path(urls[0]) / "valid")
    with pytest.raises(DataError, match=r"no such folder: .*/valid/fgr: "):
        both(urls)
    shutil.move(f"{urls[2]}/train/fgr", f"{urls[2]}/train/image")
    with pytest.raises(DataError) as refused:
        both(urls)
    assert refused.value.line == (
        f"no such folder: {urls[2]}/train/fgr: rename image/ to fgr/ in {urls[2]}/train"
    )


def test_what_has_no_partner_is_named_with_its_dataset(urls: tuple[str, str, str, str]) -> None:
    write(f"{urls[2]}/train/fgr/extra.jpg", encode(photo(1), "JPEG"))
    with pytest.raises(DataError, match="1 files without a partner") as refused:
        both(urls)
    assert f" in {urls[0]} and {urls[2]}: train/fgr/@2/extra.jpg" in refused.value.line


def test_folders_that_look_like_a_number_of_a_dataset_are_refused(
    urls: tuple[str, str, str, str],
) -> None:
    write(f"{urls[0]}/train/fgr/@2/a.jpg", encode(photo(1), "JPEG"))
    with pytest.raises(
        DataError,
        match=r"1 files in folders named as several datasets are told apart in train/fgr: @2/a\.jpg",
    ):
        both(urls)


def test_a_run_lists_resumes_and_grows_with_several(
    urls: tuple[str, str, str, str], tmp_path: Path
) -> None:
    def config(dataset: str, backgrounds: str) -> RunConfig:
        base = runs.tiny(tmp_path, "run")
        data = dataclasses.replace(
            base.data, synthetic=None, dataset=dataset, backgrounds=backgrounds
        )
        return dataclasses.replace(base, data=data)

    store = Store.open(str(tmp_path), "run")
    first = config(urls[0], urls[1])
    all_of_them = config(f"{urls[0]}\n{urls[2]}", f"{urls[1]}\n{urls[3]}")
    listing = list_dataset(first, store)
    grown = grow_dataset(all_of_them, store, listing)
    assert [(a.kind, a.before, a.count) for a in grown.added][:2] == [
        ("pairs", 4, 3), ("backgrounds", 3, 2),
    ]  # fmt: skip
    source = source_of(all_of_them, store, grown.listing).open()
    assert source.pairs == 7
    assert source.open_pair(6)[0].path.startswith(urls[2])


# Command lines.

RUN = ["--backgrounds", "w", "--storage", "s", "--name", "n", "--steps", "8"]


def test_a_dataset_may_be_given_more_than_once() -> None:
    for argv in (["--dataset", "a", "--dataset", "b"], ["--dataset=a", "--dataset=b"]):
        config = parse_run("base", [*argv, *RUN])
        assert config.data.dataset == "a\nb"
        fixed = absolute_paths(config).data.dataset
        assert fixed == f"{Path.cwd()}/a\n{Path.cwd()}/b"
    with pytest.raises(ConfigError, match="expected one argument"):
        parse_run("base", [*RUN, "--dataset"])


def test_of_any_other_flag_the_last_counts_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = parse_run("base", ["--dataset", "a", *RUN, "--steps=9"])
    assert config.length.steps == 9
    assert caplog.messages == ["--steps is given more than once: the last one counts"]


def test_several_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("dataset:\n  - a\n  - s3://b/c\n", encoding="utf-8")
    config = parse_run("base", ["--config", f"{tmp_path}/run.yaml", *RUN])
    assert config.data.dataset == "a\ns3://b/c"


def test_a_secret_in_the_second_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--dataset: the URL s3://bucket/b carries credentials"):
        parse_run("base", ["--dataset", "a", "--dataset", "s3://key:secret@bucket/b", *RUN])
