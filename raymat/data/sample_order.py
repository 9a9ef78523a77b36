"""Sample order: which examples each step trains on, as a pure function of the seed that no crash can lose.

Example number e is at place e % N of pass e // N over the N pairs. Every pass has a permutation of
its own, every example its own background and its own keys for everything random
(`raymat.data.rng`), every step its own crop size. So a run can start at any example at the cost
of one permutation, and nothing here knows how many workers there are.

Where the dataset has grown (`raymat.data.lineage`), the passes before have fewer pairs: old pairs keep
their indices, the pass that was under way is finished without the new ones, and passes are numbered on.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymat.config.values import Range
from raymat.data.lineage import NO_LINEAGE, Lineage, Steps
from raymat.data.rng import Draws, Stream
from raymat.distributed.world import World
from raymat.errors import CheckpointError

CROP_MULTIPLE = 4  # the refiner works in patches of 4 x 4 pixels


@dataclass(frozen=True)
class Example:
    """Training or validation example: its number in the run, and the rows of the dataset that it is made of."""

    number: int
    pair: int
    background: int


@dataclass(frozen=True)
class Cursor:
    """Position of a run: the next example that no completed step has used. Independent of the world size."""

    VERSION = 1

    next_example: int = 0

    def state_dict(self) -> dict[str, int]:
        """Return the cursor as JSON-able values."""
        return {"version": self.VERSION, "next_example": self.next_example}

    @classmethod
    def load_state_dict(cls, state: Mapping[str, Any]) -> Cursor:
        """Make a cursor from what `state_dict` returned.

        Raises:
            CheckpointError: a version that this raymat does not know.
        """
        if state.get("version") != cls.VERSION:
            raise CheckpointError(
                f"expected a cursor of version {cls.VERSION}, got {state.get('version')!r}: "
                "resume with the raymat that wrote the checkpoint"
            )
        return cls(int(state["next_example"]))


@dataclass(frozen=True)
class SampleOrder:
    """Order of all examples of a run; tiny and picklable.

    Args:
        seed: the run's, 0..2**63-1.
        pairs, backgrounds: how many the dataset has to train on.
        batch_size: global batch B: step k (from 0) uses examples k*B to (k+1)*B-1, cut at
            `total_examples`. A run that had ended in a smaller batch goes on from there.
        crop: smallest and largest side of a step's crop in pixels, multiples of 4, the largest
            excluded unless equal.
        total_examples: where the run ends; only its last step may be smaller.
        valid_pairs, valid_backgrounds, valid_examples: the validation set, and how many examples
            are made of it.
        lineage: where the run had ended before, and which smaller datasets it had.
        accumulate: chunks of a step, each of the next batch_size / accumulate of its examples.
    """

    seed: int
    pairs: int
    backgrounds: int
    batch_size: int
    crop: Range
    total_examples: int
    valid_pairs: int = 0
    valid_backgrounds: int = 0
    valid_examples: int = 0
    lineage: Lineage = NO_LINEAGE
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(f"{self.accumulate} chunks of a batch of {self.batch_size}")
        for name in ("pairs", "backgrounds", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.crop.low % CROP_MULTIPLE or self.crop.high % CROP_MULTIPLE:
            raise ValueError(f"crop must be multiples of {CROP_MULTIPLE}, got {self.crop}")
        if self.valid_examples and not (self.valid_pairs and self.valid_backgrounds):
            raise ValueError("validation examples need validation pairs and backgrounds")

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        return self._steps.count(self.total_examples)

    @property
    def first_pairs(self) -> int:
        """Number of pairs that the run was begun with."""
        return self.lineage.first_pairs(self.pairs)

    @property
    def _steps(self) -> Steps:
        return Steps(self.batch_size, self.lineage.ends)

    def step_numbers(self, step: int) -> range:
        """Return the example numbers of step `step` (from 0). Raises IndexError for a step outside the run."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} is not in a run of {self.total_steps} steps")
        first, end = (self._steps.examples(done) for done in (step, step + 1))
        return range(first, min(end, self.total_examples))

    def chunks(self, step: int) -> list[range]:
        """Return the chunks of step `step`, none empty: positions among its examples that go through the network together."""
        count, size = len(self.step_numbers(step)), self.batch_size // self.accumulate
        return [range(first, min(first + size, count)) for first in range(0, count, size)]

    def shares(self, step: int, world: World) -> list[range]:
        """Return this worker's share of each chunk of step `step`."""
        found = []
        for positions in self.chunks(step):
            share = world.share(len(positions))
            found.append(positions[share.start : share.stop])
        return found

    def examples(self, numbers: Iterable[int]) -> list[Example]:
        """Return the examples with these numbers, which may lie beyond the run's end, in their order."""
        return [self._example(number) for number in numbers]

    def _example(self, number: int) -> Example:
        start, epochs, pairs, backgrounds = 0, 0, self.pairs, self.backgrounds
        for span in self.lineage.spans:
            if number < span.end:
                pairs, backgrounds = span.pairs, span.backgrounds
                break
            epochs += (span.end - start) // span.pairs
            start = span.end
        epoch, place = divmod(number - start, pairs)
        pair = int(_permutation(self.seed, epochs + epoch, pairs)[place])
        draws = Draws(self.seed, Stream.BACKGROUND, number)
        return Example(number, pair, draws.integer(0, backgrounds))

    def counts(self, number: int) -> tuple[int, int]:
        """Return the numbers of pairs and backgrounds that example `number` is chosen from."""
        for span in self.lineage.spans:
            if number < span.end:
                return span.pairs, span.backgrounds
        return self.pairs, self.backgrounds

    def crop_size(self, step: int) -> tuple[int, int]:
        """Return height and width in pixels of step `step`'s crop, each drawn by itself."""
        draws = Draws(self.seed, Stream.CROP, step)
        sizes = range(self.crop.low, max(self.crop.high, self.crop.low + 1), CROP_MULTIPLE)
        height = sizes[draws.integer(0, len(sizes))]
        return height, sizes[draws.integer(0, len(sizes))]

    def valid_examples_list(self) -> list[Example]:
        """Return the validation examples: pairs spread evenly over the validation set, always the same backgrounds."""
        return list(_valid_examples(self))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, pairs: int) -> NDArray[np.int64]:
    """Return the order of one pass over the pairs, cached for a few passes, since batches cross their borders."""
    order = Draws(seed, Stream.ORDER, epoch).permutation(pairs)
    order.setflags(write=False)
    return order


@lru_cache(maxsize=4)
def _valid_examples(order: SampleOrder) -> tuple[Example, ...]:
    count = order.valid_examples
    return tuple(
        Example(
            number=number,
            pair=number * order.valid_pairs // count,
            background=Draws(order.seed, Stream.VALID_BACKGROUND, number).integer(
                0, order.valid_backgrounds
            ),
        )
        for number in range(count)
    )


def digest_lanes(examples: Iterable[Example]) -> NDArray[np.float64]:
    """Return a digest (3,) of a set of examples that can be summed over workers: order-free and exact in float64.

    Each example's 72-bit BLAKE2b hash is cut into three numbers below 2**24, which are added up;
    sums stay exact up to 2**29 examples, so that the sum of the shares' digests is the step's
    digest to the bit.
    """
    lanes = np.zeros(3, dtype=np.float64)
    for example in examples:
        packed = struct.pack("<QQQ", example.number, example.pair, example.background)
        hashed = hashlib.blake2b(packed, digest_size=9).digest()
        lanes += [int.from_bytes(hashed[i : i + 3], "big") for i in (0, 3, 6)]
    return lanes


def digest_text(lanes: Iterable[float]) -> str:
    """Return the 18 hexadecimal characters of (summed) digest lanes: six for each, modulo 2**24."""
    return "".join(f"{int(lane) % 2**24:06x}" for lane in lanes)
