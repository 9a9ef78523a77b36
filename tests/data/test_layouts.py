"""Folders as people have them: what is missing is said with what is there, and what to rename or which flag takes it."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from pathlib import Path

import pytest

from raymat.config.flags import parse_run
from raymat.data.dataset.discovery import build_listing
from raymat.data.dataset.file_names import NameRules
from raymat.data.dataset.listing import Listing
from raymat.data.dataset.source import FolderSource
from raymat.errors import DataError
from tests.support.datakit import disc, encode, photo, write, write_dataset

PICTURE = encode(photo(1), "JPEG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_dataset(str(tmp_path))
    return tmp_path


def listing(root: Path, data: str = "data", **rules: object) -> Listing:
    return build_listing(f"{root}/{data}", f"{root}/walls", rules=NameRules(**rules))  # type: ignore[arg-type]


def refusal(root: Path, data: str = "data", **rules: object) -> str:
    with pytest.raises(DataError) as refused:
        listing(root, data, **rules)
    assert "\n" not in refused.value.line
    return refused.value.line.replace(str(root), "")


def move(root: Path, before: str, after: str) -> None:
    (root / after).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(root / before, root / after)


# Folders.


@pytest.mark.parametrize(
    ("moves", "line"),
    [
        (
            {"data/valid": "data/test"},
            "no such folder: /data/valid/fgr: rename test/ to valid/ in /data",
        ),
        (
            {"data/valid": "data/Validation"},
            "no such folder: /data/valid/fgr: rename Validation/ to valid/ in /data",
        ),
        (
            {"data/train/fgr": "data/train/image", "data/train/pha": "data/train/alpha"},
            "no such folder: /data/train/fgr: rename image/ to fgr/ and alpha/ to pha/ in /data/train",
        ),
        (
            {"data/train/fgr": "data/train/FGR"},
            "no such folder: /data/train/fgr: rename FGR/ to fgr/ in /data/train",
        ),
        (
            {"data/train/pha": "data/train/masks"},
            "no such folder: /data/train/pha: rename masks/ to pha/ in /data/train",
        ),
        (
            {"data/train/pha": "gone"},
            "no such folder: /data/train/pha: /data/train has fgr/ alone; if its pictures have alpha channels: "
            "ln -s fgr /data/train/pha",
        ),
        (
            {"data": "all/set/data", "all/set": "data"},
            "no such folder: /data/train/fgr: it is a level deeper: give /data/data",
        ),
        (
            {"data/train/fgr": "data/fgr", "data/train/pha": "data/pha", "data/train": "gone"},
            "no such folder: /data/train/fgr: /data has fgr/ and pha/ itself: move them into /data/train",
        ),
        (
            {"data/train": "gone", "data/valid": "gone/too"},
            "no such folder: /data/train/fgr: /data is empty",
        ),
        ({"data": "gone"}, "no such folder: /data/train/fgr"),
        (
            {"walls/train": "walls/training"},
            "no such folder: /walls/train: rename training/ to train/ in /walls",
        ),
        (
            {"walls/valid": "walls/val"},
            "no such folder: /walls/valid: rename val/ to valid/ in /walls",
        ),
    ],
)
def test_a_missing_folder_is_said_with_what_is_there(
    root: Path, moves: dict[str, str], line: str
) -> None:
    for before, after in moves.items():
        move(root, before, after)
    assert refusal(root) == line


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        (
            "{}/my%20data",
            "a path is read as it is written, and there is /my data: give that",
        ),
        ("{}/data ", "a path is read as it is written, and there is /data: give that"),
        ("{}/data::{}/more", "it is read as one path: give the flag once for each folder"),
        ("{}/data,{}/more", "it is read as one path: give the flag once for each folder"),
        ("{}/list.txt", "it is a file, and a folder of pictures is read: give the folder"),
    ],
)
def test_a_path_that_leads_nowhere_is_said_with_the_one_that_is_meant(
    root: Path, url: str, hint: str
) -> None:
    for name in ("more", "my data"):
        shutil.copytree(root / "data", root / name)
    write(f"{root}/list.txt", b"data/train/fgr/0.jpg")
    with pytest.raises(DataError) as refused:
        build_listing(url.replace("{}", str(root)), f"{root}/walls")
    line = refused.value.line.replace(str(root), "")
    shown = url.replace("{}", "").removeprefix("file://")
    assert line == f"no such folder: {shown}/train/fgr: {hint}"


def test_a_folder_with_two_colons_is_itself_and_not_another_one(root: Path) -> None:
    shutil.copytree(root / "data", root / "data::2")
    os.remove(root / "data::2/train/fgr/clip0/0000.jpg")
    os.remove(root / "data::2/train/pha/clip0/0000.png")
    assert [listing(root, name).counts["pairs"] for name in ("data", "data::2")] == [5, 4]
    assert FolderSource(listing(root, "data::2")).open_pair(0)[0].path == (
        f"{root}/data::2/train/fgr/clip0/0002.jpg"
    )


def test_a_half_of_the_dataset_is_told_from_the_whole(root: Path) -> None:
    assert refusal(root, "data/train") == (
        "no such folder: /data/train/train/fgr: this is one of its halves: give the folder above, /data"
    )


def test_backgrounds_without_halves_are_told_where_to_go(root: Path) -> None:
    shutil.rmtree(root / "walls")
    write(f"{root}/walls/a.jpg", PICTURE)
    assert refusal(root) == (
        "no such folder: /walls/train: /walls has 1 pictures itself (a.jpg): move them into train/"
    )


def test_archives_are_to_be_unpacked(root: Path) -> None:
    (root / "set.zip").write_bytes(b"PK")
    assert refusal(root, "set.zip") == (
        "no such folder: /set.zip/train/fgr: /set.zip is an archive: unpack it (unzip /set.zip), and give the folder"
    )
    shutil.rmtree(root / "data/train")
    (root / "data/train.tar.gz").write_bytes(b"x")
    assert refusal(root).endswith(
        "/data/train.tar.gz is an archive: unpack it (tar -xf /data/train.tar.gz), and give the folder"
    )


def test_videos_are_said_with_the_command_that_unpacks_them(root: Path) -> None:
    command = (
        'videos are unpacked by: for v in /data/train/fgr/*.mp4; do mkdir -p "${v%.*}" && '
        'ffmpeg -i "$v" "${v%.*}/%06d.png"; done'
    )
    shutil.rmtree(root / "data/train/fgr")
    for name in ("a", "b"):
        write(f"{root}/data/train/fgr/{name}.mp4", b"x")
    line = refusal(root)
    assert line.startswith("no images (jpg, jpeg, png, webp, tif,")
    assert line.endswith(f" below /data/train/fgr: 2 videos (.mp4) are there: {command}")
    shutil.rmtree(root / "data/train/fgr")
    write(f"{root}/data/train/fgr.mp4", b"x")
    assert "/data/train has fgr.mp4: videos are unpacked by: " in refusal(root)


def test_the_same_is_said_of_a_bucket() -> None:
    for name in ("train/image/a.jpg", "train/alpha/a.png"):
        write(f"memory://layout/data/{name}", PICTURE)
    with pytest.raises(DataError) as refused:
        build_listing("memory://layout/data", "memory://layout/data")
    assert refused.value.line.endswith(
        "/data/train/fgr: rename image/ to fgr/ and alpha/ to pha/ in memory://layout/data/train"
    )


# Names.


def renamed(root: Path, folder: str, change: tuple[str, str], split: str = "train") -> None:
    for path in [*(root / f"data/{split}/{folder}").rglob("*.*")]:
        path.rename(path.with_name(path.name.replace(*change)))


@pytest.mark.parametrize("ending", ["_alpha", "_mask", "-matte", ".pha", " (1)", " "])
def test_mattes_with_an_ending_are_refused_with_the_flag_that_takes_them(
    root: Path, ending: str
) -> None:
    before = listing(root)
    for split in ("train", "valid"):
        renamed(root, "pha", (".", f"{ending}."), split)
    line = refusal(root)
    word = {"-matte": "=-matte", " (1)": " ' (1)'", " ": " ' '"}.get(ending, f" {ending}")
    assert line.endswith(f"; the mattes' names end in {word[1:]}: --pair-suffix{word} takes them")
    words = ["--synthetic", "8", "--name", "x", *shlex.split(f"--pair-suffix{word}")]
    assert parse_run("base", words).data.pair_suffix == ending
    found = listing(root, pair_suffix=ending)
    assert found.counts == before.counts
    assert found.train.fgr.stems == before.train.fgr.stems
    assert found.train.pair(0).pha == f"train/pha/clip0/0000{ending}.png"
    assert FolderSource(found).open_pair(1)[1].decode().shape == (64, 96)
    assert Listing.from_bytes(found.to_bytes()).train.pair(3) == found.train.pair(3)


def test_foregrounds_with_an_ending_and_other_padding_and_case_are_told(root: Path) -> None:
    renamed(root, "fgr", (".", "_rgb."))
    assert refusal(root).endswith("; the foregrounds' names end in _rgb: rename them without it")
    renamed(root, "fgr", ("_rgb.", "."))
    renamed(root, "pha", ("000", "0"))
    assert refusal(root).endswith(
        "; the numbers in their names are padded differently (clip0/0000 and clip0/00): rename those of one folder"
    )
    renamed(root, "pha", ("0", "000"))
    for folder, letter in (("fgr", "a"), ("pha", "A")):
        shutil.rmtree(root / f"data/train/{folder}")
        write(f"{root}/data/train/{folder}/{letter}.png", PICTURE)
    assert refusal(root).endswith(
        "; their names differ in upper and lower case (a and A): rename those of one folder"
    )


def test_other_accents_beginnings_and_a_wrong_ending_are_told(root: Path) -> None:
    data = root / "data/train"
    for half, name in (("fgr", "e\u0301"), ("pha", "\u00e9")):
        shutil.rmtree(data / half)
        write(f"{data}/{half}/{name}.png", PICTURE)
    assert refusal(root).endswith(
        "; the accents of 1 of the mattes' names are written in another form than those of their foregrounds (NFC and NFD, as "
        "a Mac makes them), which looks the same: convmv -f utf8 -t utf8 --nfc -r --notest FOLDER renames them"
    )
    write(f"{data}/fgr/7.png", PICTURE)
    write(f"{data}/pha/8.png", PICTURE)
    write(f"{data}/pha/9.png", PICTURE)
    assert "; the accents of 1 of the mattes' names are written in another form" in refusal(root)
    for name in ("fgr/7.png", "pha/8.png", "pha/9.png"):
        (data / name).unlink()
    (data / "fgr/e\u0301.png").rename(data / "fgr/7.png")
    (data / "pha/\u00e9.png").rename(data / "pha/alpha_7.png")
    assert refusal(root).endswith("; the mattes' names begin with alpha_: rename them without it")
    (data / "pha/alpha_7.png").rename(data / "pha/7_alpha.png")
    assert refusal(root, pair_suffix="alpha").endswith("--pair-suffix _alpha takes them")


def test_one_folder_given_twice_and_pairs_given_as_backgrounds_are_refused(root: Path) -> None:
    data, walls = f"{root}/data", f"{root}/walls"
    (root / "link").symlink_to(data)
    for other in (data, f"{data}/", f"{root}/link"):
        with pytest.raises(DataError, match="is given twice: each of its pairs would count twice"):
            build_listing(f"{data}\n{other}", walls)
    with pytest.raises(DataError, match="that is a dataset, whose mattes would be backgrounds too"):
        build_listing(data, data)


def test_one_file_too_many_refuses_nothing_if_told_so(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = listing(root)
    write(f"{root}/data/train/fgr/clip0/extra.jpg", PICTURE)
    write(f"{root}/data/valid/pha/more.png", PICTURE)
    assert refusal(root) == (
        "1 files without a partner of the same name in fgr/ or pha/ in /data: train/fgr/clip0/extra.jpg; "
        "--skip-unpaired leaves them out"
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert listing(root, skip_unpaired=True).digest == before.digest
    assert [message.replace(str(root), "") for message in caplog.messages] == [
        "left out of /data for want of a partner: train/fgr/clip0/extra.jpg",
        "left out of /data for want of a partner: valid/pha/more.png",
    ]


def test_a_dataset_without_any_pair_is_refused_all_the_same(root: Path) -> None:
    renamed(root, "pha", (".", "_alpha."))
    assert "--pair-suffix _alpha takes them" in refusal(root, skip_unpaired=True)


# What systems leave behind.


def test_thumbnails_and_hidden_files_are_no_pairs_and_that_is_said_once(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = listing(root).digest
    for folder in ("fgr", "pha"):
        for name in (
            "@eaDir/0000.jpg/SYNOFILE_THUMB_M.jpg",
            "clip0/@eaDir/0000.jpg/SYNOFILE_THUMB_S.jpg",
            "clip0/._0000.jpg",
            ".hidden/0000.jpg",
            "__MACOSX/clip0/._0000.png",
            ".DS_Store",
            "Thumbs.db",
        ):
            write(f"{root}/data/train/{folder}/{name}", PICTURE)
    with caplog.at_level(logging.WARNING):
        assert listing(root).digest == before
    (line,) = caplog.messages
    assert line == (
        "passed over, as left behind by systems or hidden: 4 @eaDir, 2 ._*, 2 .hidden, 2 __MACOSX"
    )


def test_a_run_that_began_before_lists_the_same_files(root: Path) -> None:
    before = listing(root).digest
    for folder in ("fgr", "pha"):
        write(f"{root}/data/train/{folder}/more.tif", PICTURE)
        write(f"{root}/data/train/{folder}/clip0/@eaDir/a.jpg", PICTURE)
        write(f"{root}/data/train/{folder}/clip0/._0000.jpg", PICTURE)
    old, new = listing(root, decoding=2), listing(root)
    assert [stem for stem in old.train.fgr.stems if "0" not in stem[5:]] == ["clip0/@eaDir/a"]
    assert "more" in new.train.fgr.stems
    assert "clip0/@eaDir/a" not in new.train.fgr.stems
    assert before not in (old.digest, new.digest)


def test_pictures_of_all_kinds_that_are_read_make_pairs(root: Path) -> None:
    for i, (kind, form) in enumerate(
        [(".tif", "TIFF"), (".TIFF", "TIFF"), (".bmp", "BMP"), (".avif", "AVIF"), (".jfif", "JPEG")]
    ):
        write(f"{root}/data/train/fgr/new{i}{kind}", encode(photo(i), form))
        write(f"{root}/data/train/pha/new{i}.tif", encode(disc(i), "TIFF"))
    found = listing(root)
    assert found.counts["pairs"] == 10
    source = FolderSource(found)
    for index in range(10):
        foreground, matte = source.open_pair(index)
        assert foreground.decode().shape == (64, 96, 3)
        assert matte.decode().shape == (64, 96)
