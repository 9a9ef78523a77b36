"""A micro-batch is its step's share, whoever makes it; what cannot be read is replaced, and said."""

from __future__ import annotations

import dataclasses
import json
import os
import time
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from raymat.config.values import Range
from raymat.data.batch import Doubt, Geometry, MicroBatch, Replacement
from raymat.data.batch_maker import _candidates, make_train_batch, make_valid_batch
from raymat.data.dataset.discovery import build_listing
from raymat.data.dataset.source import LOOKED_AT, FolderSource, Source
from raymat.data.decode import OpenImage
from raymat.data.sample_order import Example, SampleOrder
from raymat.data.warp import crop_map, draw_background_warp, draw_pair_warp, warp_into
from raymat.distributed.world import World
from raymat.errors import DataError
from raymat.storage.retry import RetryPolicy
from tests.support.datakit import MemorySource, disc, encode, write, write_dataset

GEOMETRY = Geometry("base", resolution=64, scaled_decode=False)


def make_order(source: Source, **changed: object) -> SampleOrder:
    fields = {
        "seed": 7,
        "pairs": source.pairs,
        "backgrounds": source.backgrounds,
        "batch_size": 4,
        "crop": Range(32, 64),
        "total_examples": 40,
        "valid_pairs": source.valid_pairs,
        "valid_backgrounds": source.valid_backgrounds,
        "valid_examples": 6,
    }
    return SampleOrder(**(fields | changed))  # type: ignore[arg-type]


@pytest.fixture
def urls(tmp_path: Path) -> tuple[str, str]:
    return write_dataset(str(tmp_path), pairs=6, backgrounds=5, valid=3)


@pytest.fixture
def source(urls: tuple[str, str]) -> FolderSource:
    return FolderSource(build_listing(*urls), RetryPolicy(attempts=2, first=0))


def whole(source: Source, order: SampleOrder, step: int = 0) -> MicroBatch:
    share = range(len(order.step_numbers(step)))
    return make_train_batch(source, order, GEOMETRY, step, share)


def same(a: MicroBatch, b: MicroBatch) -> bool:
    pixels = all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("fgr", "pha", "bgr"))
    rest = ("step", "examples", "replaced", "train", "looked", "doubts")
    return pixels and all(getattr(a, n) == getattr(b, n) for n in rest)


def test_a_batch_has_its_step_s_examples_and_crop(source: FolderSource) -> None:
    order = make_order(source)
    for step in (0, 1, 9):
        batch = whole(source, order, step)
        height, width = order.crop_size(step)
        assert batch.step == step
        assert batch.train
        assert list(batch.examples) == order.examples(order.step_numbers(step))
        assert batch.numbers == tuple(range(4 * step, 4 * step + 4))
        assert batch.fgr.shape == batch.bgr.shape == (4, height, width, 3)
        assert batch.pha.shape == (4, height, width)
        assert {a.dtype for a in (batch.fgr, batch.pha, batch.bgr)} == {np.dtype(np.uint8)}
        assert batch.replaced == ()
        sizes = [a.nbytes for a in (batch.fgr, batch.pha, batch.bgr)]
        assert sum(sizes) == 4 * height * width * 7


def test_every_picture_is_its_row_of_the_dataset_under_its_example_s_warp(
    source: FolderSource,
) -> None:
    order = make_order(source)
    crop = order.crop_size(2)
    batch = whole(source, order, 2)
    for i, example in enumerate(batch.examples):
        fgr, pha = source.open_pair(example.pair)
        warp = draw_pair_warp(7, example.number, "base", train=True)
        matrix = crop_map(warp, fgr.size, 64, crop)
        for image, seen in ((fgr, batch.fgr[i]), (pha, batch.pha[i])):
            expected = np.zeros_like(seen)
            warp_into(expected, image.decode(), matrix)
            assert np.array_equal(seen, expected)
        background = source.open_background(example.background)
        warp = draw_background_warp(7, example.number, train=True)
        expected = np.zeros_like(batch.bgr[i])
        warp_into(expected, background.decode(), crop_map(warp, background.size, 64, crop))
        assert np.array_equal(batch.bgr[i], expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_shares_of_any_world_join_to_the_same_batch(source: FolderSource, size: int) -> None:
    order = make_order(source)
    expected = whole(source, order, 3)
    shares = [
        make_train_batch(source, order, GEOMETRY, 3, World(rank, size).share(4))
        for rank in range(size)
    ]
    for name in ("fgr", "pha", "bgr"):
        joined = np.concatenate([getattr(share, name) for share in shares])
        assert np.array_equal(joined, getattr(expected, name))
    assert sum((share.examples for share in shares), ()) == expected.examples


def test_a_worker_s_batch_has_its_examples_chunk_by_chunk(source: FolderSource) -> None:
    order = dataclasses.replace(make_order(source), accumulate=2)
    expected = whole(source, order, 3)
    batch = make_train_batch(source, order, GEOMETRY, 3, order.shares(3, World(1, 2)))
    assert (batch.numbers, batch.chunks) == ((13, 15), (1, 1))
    back, _ = through_arrow(batch)
    assert back.chunks == (1, 1)
    for number, part in enumerate(back.by_chunk()):
        (place,) = part.numbers
        assert (part.step, part.chunks, place) == (3, (), 13 + 2 * number)
        for name in ("fgr", "pha", "bgr"):
            assert np.array_equal(getattr(part, name), getattr(expected, name)[place - 12][None])
    assert whole(source, order, 3).by_chunk()[0].numbers == (12, 13, 14, 15)


def test_making_a_batch_again_gives_the_same_bits(source: FolderSource) -> None:
    order = make_order(source)
    threads = cv2.getNumThreads()
    first = whole(source, order)
    try:
        cv2.setNumThreads(4)
        assert same(first, whole(source, order))
    finally:
        cv2.setNumThreads(threads)


def test_an_empty_share_has_the_step_s_crop(source: FolderSource) -> None:
    order = make_order(source)
    batch = make_train_batch(source, order, GEOMETRY, 0, range(4, 4))
    assert batch.fgr.shape == (0, *order.crop_size(0), 3)
    assert batch.pha.shape == (0, *order.crop_size(0))
    assert batch.examples == ()


def test_a_share_beyond_the_batch_is_refused(source: FolderSource) -> None:
    with pytest.raises(ValueError, match="not within the batch's 4 examples"):
        make_train_batch(source, make_order(source), GEOMETRY, 0, range(2, 5))


def test_validation_is_the_whole_frame_unflipped_and_always_the_same(source: FolderSource) -> None:
    order = make_order(source)
    first = make_valid_batch(source, order, GEOMETRY, 0, range(4))
    last = make_valid_batch(source, order, GEOMETRY, 4, range(2))
    assert (first.step, last.step) == (0, 1)
    assert (first.numbers, last.numbers) == ((0, 1, 2, 3), (4, 5))
    assert [e.pair for e in first.examples + last.examples] == [0, 0, 1, 1, 2, 2]
    assert first.fgr.shape == (4, 64, 64, 3)
    assert not first.train
    assert same(first, make_valid_batch(source, order, GEOMETRY, 0, range(4)))
    for i, example in enumerate(first.examples):
        fgr, _ = source.open_pair(example.pair, valid=True)
        warp = draw_pair_warp(7, example.number, "base", train=False)
        expected = np.zeros_like(first.fgr[i])
        warp_into(expected, fgr.decode(), crop_map(warp, fgr.size, 64, (64, 64)))
        assert np.array_equal(first.fgr[i], expected)


def test_pictures_that_are_shrunk_are_decoded_smaller_and_do_not_alias(tmp_path: Path) -> None:
    """Decoded smaller, the crop is nearer to the antialiased truth, and not shifted against it."""
    slope = np.meshgrid(np.arange(512) / 4, np.arange(512) / 4)
    grain = np.random.Generator(np.random.Philox(0)).integers(-60, 61, (512, 512))
    picture = (64 + (slope[0] + slope[1]) / 2 + grain).astype(np.uint8)
    fine = np.repeat(picture[..., None], 3, axis=2)
    for split in ("train", "valid"):
        write(f"{tmp_path}/d/{split}/fgr/a.jpg", encode(fine, "JPEG", quality=95))
        write(f"{tmp_path}/d/{split}/pha/a.png", encode(picture, "PNG"))
        write(f"{tmp_path}/w/{split}/a.jpg", encode(fine, "JPEG", quality=95))
    source = FolderSource(build_listing(f"{tmp_path}/d", f"{tmp_path}/w"))
    order = make_order(source, crop=Range(64, 64), valid_examples=0)
    on, off = (
        make_train_batch(source, order, Geometry("base", 64, scaled), 0, range(4))
        for scaled in (True, False)
    )
    for i in range(4):
        matrix = crop_map(draw_pair_warp(7, i, "base", train=True), (512, 512), 64, (64, 64))
        fourfold = np.diag([8.0, 8.0, 1.0]) @ matrix
        large = np.zeros((512, 512), np.uint8)
        warp_into(large, picture, fourfold)
        truth = large.reshape(64, 8, 64, 8).mean(axis=(1, 3))
        errors = [np.square(batch.pha[i] - truth).mean() for batch in (on, off)]
        assert errors[0] < errors[1] / 3
        assert np.abs(on.pha[i] - truth).mean() < 12
        assert np.abs(on.fgr[i][..., 1].astype(int) - on.pha[i]).mean() < 4, "aligned"


# Unreadable pictures.


def broken(urls: tuple[str, str], source: FolderSource, pair: int, data: bytes | None) -> str:
    """Overwrite a foreground without changing its size (garbage, or its own first half), or delete it."""
    path = source.open_pair(pair)[0].path
    size = os.path.getsize(path)
    if data is None:
        os.remove(path)
    else:
        write(path, (data + b"\0" * size)[:size])
    return path


GARBAGE = b"this is not an image"


@pytest.mark.parametrize("fault", ["garbage", "half", "deleted"])
def test_an_unreadable_picture_is_replaced_by_another_and_said(
    urls: tuple[str, str], source: FolderSource, fault: str
) -> None:
    order = make_order(source)
    before = whole(source, order)
    bad = before.examples[1]
    path = source.open_pair(bad.pair)[0].path
    half = Path(path).read_bytes()[: os.path.getsize(path) // 2]
    data = {"garbage": GARBAGE, "half": half, "deleted": None}[fault]
    broken(urls, source, bad.pair, data)
    after = whole(source, order)
    assert [(r.number, r.path) for r in after.replaced] == [(bad.number, path)]
    reason = {"garbage": "is not an image", "half": "Premature end", "deleted": "not found"}[fault]
    assert reason in after.replaced[0].reason
    stand_in = after.examples[1]
    assert stand_in.number == bad.number
    assert stand_in.pair != bad.pair
    assert stand_in.background == bad.background
    for i in (0, 2, 3):
        assert after.examples[i] == before.examples[i]
        assert np.array_equal(after.fgr[i], before.fgr[i])
    assert np.array_equal(after.bgr, before.bgr)
    fgr, _ = source.open_pair(stand_in.pair)
    warp = draw_pair_warp(7, bad.number, "base", train=True)
    expected = np.zeros_like(after.fgr[1])
    warp_into(expected, fgr.decode(), crop_map(warp, fgr.size, 64, order.crop_size(0)))
    assert np.array_equal(after.fgr[1], expected), "the stand-in under the example's own warp"
    assert same(after, whole(source, order)), "the same in every run"
    alone = make_train_batch(source, order, GEOMETRY, 0, range(1, 2))
    assert alone.examples == (stand_in,)
    assert np.array_equal(alone.fgr[0], after.fgr[1])


def test_a_broken_alpha_replaces_the_pair_and_a_broken_background_only_itself(
    urls: tuple[str, str], source: FolderSource
) -> None:
    order = make_order(source)
    before = whole(source, order)
    alpha = source.open_pair(before.examples[0].pair)[1].path
    wall = source.open_background(before.examples[2].background).path
    for path in (alpha, wall):
        write(path, (GARBAGE + b"\0" * 10**5)[: os.path.getsize(path)])
    after = whole(source, order)
    assert (before.examples[0].number, alpha) in [(r.number, r.path) for r in after.replaced]
    assert after.examples[0].pair != before.examples[0].pair
    assert after.examples[2].pair == before.examples[2].pair
    assert after.examples[2].background != before.examples[2].background


def test_a_dataset_that_is_gone_is_an_error_that_says_so(
    urls: tuple[str, str], source: FolderSource
) -> None:
    for i in range(source.pairs):
        broken(urls, source, i, None)
    with pytest.raises(
        DataError, match=r"^6 pictures in a row cannot be read, the last: .*jpg: not found"
    ):
        whole(source, make_order(source))


def test_validation_pictures_are_replaced_by_validation_pictures(
    urls: tuple[str, str], source: FolderSource
) -> None:
    path = source.open_pair(1, valid=True)[0].path
    os.remove(path)
    batch = make_valid_batch(source, make_order(source), GEOMETRY, 0, range(4))
    assert [r.number for r in batch.replaced] == [2, 3]
    assert {e.pair for e in batch.examples[2:]} <= {0, 2}


def test_stand_ins_never_repeat_and_reach_everything() -> None:
    words = [0, 2**64 - 1, 12345, 7, 999999, 31337, 42]
    assert sorted(_candidates(2, 5, iter(words))) == [0, 1, 2, 3, 4]
    assert len(set(_candidates(50, 100, iter(words)))) == 8
    assert next(iter(_candidates(50, 100, iter(words)))) == 50
    assert list(_candidates(0, 1, iter(words))) == [0]
    firsts = [list(_candidates(3, 7, iter([word])))[1] for word in range(600)]
    assert [firsts.count(i) for i in range(7)] == [100, 100, 100, 0, 100, 100, 100]


# Reading ahead.


def test_fetching_ahead_changes_nothing_but_the_wait() -> None:
    slow, fast = (MemorySource(100, fetch_ahead=ahead, wait=0.02) for ahead in (0, 4))
    order = make_order(slow, batch_size=8, valid_examples=0)
    whole(fast, order)
    start = time.perf_counter()
    expected = whole(slow, order)
    middle = time.perf_counter()
    ahead = whole(fast, order)
    end = time.perf_counter()
    assert same(expected, ahead)
    assert end - middle < (middle - start) * 0.6


def test_an_error_of_the_storage_ends_the_batch_when_fetching_ahead() -> None:
    class Failing(MemorySource):
        def open_background(self, index: int, valid: bool = False) -> OpenImage:
            raise DataError("cannot read s3://bucket/a.jpg after 6 attempts: slow down")

    source = Failing(100, fetch_ahead=4)
    order = make_order(source, valid_examples=0)
    with pytest.raises(DataError, match="slow down"):
        whole(source, order)


# Mattes that are likely to be something else.


def test_a_batch_names_the_mattes_that_are_likely_something_else(tmp_path: Path) -> None:
    urls = write_dataset(str(tmp_path), pairs=6, backgrounds=5, valid=3)
    for i in (0, 2):
        write(f"{urls[0]}/train/pha/clip0/{i:04}.png", encode(255 - disc(i), "PNG"))
    write(f"{urls[0]}/train/pha/clip1/0003.JPG", encode(disc(3) * 0, "JPEG"))
    source = FolderSource(build_listing(*urls))
    order = make_order(source, batch_size=6, total_examples=60)
    batch = whole(source, order)
    named = {(doubt.kind, doubt.path.removeprefix(f"{urls[0]}/")) for doubt in batch.doubts}
    assert named == {
        ("inverted", "train/pha/clip0/0000.png"),
        ("inverted", "train/pha/clip0/0002.png"),
        ("empty", "train/pha/clip1/0003.JPG"),
    }
    assert (batch.looked, batch.replaced) == (6, ())
    scaled = make_train_batch(
        source, order, dataclasses.replace(GEOMETRY, resolution=32, scaled_decode=True), 0, range(6)
    )
    assert {(d.kind, d.path) for d in scaled.doubts} == {(d.kind, d.path) for d in batch.doubts}


def test_a_premultiplied_foreground_is_seen_beside_its_matte(tmp_path: Path) -> None:
    urls = write_dataset(str(tmp_path), pairs=6, backgrounds=5, valid=3)
    foreground = np.full((64, 96, 3), 200) * disc(0)[..., None] // 255
    path = f"{urls[0]}/train/fgr/clip0/0000.jpg"
    write(path, encode(foreground.astype(np.uint8), "JPEG", quality=98))
    source = FolderSource(build_listing(*urls))
    batch = whole(source, make_order(source, batch_size=6, total_examples=60))
    assert batch.doubts == (Doubt("premultiplied", f"{urls[0]}/train/pha/clip0/0000.png"),)


def test_a_process_looks_at_its_first_mattes_and_later_at_one_in_sixteen(
    source: FolderSource,
) -> None:
    order = make_order(source, total_examples=8 * LOOKED_AT)
    looked = [whole(source, order, step).looked for step in range(LOOKED_AT // 2)]
    assert looked[: LOOKED_AT // 4] == [4] * (LOOKED_AT // 4)
    assert sum(looked[LOOKED_AT // 4 :]) == LOOKED_AT // 16
    assert make_valid_batch(source, order, GEOMETRY, 0, range(2)).looked == 0


# Rows of a table.


def through_arrow(batch: MicroBatch) -> tuple[MicroBatch, pa.Schema]:
    table = pa.table({name: [value] for name, value in batch.to_columns().items()})
    scalars = {name: table.column(name)[0] for name in table.column_names}
    columns = {
        name: value.as_buffer() if pa.types.is_binary(value.type) else value.as_py()
        for name, value in scalars.items()
    }
    return MicroBatch.from_columns(columns), table.schema


def test_a_batch_survives_its_columns(source: FolderSource) -> None:
    batch = whole(source, make_order(source))
    replaced = (Replacement(3, "s3://b/ü.jpg", 'is "odd"'),)
    batch = dataclasses.replace(batch, replaced=replaced, doubts=(Doubt("inverted", "ü.png"),))
    assert batch.looked == 4
    assert same(MicroBatch.from_columns(batch.to_columns()), batch)
    back, schema = through_arrow(batch)
    assert same(back, batch)
    empty = make_train_batch(source, make_order(source), GEOMETRY, 0, range(0))
    assert same(MicroBatch.from_columns(empty.to_columns()), empty)
    back, empty_schema = through_arrow(empty)
    assert same(back, empty)
    assert back.fgr.shape == empty.fgr.shape
    assert schema == empty_schema, "one schema, so that blocks go together"


def test_columns_are_views_and_not_copies() -> None:
    pixels = np.zeros((4, 256, 256, 3), np.uint8)
    examples = tuple(Example(i, i, i) for i in range(4))
    batch = MicroBatch(0, examples, pixels, pixels[..., 0].copy(), pixels, (), True)
    tracemalloc.start()
    try:
        back = MicroBatch.from_columns(batch.to_columns())
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert np.shares_memory(back.fgr, batch.fgr)
    columns = {
        n: bytes(v) if isinstance(v, memoryview) else v for n, v in batch.to_columns().items()
    }
    assert not MicroBatch.from_columns(columns).fgr.flags.writeable
    assert json.loads(columns["replaced"]) == []
