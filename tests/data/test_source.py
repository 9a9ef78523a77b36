"""A dataset is listed once, checked as far as a listing can, and read as it was listed."""

from __future__ import annotations

import itertools
import os
import pickle
import random
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from raymat.data.dataset import image_folder
from raymat.data.dataset.discovery import build_listing
from raymat.data.dataset.image_folder import READ_RETRY, Folder, UnreadableImage
from raymat.data.dataset.listing import Files, Listing, Split
from raymat.data.dataset.source import FolderSource, SourceSpec, load_listing
from raymat.errors import DataError, NewerFormatError
from raymat.storage.retry import RetryPolicy
from tests.support.datakit import disc, encode, photo, write, write_dataset
from tests.support.web_server import serving

AT_ONCE = RetryPolicy(attempts=3, first=0)


@pytest.fixture(params=["folder", "memory://"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path)
        return
    yield "memory://bucket/some where"
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


def remove(url: str) -> None:
    fs, path = fsspec.url_to_fs(url)
    fs.rm(path)


# Listing.


def test_pairs_are_matched_by_path_without_extension_and_sorted(root: str) -> None:
    data, walls = write_dataset(root, pairs=4, backgrounds=3, valid=2)
    listing = build_listing(data, walls)
    assert listing.counts == {
        "pairs": 4,
        "backgrounds": 3,
        "valid_pairs": 2,
        "valid_backgrounds": 2,
    }
    rows = [listing.train.pair(i) for i in range(4)]
    assert [row.name for row in rows] == ["clip0/0000", "clip0/0002", "clip1/0001", "clip1/0003"]
    assert rows[0].fgr == "train/fgr/clip0/0000.jpg"
    assert rows[0].pha == "train/pha/clip0/0000.png"
    assert rows[2].pha == "train/pha/clip1/0001.JPG"
    assert rows[1].pha_size == len(encode(disc(2), "PNG"))
    assert [listing.train.background(i).path for i in range(3)] == [
        "train/0000.jpeg",
        "train/0001.webp",
        "train/0002.png",
    ]


def test_files_that_are_no_pictures_and_hidden_ones_are_ignored(root: str) -> None:
    data, walls = write_dataset(root)
    before = build_listing(data, walls).digest
    for name in (
        "fgr/notes.txt",
        "fgr/._0000.jpg",
        "pha/.cache/0000.png",
        "fgr/Thumbs.db",
        "x.jpg",
    ):
        write(f"{data}/train/{name}", b"x")
    assert build_listing(data, walls).digest == before


def test_the_listing_survives_its_bytes(root: str) -> None:
    listing = build_listing(*write_dataset(root))
    data = listing.to_bytes()
    back = Listing.from_bytes(data)
    assert back.to_bytes() == data
    assert (back.digest, back.counts) == (listing.digest, listing.counts)
    assert (back.dataset_url, back.backgrounds_url) == (
        listing.dataset_url,
        listing.backgrounds_url,
    )
    for split in ("train", "valid"):
        old, new = getattr(listing, split), getattr(back, split)
        assert [old.pair(i) for i in range(2)] == [new.pair(i) for i in range(2)]
        assert [old.background(i) for i in range(2)] == [new.background(i) for i in range(2)]


def test_the_digest_tells_names_and_sizes_but_not_the_place(tmp_path: Path) -> None:
    here = build_listing(*write_dataset(str(tmp_path / "a")))
    there = build_listing(*write_dataset(str(tmp_path / "b")))
    assert here.digest == there.digest
    assert len(here.digest) == 64
    write(f"{tmp_path}/b/data/train/fgr/clip0/0000.jpg", b"other bytes")
    assert build_listing(f"{tmp_path}/b/data", f"{tmp_path}/b/walls").digest != here.digest
    more = build_listing(*write_dataset(str(tmp_path / "c"), backgrounds=5))
    assert more.digest != here.digest


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -40])
def test_a_damaged_listing_is_refused(tmp_path: Path, cut: int) -> None:
    data = build_listing(*write_dataset(str(tmp_path))).to_bytes()
    with pytest.raises(DataError, match="listing is damaged"):
        Listing.from_bytes(data[:cut])


def test_a_listing_of_a_newer_raymat_is_refused_by_name_and_is_no_damage(tmp_path: Path) -> None:
    listing = build_listing(*write_dataset(str(tmp_path)))
    later = zlib.decompress(listing.to_bytes()).replace(b"raymat-listing-1", b"raymat-listing-2")
    (tmp_path / "listing.bin").write_bytes(zlib.compress(later))
    with pytest.raises(NewerFormatError) as refused:
        load_listing(f"{tmp_path}/listing.bin", listing.digest)
    assert refused.value.line == (
        f"cannot use the dataset's listing {tmp_path}/listing.bin: it has format raymat-listing-2, this version reads "
        "raymat-listing-1: use the raymat that wrote it"
    )
    for never in (b"raymat-listing-x", b"another-list-9.0"):
        (tmp_path / "listing.bin").write_bytes(
            zlib.compress(later.replace(b"raymat-listing-2", never))
        )
        with pytest.raises(DataError, match="listing is damaged"):
            load_listing(f"{tmp_path}/listing.bin", listing.digest)


@pytest.mark.parametrize("place", [10, 50, 200])
def test_a_flipped_bit_in_a_listing_is_found(tmp_path: Path, place: int) -> None:
    data = bytearray(build_listing(*write_dataset(str(tmp_path))).to_bytes())
    data[place] ^= 1
    with pytest.raises(DataError, match="listing is damaged"):
        Listing.from_bytes(bytes(data))


def test_pictures_of_kinds_that_are_not_read_are_counted_and_said(
    root: str, caplog: pytest.LogCaptureFixture
) -> None:
    data, walls = write_dataset(root)
    before = build_listing(data, walls).digest
    assert caplog.messages == []
    for name in ("a.exr", "b.EXR", "c.heic", "notes.txt", ".hidden.exr"):
        write(f"{data}/train/fgr/{name}", b"x")
    assert build_listing(data, walls).digest == before
    (line,) = caplog.messages
    assert line.startswith("left out below ")
    assert line.endswith(
        "data/train/fgr, only jpg, jpeg, png, webp, tif, tiff, bmp, gif, avif are read: 2 .exr, 1 .heic"
    )


def test_whatever_is_neither_read_nor_a_note_is_counted_whatever_its_name(
    root: str, caplog: pytest.LogCaptureFixture
) -> None:
    data, walls = write_dataset(root)
    notes = ("README", "license.txt", "a.json", "SHA.MD5")
    for name in ("a.mpo", "b.MTS", "IMG_0001", "001.png.", "c.hif", *notes):
        write(f"{data}/train/fgr/{name}", b"x")
    build_listing(data, walls)
    (line,) = caplog.messages
    assert line.endswith("avif are read: 2 without an extension, 1 .hif, 1 .mpo, 1 .mts")


def test_missing_partners_are_named_ten_of_them_and_how_many_more(root: str) -> None:
    data, walls = write_dataset(root, pairs=2)
    for i in range(8):
        write(f"{data}/train/fgr/lonely/{i:02}.jpg", b"x")
        write(f"{data}/train/pha/alone/{i:02}.png", b"x")
    with pytest.raises(DataError) as caught:
        build_listing(data, walls)
    line = caught.value.line
    assert line.startswith("16 files without a partner of the same name in fgr/ or pha/ in ")
    assert "train/fgr/lonely/00.jpg, train/fgr/lonely/01.jpg" in line
    assert "train/pha/alone/" not in line or line.count(".png") == 2
    assert line.endswith(" and 6 more; --skip-unpaired leaves them out")
    assert line.count("lonely/") + line.count("alone/") == 10


def test_two_different_missing_files_never_shift_the_pairs(root: str) -> None:
    data, walls = write_dataset(root, pairs=4)
    remove(f"{data}/train/fgr/clip0/0000.jpg")
    remove(f"{data}/train/pha/clip1/0003.JPG")
    with pytest.raises(DataError, match="2 files without a partner") as caught:
        build_listing(data, walls)
    assert "train/fgr/clip1/0003.jpg" in caught.value.line
    assert "train/pha/clip0/0000.png" in caught.value.line


def test_two_files_of_one_name_are_refused(root: str) -> None:
    data, walls = write_dataset(root)
    write(f"{data}/train/fgr/clip0/0000.png", b"x")
    with pytest.raises(DataError, match=r"2 files with the same name but another extension below .*fgr: "
                                        r"clip0/0000\.jpg, clip0/0000\.png$"):  # fmt: skip
        build_listing(data, walls)


def test_empty_files_are_refused(root: str) -> None:
    data, walls = write_dataset(root)
    write(f"{walls}/train/0001.webp", b"")
    with pytest.raises(
        DataError,
        match=r"1 empty files \(0 bytes\) or links to nothing below .*walls/train: 0001\.webp$",
    ):
        build_listing(data, walls)


def test_a_missing_folder_and_an_empty_one_are_told_apart(root: str) -> None:
    data, walls = write_dataset(root)
    with pytest.raises(DataError, match=r"^no such folder: .*/nowhere/train/fgr$"):
        build_listing(f"{root}/nowhere", walls)
    write(f"{root}/empty/train/notes.txt", b"x")
    with pytest.raises(
        DataError, match=r"^no images \(jpg, .*\) below .*/empty/train: 1 \.txt are there$"
    ):
        build_listing(data, f"{root}/empty")


def test_validation_is_only_needed_where_it_is_asked_for(root: str) -> None:
    data, walls = write_dataset(root, valid=0)
    with pytest.raises(DataError, match=r"no such folder: .*/valid"):
        build_listing(data, walls)
    counts = build_listing(data, walls, need_valid=False).counts
    assert (counts["valid_pairs"], counts["valid_backgrounds"]) == (0, 0)
    assert counts["pairs"] == 5
    write_dataset(root, valid=2)
    assert build_listing(data, walls, need_valid=False).counts["valid_pairs"] == 2


@pytest.mark.parametrize("url", ["nosuchprotocol://bucket/data", "s4://bucket/data"])
def test_an_unknown_protocol_is_one_clear_line(url: str) -> None:
    with pytest.raises(DataError, match=f"cannot open {url}: Protocol not known"):
        build_listing(url, url)


@pytest.fixture
def unreachable_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 bucket at an address where nobody listens."""
    s3 = fsspec.get_filesystem_class("s3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3.clear_instance_cache()
    monkeypatch.setattr(s3, "retries", 1)
    monkeypatch.setattr(image_folder, "RetryPolicy", lambda: AT_ONCE)  # of listings
    yield "s3://bucket"
    s3.clear_instance_cache()


def test_a_bucket_that_does_not_answer_is_one_clear_line(unreachable_bucket: str) -> None:
    url = f"{unreachable_bucket}/data"
    with pytest.raises(DataError, match=r"^cannot list s3://bucket/data: the storage") as caught:
        build_listing(url, url)
    assert "127.0.0.1:9" in caught.value.line
    with pytest.raises(
        DataError, match=r"^cannot read s3://bucket/a\.jpg(?: after [23] attempts)?: "
    ):
        Folder(unreachable_bucket, AT_ONCE).read("a.jpg")


def test_links_to_files_and_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    data, walls = write_dataset(str(tmp_path))
    before = build_listing(data, walls)
    real = tmp_path / "elsewhere"
    (tmp_path / "data/train/fgr/clip0").rename(real)
    (tmp_path / "data/train/fgr/clip0").symlink_to(real)
    picture = real / "0000.jpg"
    picture.rename(tmp_path / "picture")
    picture.symlink_to(tmp_path / "picture")
    (real / "loop").symlink_to(tmp_path / "data/train/fgr")
    assert build_listing(data, walls).digest == before.digest
    (tmp_path / "picture").unlink()
    for target in (tmp_path / "picture", picture):  # nothing, itself
        picture.unlink()
        picture.symlink_to(target)
        with pytest.raises(DataError, match=r"1 empty files .*: clip0/0000\.jpg"):
            build_listing(data, walls)


def test_relative_folders_are_kept_as_absolute_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    listing = build_listing("data", "./walls/")
    assert listing.dataset_url == f"{tmp_path}/data"
    assert listing.backgrounds_url == f"{tmp_path}/walls"


class CountedFileSystem(MemoryFileSystem):
    """Memory that counts what it is asked."""

    protocol = "counted"
    calls: dict[str, int] = {}  # noqa: RUF012

    def find(self, path: str, *args: object, **kwargs: object) -> object:
        self.calls["find"] = self.calls.get("find", 0) + 1
        return super().find(path, *args, **kwargs)

    def info(self, path: str, **kwargs: object) -> object:
        self.calls["info"] = self.calls.get("info", 0) + 1
        return super().info(path, **kwargs)

    def _open(self, path: str, *args: object, **kwargs: object) -> object:
        self.calls["open"] = self.calls.get("open", 0) + 1
        return super()._open(path, *args, **kwargs)


def test_listing_asks_once_per_folder_and_never_per_file() -> None:
    fsspec.register_implementation("counted", CountedFileSystem, clobber=True)
    data, walls = write_dataset("counted://many", pairs=40, backgrounds=30)
    CountedFileSystem.calls.clear()
    build_listing(data, walls)
    assert CountedFileSystem.calls == {"find": 6}
    CountedFileSystem.store.clear()


def many(count: int) -> Listing:
    """A listing of `count` pairs as VideoMatte240K has them, and as many backgrounds."""
    rng = np.random.Generator(np.random.Philox(0))
    stems = [f"{i // 500:04}/{i % 500:05}" for i in range(count)]

    def files(folder: str) -> Files:
        sizes = rng.integers(100_000, 4_000_000, count)
        return Files(folder, stems, [".jpg"], np.zeros(count, np.uint8), sizes)

    def split(name: str) -> Split:
        return Split(files(f"{name}/fgr"), files(f"{name}/pha"), files(name))

    return Listing.of("s3://bucket/data", "s3://bucket/walls", split("train"), split("valid"))


def test_240_000_pairs_load_in_well_under_a_second() -> None:
    listing = many(120_000)  # to train on and again to validate on
    data = listing.to_bytes()
    assert len(data) < 8_000_000
    start = time.process_time()
    back = Listing.from_bytes(data)
    took = time.process_time() - start
    assert back.train.pair(119_999) == listing.train.pair(119_999)
    assert back.digest == listing.digest
    assert took < 1


# Reading.


def test_a_pair_opens_with_its_size_and_decodes(root: str) -> None:
    listing = build_listing(*write_dataset(root))
    source = FolderSource(listing)
    assert (source.pairs, source.backgrounds) == (5, 4)
    assert (source.valid_pairs, source.valid_backgrounds) == (2, 2)
    fgr, pha = source.open_pair(0)
    assert fgr.size == pha.size == (96, 64)
    assert pha.path.endswith("/data/train/pha/clip0/0000.png")
    assert np.array_equal(pha.decode(), disc(0))
    assert fgr.decode(2).shape == (32, 48, 3)
    assert np.array_equal(source.open_background(2).decode(), photo(502, 80, 80))
    assert np.array_equal(source.open_background(0, valid=True).decode().shape, (80, 80, 3))
    assert source.name_of(1) == "clip0/0002"


def test_a_pair_of_different_sizes_is_unreadable_and_both_are_named(root: str) -> None:
    data, walls = write_dataset(root)
    write(f"{data}/train/pha/clip0/0002.png", encode(disc(2, 95, 64), "PNG"))
    source = FolderSource(build_listing(data, walls))
    with pytest.raises(UnreadableImage) as caught:
        source.open_pair(1)
    assert caught.value.path.endswith("/data/train/fgr/clip0/0002.jpg")
    assert caught.value.reason == (
        "is 96 x 64 pixels, but its alpha train/pha/clip0/0002.png is 95 x 64"
    )


def test_a_matte_that_lies_on_its_side_is_said(root: str) -> None:
    data, walls = write_dataset(root)
    write(f"{data}/train/pha/clip0/0002.png", encode(disc(2, 64, 96), "PNG"))
    with pytest.raises(UnreadableImage) as caught:
        FolderSource(build_listing(data, walls)).open_pair(1)
    assert caught.value.reason == (
        "is 96 x 64 pixels, but its alpha train/pha/clip0/0002.png is 64 x 96: one of them lies on its side, turn it, or "
        "make the matte of the upright picture"
    )


def test_a_name_breaks_no_line_and_moves_no_cursor(tmp_path: Path) -> None:
    assert (
        Folder(str(tmp_path)).shown("a\nb\x1b[2J\x7f é.png")
        == f"{tmp_path}/a\\nb\\x1b[2J\\x7f é.png"
    )


def test_a_file_that_changed_or_went_is_unreadable(root: str) -> None:
    data, walls = write_dataset(root)
    source = FolderSource(build_listing(data, walls), AT_ONCE)
    before = len(encode(disc(0), "PNG"))
    write(f"{data}/train/pha/clip0/0000.png", b"short")
    remove(f"{walls}/train/0001.webp")
    with pytest.raises(UnreadableImage) as caught:
        source.open_pair(0)
    assert caught.value.reason == f"changed since the run began: was {before} bytes, is 5"
    with pytest.raises(UnreadableImage, match=r"walls/train/0001\.webp: not found$"):
        source.open_background(1)


def test_pictures_of_a_disk_that_is_not_mounted_any_more_are_waited_for_and_never_replaced(
    tmp_path: Path,
) -> None:
    data, walls = write_dataset(str(tmp_path))
    listing = build_listing(data, walls)
    source = FolderSource(listing, AT_ONCE)
    os.rename(f"{data}/train", f"{data}/unmounted")
    os.makedirs(f"{walls}/empty")
    os.rename(f"{walls}/train", f"{walls}/unmounted")
    os.rename(f"{walls}/empty", f"{walls}/train")
    for read, top in (
        (source.open_pair, f"{data}/train"),
        (source.open_background, f"{walls}/train"),
    ):
        with pytest.raises(
            DataError, match=rf"^cannot read .*: {top} is gone, empty or closed .*mounted\?$"
        ) as caught:
            read(0)
        assert not isinstance(caught.value, UnreadableImage)
    os.rmdir(f"{walls}/train")
    back = threading.Timer(0.05, os.rename, (f"{walls}/unmounted", f"{walls}/train"))
    back.start()
    patient = FolderSource(listing, RetryPolicy(total=60.0, first=0.01, longest=0.05))
    assert patient.open_background(0).size == (80, 80)


def test_a_file_that_became_a_folder_is_unreadable_at_once(tmp_path: Path) -> None:
    data, walls = write_dataset(str(tmp_path))
    source = FolderSource(build_listing(data, walls))
    path = f"{walls}/train/0001.webp"
    os.remove(path)
    os.mkdir(path)
    with pytest.raises(UnreadableImage, match="Is a directory"):
        source.open_background(1)


class Faulty(BaseHTTPRequestHandler):
    """Serves "picture" after the faults that a path begins with: /503/503/reset/... ."""

    seen: dict[str, int] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        turn = self.seen[self.path] = self.seen.get(self.path, 0) + 1
        faults = self.path.strip("/").split("/")[:-1]
        fault = faults[min(turn, len(faults)) - 1] if turn <= len(faults) else "fine"
        if fault == "reset":
            self.connection.close()
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"pict")
        elif fault.isdigit():
            self.send_error(int(fault))
        else:
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"picture")

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (OSError, ValueError):  # a connection that was reset on purpose
            self.close_connection = True


@pytest.fixture
def server() -> Iterator[str]:
    Faulty.seen.clear()
    with serving(Faulty) as url:
        yield url


@pytest.mark.parametrize("faults", ["503/503", "reset/500", "cut/reset", "429/408"])
def test_passing_faults_of_the_storage_are_waited_out(server: str, faults: str) -> None:
    assert Folder(server, AT_ONCE).read(f"{faults}/a.jpg", 7) == b"picture"


@pytest.mark.parametrize("faults", ["503/503/503", "reset" + 7 * "/reset"])
def test_a_storage_that_keeps_failing_ends_the_attempt_rather_than_changing_the_sample(
    server: str, faults: str
) -> None:
    with pytest.raises(
        DataError, match=rf"^cannot read {server}/{faults}/a\.jpg after 3 attempts: "
    ) as e:
        Folder(server, AT_ONCE).read(f"{faults}/a.jpg", 7)
    assert not isinstance(e.value, UnreadableImage)


@pytest.mark.parametrize("fault", ["404", "403", "410"])
def test_a_refusal_is_unreadable_without_another_attempt(server: str, fault: str) -> None:
    with pytest.raises(UnreadableImage):
        Folder(server, AT_ONCE).read(f"{fault}/a.jpg", 7)
    assert Faulty.seen == {f"/{fault}/a.jpg": 1}


def test_waits_double_and_differ_between_readers() -> None:
    delays = [
        list(itertools.islice(READ_RETRY.pauses(random.Random(name).uniform), 5))
        for name in ("a", "b")
    ]
    for waits in delays:
        assert [w / 0.5 / 2**i for i, w in enumerate(waits)] == pytest.approx([0.75] * 5, abs=0.25)
    assert delays[0] != delays[1]


# What travels to the readers.


def test_a_spec_opens_its_listing_once_and_checks_it(root: str) -> None:
    listing = build_listing(*write_dataset(root))
    write(f"{root}/run/listing.bin", listing.to_bytes())
    spec = SourceSpec.listed(f"{root}/run/listing.bin", listing.digest)
    assert len(pickle.dumps(spec)) < 500
    source = pickle.loads(pickle.dumps(spec)).open()
    assert source is spec.open()
    assert source.open_pair(0)[0].size == (96, 64)
    with pytest.raises(DataError, match="is not the one that the run began with"):
        load_listing(f"{root}/run/listing.bin", "0" * 64)
    with pytest.raises(
        DataError, match=r"cannot use the dataset's listing .*/gone\.bin: .*not found"
    ):
        load_listing(f"{root}/run/gone.bin", listing.digest)


def test_a_synthetic_source_has_other_pictures_to_validate_on() -> None:
    source = SourceSpec.synthetic(count=3, seed=1, size=32, valid_count=2).open()
    assert (source.pairs, source.backgrounds, source.valid_pairs) == (3, 3, 2)
    pictures = [source.open_pair(i)[0].decode() for i in range(3)]
    pictures += [source.open_pair(i, valid=True)[0].decode() for i in range(2)]
    pictures += [source.open_background(i).decode() for i in range(3)]
    pictures += [source.open_background(i, valid=True).decode() for i in range(2)]
    assert all(p.shape == (32, 32, 3) and p.dtype == np.uint8 for p in pictures)
    assert len({p.tobytes() for p in pictures}) == 10
    fgr, pha = source.open_pair(1)
    assert fgr.size == pha.size == (32, 32)
    assert pha.decode().ndim == 2
    assert SourceSpec.synthetic(count=3, seed=1, size=32).open().valid_pairs == 3


def test_names_on_a_server_with_a_question_mark_or_a_hash_are_told_whole() -> None:
    folder = Folder("memory://bucket/fgr")
    assert folder.shown("what? #1.png") == "memory://bucket/fgr/what%3F %231.png"
