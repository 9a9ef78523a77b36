"""Making micro-batches: open, decode, warp and crop the pictures of a step's examples.

A picture that cannot be read is replaced by another one, chosen by its example's key, and the batch says so: every run
that reads the same files replaces it by the same one.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from raymat.data.batch import Doubt, Geometry, MicroBatch, Replacement
from raymat.data.dataset.image_folder import UnreadableImage
from raymat.data.dataset.source import Source
from raymat.data.decode import OpenImage, Pixels, Scale, use_one_thread
from raymat.data.matte_statistics import judge
from raymat.data.rng import Draws, Stream
from raymat.data.sample_order import Example, SampleOrder
from raymat.data.warp import (
    Warp,
    crop_map,
    decode_scale,
    draw_background_warp,
    draw_pair_warp,
    warp_layers_into,
)
from raymat.errors import DataError

MAX_TRIES = 8
"""Unreadable pictures in a row after which the dataset, not a picture, is taken to be broken."""

VALID_NUMBERS = 2**63
"""Offset of validation examples in the draws of replacements: no training example has such a number."""

Opener: TypeAlias = Callable[[], tuple[OpenImage, ...]]


def make_train_batch(
    source: Source,
    order: SampleOrder,
    geometry: Geometry,
    step: int,
    share: range | Sequence[range],
) -> MicroBatch:
    """Make a worker's share of step `step`: positions among the step's examples, chunk by chunk (`SampleOrder.shares`).

    Raises:
        DataError: the storage does not answer, or too many pictures in a row cannot be read.
    """
    shares = [share] if isinstance(share, range) else share
    numbers = [n for positions in shares for n in _cut(order.step_numbers(step), positions)]
    maker = _BatchMaker(source, order, geometry, order.crop_size(step), train=True)
    batch = maker.make(step, order.examples(numbers))
    chunks = tuple(len(positions) for positions in shares)
    return replace(batch, chunks=chunks) if len(chunks) > 1 else batch


def make_valid_batch(
    source: Source, order: SampleOrder, geometry: Geometry, first: int, share: range
) -> MicroBatch:
    """Make a worker's share of the validation batch that begins with validation example `first`.

    Validation examples go in batches of the order's batch size, and are the whole frame.

    Raises:
        DataError: as `make_train_batch`.
    """
    examples = order.valid_examples_list()[first : first + order.batch_size]
    side = geometry.resolution
    maker = _BatchMaker(source, order, geometry, (side, side), train=False)
    positions = _cut(range(len(examples)), share)
    return maker.make(first // order.batch_size, [examples[i] for i in positions])


def _cut(numbers: range, share: range) -> range:
    if len(share) and not 0 <= share.start < share.stop <= len(numbers):
        raise ValueError(f"share {share} is not within the batch's {len(numbers)} examples")
    return numbers[share.start : share.stop]


@dataclass(frozen=True)
class _Layer:
    """Layer of pictures that are opened and warped together: foreground and alpha, or the background."""

    count: Callable[[int], int]
    """Number of pictures to choose from, by example number."""
    open: Callable[[int], tuple[OpenImage, ...]]
    """By index."""
    draw: Callable[[int], Warp]
    """By example number."""
    outs: tuple[Pixels, ...]
    """Output for each picture: (n, h, w, 3) or (n, h, w)."""


class _BatchMaker:
    """Maker of one micro-batch."""

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
        self._looked = 0
        self._doubts: list[Doubt] = []

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
        batch = MicroBatch(step, used, fgr, pha, bgr, tuple(self._replaced), self._train)
        return replace(batch, looked=self._looked, doubts=tuple(self._doubts))

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
        """Yield, for each example, functions that open its pair and its background; threads fetch ahead where it pays."""
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
        """Fill place `slot` of the batch; yield the indices that were used."""
        wanted = (example.pair, example.background)
        for lane, (layer, index, opener) in enumerate(zip(layers, wanted, first, strict=True)):
            words = self._replacement_words(example, lane)
            candidates = _candidates(index, layer.count(example.number), words)
            yield self._fill(slot, example.number, layer, candidates, opener)

    def _fill(
        self, slot: int, number: int, layer: _Layer, candidates: Iterator[int], first: Opener
    ) -> int:
        """Fill in the first candidate that can be read; return which it was."""
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
        decoded = [image.decode(scale, padded=True) for image in images]
        warp_layers_into([out[slot] for out in layer.outs], decoded, matrix, scale)
        self._judge(images[-1], decoded)

    def _judge(self, matte: OpenImage, pair: Sequence[Pixels]) -> None:
        """Note what a matte is likely to be, by its statistics and its foreground, if it was opened for them."""
        found = matte.statistics
        if found is not None:
            self._looked += 1
            fgr, pha = pair
            kinds = judge(found.beside(fgr[..., :3], pha))
            self._doubts += [Doubt(kind, matte.path) for kind in kinds]

    def _replacement_words(self, example: Example, lane: int) -> Iterator[int]:
        """Yield random words that choose replacements; pair and background have separate ones."""
        number = example.number if self._train else VALID_NUMBERS + example.number
        words = Draws(self._order.seed, Stream.REPLACEMENT, number).words(2 * (MAX_TRIES - 1))
        yield from words.reshape(2, -1)[lane].tolist()


def _candidates(first: int, count: int, words: Iterator[int]) -> Iterator[int]:
    """Yield `first`, then other indices below `count` chosen by `words`, none twice."""
    yield first
    tried = [first]
    for word in itertools.islice(words, count - 1):
        pick = word % (count - len(tried))
        for index in sorted(tried):
            pick += pick >= index
        tried.append(pick)
        yield pick
