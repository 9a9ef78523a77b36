"""Micro-batches: one worker's share of one step, as uint8 pixels that are already cropped.

A picture that cannot be read is replaced by another one that its example's key names, and the batch
says so: the same again in every run that reads the same files.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from raymat.config.sections import Stage
from raymat.data.decode import OpenImage, Pixels, Scale, use_one_thread
from raymat.data.image_folder import UnreadableImage
from raymat.data.rng import Draws, Stream
from raymat.data.sample_order import Example, SampleOrder
from raymat.data.source import Source
from raymat.data.warp import (
    Warp,
    crop_map,
    decode_scale,
    draw_background_warp,
    draw_pair_warp,
    warp_into,
)
from raymat.errors import DataError

MAX_TRIES = (
    8  # unreadable pictures in a row: then it is not a picture that is broken but the dataset
)
VALID_NUMBERS = (
    2**63
)  # validation examples' replacements are drawn from numbers that no training example has

Opener: TypeAlias = Callable[[], tuple[OpenImage, ...]]


@dataclass(frozen=True)
class Replacement:
    """A file that could not be read, in the example with this number: another one, named by the example's key, stood in."""

    number: int
    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """One worker's share of one step, or of one validation batch. n may be 0; h and w are then still the step's.

    Attributes:
        step: step index from 0; for validation, the index of the validation batch.
        examples: what was really used, replacements included; the numbers are always the step's.
        fgr: uint8 (n, h, w, 3), foreground, RGB.
        pha: uint8 (n, h, w), alpha.
        bgr: uint8 (n, h, w, 3), background, RGB.
        replaced: the files that could not be read.
        train: False for validation.
        chunks: how many of the examples go through the network together, in their order; as many chunks for all workers.
            Empty: all at once.
    """

    step: int
    examples: tuple[Example, ...]
    fgr: Pixels
    pha: Pixels
    bgr: Pixels
    replaced: tuple[Replacement, ...]
    train: bool
    chunks: tuple[int, ...] = ()

    @property
    def numbers(self) -> tuple[int, ...]:
        """The examples' numbers."""
        return tuple(example.number for example in self.examples)

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return self.fgr.nbytes + self.pha.nbytes + self.bgr.nbytes

    def by_chunk(self) -> list[MicroBatch]:
        """What goes through the network together, as batches of one chunk each; their pixels are views."""
        if not self.chunks:
            return [self]
        ends = list(itertools.accumulate(self.chunks))
        cuts = [slice(end - count, end) for end, count in zip(ends, self.chunks, strict=True)]
        return [
            replace(
                self, examples=self.examples[cut], fgr=self.fgr[cut], pha=self.pha[cut],
                bgr=self.bgr[cut], chunks=(),
            )
            for cut in cuts
        ]  # fmt: skip

    def to_columns(self) -> dict[str, Any]:
        """One row of a table: integers, a boolean, a text and flat buffers, of the same types in every row.

        The pixels are not copied: the buffers are views, valid as long as this batch.
        """
        numbers = [(e.number, e.pair, e.background) for e in self.examples]
        return {
            "step": self.step,
            "train": self.train,
            "height": self.pha.shape[1],
            "width": self.pha.shape[2],
            "examples": np.array(numbers, dtype="<i8").tobytes(),
            "replaced": json.dumps([asdict(r) for r in self.replaced]),
            "chunks": json.dumps(self.chunks),
            "fgr": _flat(self.fgr),
            "pha": _flat(self.pha),
            "bgr": _flat(self.bgr),
        }

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> MicroBatch:
        """The inverse of `to_columns`. Pixels are read-only views of the buffers where those are read-only."""
        rows = np.frombuffer(columns["examples"], dtype="<i8").reshape(-1, 3).tolist()
        shape = (len(rows), int(columns["height"]), int(columns["width"]))
        return cls(
            step=int(columns["step"]),
            examples=tuple(Example(*row) for row in rows),
            fgr=_shaped(columns["fgr"], (*shape, 3)),
            pha=_shaped(columns["pha"], shape),
            bgr=_shaped(columns["bgr"], (*shape, 3)),
            replaced=tuple(Replacement(**r) for r in json.loads(columns["replaced"])),
            train=bool(columns["train"]),
            chunks=tuple(json.loads(columns["chunks"])),
        )


@dataclass(frozen=True)
class Geometry:
    """How samples are cut: the stage (it sets how far pairs are shrunk), the frame's side in pixels, and whether
    pictures are decoded at 1/2, 1/4 or 1/8 where the warp shrinks them by more."""

    stage: Stage
    resolution: int
    scaled_decode: bool = True


def make_train_batch(
    source: Source,
    order: SampleOrder,
    geometry: Geometry,
    step: int,
    share: range | Sequence[range],
) -> MicroBatch:
    """A worker's share of step `step`: positions among the step's examples, chunk by chunk (`SampleOrder.shares`).

    Raises:
        DataError: the storage does not answer, or too many pictures in a row cannot be read.
    """
    shares = [share] if isinstance(share, range) else share
    numbers = [n for positions in shares for n in _cut(order.step_numbers(step), positions)]
    maker = _Maker(source, order, geometry, order.crop_size(step), train=True)
    batch = maker.make(step, order.examples(numbers))
    chunks = tuple(len(positions) for positions in shares)
    return replace(batch, chunks=chunks) if len(chunks) > 1 else batch


def make_valid_batch(
    source: Source, order: SampleOrder, geometry: Geometry, first: int, share: range
) -> MicroBatch:
    """A worker's share of the validation batch that begins with validation example `first`.

    Validation examples go in batches of the order's batch size, and are the whole frame.

    Raises:
        DataError: as `make_train_batch`.
    """
    examples = order.valid_examples_list()[first : first + order.batch_size]
    side = geometry.resolution
    maker = _Maker(source, order, geometry, (side, side), train=False)
    positions = _cut(range(len(examples)), share)
    return maker.make(first // order.batch_size, [examples[i] for i in positions])


def _cut(numbers: range, share: range) -> range:
    if len(share) and not 0 <= share.start < share.stop <= len(numbers):
        raise ValueError(f"share {share} is not within the batch's {len(numbers)} examples")
    return numbers[share.start : share.stop]


@dataclass(frozen=True)
class _Layer:
    """Pictures that are opened and warped together: foreground and alpha, or the background."""

    count: Callable[[int], int]
    """How many there are to choose from, by example number."""
    open: Callable[[int], tuple[OpenImage, ...]]
    """By index."""
    draw: Callable[[int], Warp]
    """By example number."""
    outs: tuple[Pixels, ...]
    """Where they go: (n, h, w, 3) or (n, h, w) for each picture."""


class _Maker:
    """Makes one micro-batch."""

    def __init__(
        self,
        source: Source,
        order: SampleOrder,
        geometry: Geometry,
        crop: tuple[int, int],
        train: bool,
    ) -> None:
        self._source = source
        self._order = order
        self._geometry = geometry
        self._crop = crop
        self._train = train
        self._replaced: list[Replacement] = []

    def make(self, step: int, examples: Sequence[Example]) -> MicroBatch:
        use_one_thread()
        shape = (len(examples), *self._crop)
        fgr, bgr = (np.empty((*shape, 3), np.uint8) for _ in range(2))
        pha = np.empty(shape, np.uint8)
        layers = (self._pairs((fgr, pha)), self._backgrounds((bgr,)))
        with closing(self._openers(layers, examples)) as openers:
            used = tuple(
                Example(example.number, *self._fill_slot(slot, example, layers, first))
                for slot, (example, first) in enumerate(zip(examples, openers, strict=True))
            )
        return MicroBatch(step, used, fgr, pha, bgr, tuple(self._replaced), self._train)

    def _pairs(self, outs: tuple[Pixels, ...]) -> _Layer:
        source, seed, train = self._source, self._order.seed, self._train
        stage = self._geometry.stage
        return _Layer(
            count=lambda n: self._order.counts(n)[0] if train else source.valid_pairs,
            open=lambda index: source.open_pair(index, valid=not train),
            draw=lambda number: draw_pair_warp(seed, number, stage, train),
            outs=outs,
        )

    def _backgrounds(self, outs: tuple[Pixels, ...]) -> _Layer:
        source, seed, train = self._source, self._order.seed, self._train
        return _Layer(
            count=lambda n: self._order.counts(n)[1] if train else source.valid_backgrounds,
            open=lambda index: (source.open_background(index, valid=not train),),
            draw=lambda number: draw_background_warp(seed, number, train),
            outs=outs,
        )

    def _openers(
        self, layers: tuple[_Layer, ...], examples: Sequence[Example]
    ) -> Generator[tuple[Opener, ...], None, None]:
        """For each example what opens its pair and its background: ahead in threads where that is worth it."""
        calls = [
            [partial(layer.open, index) for layer, index in zip(layers, indices, strict=True)]
            for indices in ((example.pair, example.background) for example in examples)
        ]
        ahead = self._source.fetch_ahead
        if not ahead:
            yield from map(tuple, calls)
            return
        pool = ThreadPoolExecutor(ahead * len(layers))
        try:
            pending: deque[tuple[Opener, ...]] = deque()
            for call in calls:
                pending.append(tuple(pool.submit(opener).result for opener in call))
                if len(pending) > ahead:
                    yield pending.popleft()
            yield from pending
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _fill_slot(
        self, slot: int, example: Example, layers: tuple[_Layer, ...], first: tuple[Opener, ...]
    ) -> Iterator[int]:
        """Fill place `slot` of the batch; gives the indices that were used."""
        wanted = (example.pair, example.background)
        for lane, (layer, index, opener) in enumerate(zip(layers, wanted, first, strict=True)):
            words = self._replacement_words(example, lane)
            candidates = _candidates(index, layer.count(example.number), words)
            yield self._fill(slot, example.number, layer, candidates, opener)

    def _fill(
        self, slot: int, number: int, layer: _Layer, candidates: Iterator[int], first: Opener
    ) -> int:
        """Fill in the first candidate that can be read; says which it was."""
        for tries, candidate in enumerate(candidates):
            try:
                self._warp(slot, number, layer, layer.open(candidate) if tries else first())
                return candidate
            except UnreadableImage as error:
                self._replaced.append(Replacement(number, error.path, error.reason))
        failed = self._replaced[-1]
        raise DataError(
            f"{tries + 1} pictures in a row cannot be read, the last: {failed.path}: "
            f"{failed.reason}; is the dataset still there?"
        )

    def _warp(self, slot: int, number: int, layer: _Layer, images: tuple[OpenImage, ...]) -> None:
        geometry = self._geometry
        warp = layer.draw(number)
        matrix = crop_map(warp, images[0].size, geometry.resolution, self._crop)
        scale: Scale = decode_scale(matrix) if geometry.scaled_decode else 1
        for image, out in zip(images, layer.outs, strict=True):
            warp_into(out[slot], image.decode(scale), matrix, scale)

    def _replacement_words(self, example: Example, lane: int) -> Iterator[int]:
        """Random words that choose stand-ins: pair and background have their own, whatever fails."""
        number = example.number if self._train else VALID_NUMBERS + example.number
        words = Draws(self._order.seed, Stream.REPLACEMENT, number).words(2 * (MAX_TRIES - 1))
        yield from words.reshape(2, -1)[lane].tolist()


def _candidates(first: int, count: int, words: Iterator[int]) -> Iterator[int]:
    """`first`, then others out of `count` chosen by `words`, none twice."""
    yield first
    tried = [first]
    for word in itertools.islice(words, count - 1):
        pick = word % (count - len(tried))
        for index in sorted(tried):
            pick += pick >= index
        tried.append(pick)
        yield pick


def _flat(pixels: Pixels) -> memoryview:
    return np.ascontiguousarray(pixels).reshape(-1).data


def _shaped(buffer: Any, shape: tuple[int, ...]) -> Pixels:
    return np.frombuffer(buffer, np.uint8).reshape(shape)
