"""References to weights: texts such as `s3://bucket/runs/night@best@ema`.

FILE.pth                                 a weights file (WEIGHT_FILES), any fsspec URL
STORAGE/NAME                             a run: its newest checkpoint that verifies
STORAGE/NAME@1200                        its checkpoint of step 1200
STORAGE/NAME@best                        its checkpoint of the best validation, by the run's own metric
STORAGE/NAME/checkpoints/step-...        this one
...@ema                                  of any of the last four the averaged weights
"""

from __future__ import annotations

from dataclasses import dataclass

from raymat.checkpoint.layout import CHECKPOINTS, split_run_url
from raymat.checkpoint.manifest import CheckpointId
from raymat.errors import WeightsError
from raymat.storage.urls import redact

WEIGHT_FILES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
"""Endings by which a weights file is told from a run's folder."""


@dataclass(frozen=True)
class Request:
    """A parsed reference."""

    url: str
    """The URL of a file, a run or a checkpoint, without what follows an @."""
    is_file: bool = False
    step: int | None = None
    best: bool = False
    ema: bool = False


def parse_reference(what: str) -> Request:
    """Parse a reference, without looking whether there is such a thing.

    Raises:
        WeightsError: what follows an @ means nothing, or has no meaning there.
    """
    if what.endswith(WEIGHT_FILES):
        return Request(what, is_file=True)
    folder, slash, last = what.rstrip("/").rpartition("/")
    base, *asked = last.split("@")
    url = folder + slash + base
    ema = asked[-1:] == ["ema"]
    places = asked[:-1] if ema else asked
    if (places and base.endswith(WEIGHT_FILES)) or (ema and base.endswith(WEIGHT_FILES)):
        raise WeightsError(
            f"{redact(what)}: a weights file holds one set of weights: leave out the @"
        )
    if not places:
        return Request(url if ema else what, ema=ema)
    place = places[0]
    known = place == "best" or (place.isascii() and place.isdigit())
    if len(places) > 1 or not known:
        raise WeightsError(
            f"{redact(what)}: after a run's URL expected @STEP, @best or @ema (last), got @{'@'.join(asked)}"
        )
    if CheckpointId.try_parse(base) is not None and folder.endswith(CHECKPOINTS):
        raise WeightsError(
            f"{redact(what)}: after a checkpoint's URL expected @ema only, got @{place}"
        )
    if place == "best":
        return Request(url, best=True, ema=ema)
    return Request(url, step=int(place), ema=ema)


def pin(what: str, checkpoint: CheckpointId) -> str:
    """Return the reference to this very checkpoint of the run in `what`, whatever is newest or best when it is read."""
    request = parse_reference(what)
    storage, name, _ = split_run_url(request.url)
    return f"{storage.rstrip('/')}/{name}/{CHECKPOINTS}/{checkpoint}{'@ema' if request.ema else ''}"
