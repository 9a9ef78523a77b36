"""A listing that has grown keeps every old row where it was; what did not only grow is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymat.config.values import Range
from raymat.data.batch import Geometry
from raymat.data.batch_maker import make_train_batch
from raymat.data.dataset.discovery import build_listing
from raymat.data.dataset.growth import grow, move
from raymat.data.dataset.listing import Listing
from raymat.data.dataset.source import FolderSource
from raymat.data.lineage import DatasetSpan, Lineage
from raymat.data.sample_order import SampleOrder
from raymat.errors import DataError
from raymat.storage.retry import RetryPolicy
from tests.support.datakit import write_dataset


def write(root: Path, *names: str, size: int = 10) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def add_pairs(root: Path, split: str, *stems: str, suffix: str = ".jpg") -> None:
    for stem in stems:
        write(root, f"data/{split}/fgr/{stem}{suffix}", f"data/{split}/pha/{stem}.png")


def look(root: Path, need_valid: bool = True) -> Listing:
    return build_listing(f"{root}/data", f"{root}/walls", need_valid=need_valid)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    add_pairs(tmp_path, "train", "b", "d", "f")
    add_pairs(tmp_path, "valid", "v1", "v2")
    write(tmp_path, "walls/train/m.jpg", "walls/train/n.jpg", "walls/valid/w.jpg")
    return tmp_path


def test_old_rows_keep_their_places_and_new_ones_follow(root: Path) -> None:
    old = look(root)
    add_pairs(root, "train", "a", "c", "z", suffix=".JPEG")
    write(root, "walls/train/a.webp")
    growth = grow(old, look(root))
    listing = growth.listing
    assert listing.train.fgr.stems == ["b", "d", "f", "a", "c", "z"]
    assert [listing.train.pair(i) for i in range(3)] == [old.train.pair(i) for i in range(3)]
    assert listing.train.pair(3) == ("a", "train/fgr/a.JPEG", 10, "train/pha/a.png", 10)
    walls = [listing.train.background(i).path for i in range(3)]
    assert walls == ["train/m.jpg", "train/n.jpg", "train/a.webp"]
    assert [str(added) for added in growth.added] == [
        "3 pairs + 3 (a, c, z)",
        "2 backgrounds + 1 (a)",
        "2 validation pairs",
        "1 validation backgrounds",
    ]
    back = Listing.from_bytes(listing.to_bytes())
    assert (back.digest, back.train.pair(5)) == (listing.digest, listing.train.pair(5))


def test_growing_twice_is_growing_on_what_had_grown(root: Path) -> None:
    old = look(root)
    add_pairs(root, "train", "e")
    once = grow(old, look(root)).listing
    add_pairs(root, "train", "a")
    twice = grow(once, look(root)).listing
    assert twice.train.fgr.stems == ["b", "d", "f", "e", "a"]


def test_a_dataset_to_which_nothing_came_is_the_same(root: Path) -> None:
    old = look(root)
    growth = grow(old, look(root))
    assert growth.listing.digest == old.digest
    assert [added.count for added in growth.added] == [0, 0, 0, 0]


def test_files_that_are_gone_or_changed_are_refused_with_their_names(root: Path) -> None:
    old = look(root)
    add_pairs(root, "train", "a")
    for folder in ("fgr", "pha"):
        for path in (root / "data/train" / folder).glob("d.*"):
            path.unlink()
    write(root, "walls/train/n.jpg", size=11)
    (root / "data/valid/fgr/v1.jpg").rename(root / "data/valid/fgr/v1.png")
    with pytest.raises(DataError) as caught:
        grow(old, look(root))
    line = str(caught.value)
    assert "missing 2 files (train/fgr/d.jpg, train/pha/d.png)" in line
    assert "changed 2 files (train/n.jpg, valid/fgr/v1.jpg)" in line
    assert "put them back" in line


def test_a_validation_set_that_nobody_needs_may_be_away(root: Path) -> None:
    old = look(root)
    (root / "data/valid").rename(root / "data/elsewhere")
    add_pairs(root, "train", "a")
    growth = grow(old, look(root, need_valid=False))
    assert growth.listing.counts["valid_pairs"] == 2
    assert growth.listing.counts["pairs"] == 4


def test_batches_before_the_growth_are_the_same_to_the_byte_stand_ins_included(
    tmp_path: Path,
) -> None:
    """A picture that cannot be read is replaced by one of those that there were then."""
    urls = write_dataset(str(tmp_path), pairs=5, backgrounds=4)
    old = build_listing(*urls)
    broken = tmp_path / "data/train/fgr/clip0/0002.jpg"
    broken.write_bytes(b"?" * broken.stat().st_size)
    write_dataset(str(tmp_path / "more"), pairs=12, backgrounds=9)
    for kind in ("data/train/fgr/clip0", "data/train/pha/clip0", "walls/train"):
        for path in (tmp_path / "more" / kind).iterdir():
            path.rename(tmp_path / kind / f"a{path.name}")
    growth = grow(old, build_listing(*urls))
    before = SampleOrder(3, 5, 4, 4, Range(32, 32), 40)
    span = DatasetSpan(10, 5, 4, old.digest)
    after = SampleOrder(3, 11, 13, 4, Range(32, 32), 40, lineage=Lineage(spans=(span,)))
    one, other = (FolderSource(each, RetryPolicy(attempts=1)) for each in (old, growth.listing))
    geometry = Geometry("base", 32)
    replaced = 0
    for step in range(2):
        expected = make_train_batch(one, before, geometry, step, range(4))
        found = make_train_batch(other, after, geometry, step, range(4))
        assert (found.examples, found.replaced) == (expected.examples, expected.replaced)
        assert found.fgr.tobytes() == expected.fgr.tobytes()
        assert found.bgr.tobytes() == expected.bgr.tobytes()
        assert all(e.pair < 5 and e.background < 4 for e in found.examples)
        replaced += len(found.replaced)
    assert replaced == 2
    crossing = make_train_batch(other, after, geometry, 2, range(4))
    assert max(example.pair for example in crossing.examples[:2]) < 5
    assert len({e.pair for e in after.examples(range(10, 21))}) == 11


def test_a_copy_whose_names_only_look_the_same_is_refused_for_just_that(root: Path) -> None:
    add_pairs(root, "train", "ren\u00e9")
    old = look(root)
    for half, suffix in (("fgr", ".jpg"), ("pha", ".png")):
        (root / f"data/train/{half}/ren\u00e9{suffix}").rename(
            root / f"data/train/{half}/rene\u0301{suffix}"
        )
    line = (
        "the accents of train/fgr/ren\u00e9.jpg are written in another form than when the run began (NFC or NFD, as a Mac "
        "makes them), which looks the same: copy the files again with their names as they were"
    )
    for look_again in (move, grow):
        with pytest.raises(DataError) as refused:
            look_again(old, look(root))
        assert str(refused.value) == line
