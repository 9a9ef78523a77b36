"""Micro-batches: one worker's share of one step, as cropped uint8 pixels."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from raymat.config.sections import Stage
from raymat.data.decode import Pixels
from raymat.data.sample_order import Example


@dataclass(frozen=True)
class Replacement:
    """Record of an unreadable file in example `number`, which another file replaced, chosen by the example's key."""

    number: int
    path: str
    reason: str


@dataclass(frozen=True)
class Doubt:
    """What a matte is likely to be, a key of `matte_statistics.LIKELY`, and its file."""

    kind: str
    path: str


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Share of one worker in a step or a validation batch. n may be 0; h and w are the step's even then.

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
        looked: how many of the mattes were looked at.
        doubts: what they are likely to be, where that is no matte.
    """

    step: int
    examples: tuple[Example, ...]
    fgr: Pixels
    pha: Pixels
    bgr: Pixels
    replaced: tuple[Replacement, ...]
    train: bool
    chunks: tuple[int, ...] = ()
    looked: int = 0
    doubts: tuple[Doubt, ...] = ()

    @property
    def numbers(self) -> tuple[int, ...]:
        """The examples' numbers."""
        return tuple(example.number for example in self.examples)

    def by_chunk(self) -> list[MicroBatch]:
        """Split the batch into chunks that go through the network together; their pixels are views."""
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
        """Return a table row: integers, a boolean, texts and flat buffers, of the same types in every row.

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
            "looked": self.looked,
            "doubts": json.dumps([asdict(d) for d in self.doubts]),
            "fgr": _flat(self.fgr),
            "pha": _flat(self.pha),
            "bgr": _flat(self.bgr),
        }

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> MicroBatch:
        """Make a batch from a row of `to_columns`. Pixels are views, read-only where the buffers are."""
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
            looked=int(columns["looked"]),
            doubts=tuple(Doubt(**d) for d in json.loads(columns["doubts"])),
        )


@dataclass(frozen=True)
class Geometry:
    """Geometry of samples: the stage (it sets how far pairs are shrunk), the frame's side in pixels, and whether
    pictures are decoded at 1/2, 1/4 or 1/8 where the warp shrinks them by more."""

    stage: Stage
    resolution: int
    scaled_decode: bool = True


def _flat(pixels: Pixels) -> memoryview:
    return np.ascontiguousarray(pixels).reshape(-1).data


def _shaped(buffer: Any, shape: tuple[int, ...]) -> Pixels:
    return np.frombuffer(buffer, np.uint8).reshape(shape)
