"""The newest pictures that a run logged, small enough for a page."""

from __future__ import annotations

import io
from collections.abc import Iterator

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from PIL import Image, UnidentifiedImageError

from raymat.storage.store import Store
from raymat.train.observability.merging.curves_merge import decode_events, list_event_files

MOST_FILES, MOST_BYTES = 24, 32 * 2**20
"""That are looked through, the newest first."""
WIDTH = 640
"""Of a picture on the page, in pixels, at most."""
MOST_PIXELS = 2**25
"""Of a picture that is decoded."""


def newest_pictures(store: Store) -> tuple[int, dict[str, bytes]]:
    """Return the step and the pictures of the newest step that has some, as JPEG by name; (0, {}) without any.

    Raises:
        StorageError: the storage cannot be read.
    """
    left = MOST_BYTES
    for file in list_event_files(store)[: -MOST_FILES - 1 : -1]:
        left -= file.size
        if left < 0:
            break
        data = store.try_read(file.path)
        found = sorted(_images(data or b""), key=lambda item: item[0])
        if found:
            step = found[-1][0]
            small = {name: _small(png) for at, name, png in found if at == step}
            return step, {name: jpeg for name, jpeg in small.items() if jpeg is not None}
    return 0, {}


def _images(data: bytes) -> Iterator[tuple[int, str, bytes]]:
    try:
        for _, event in decode_events(data):
            for value in event.summary.value:
                if value.HasField("image"):
                    yield event.step, value.tag, value.image.encoded_image_string
    except DecodeError:  # what comes after it cannot be found
        return


def _small(encoded: bytes) -> bytes | None:
    """Return a picture as a small JPEG; None if it cannot be decoded."""
    try:
        picture: Image.Image = Image.open(io.BytesIO(encoded))
        if picture.width * picture.height > MOST_PIXELS:
            return None
        picture = picture.convert("RGB")
        picture.thumbnail((WIDTH, 4 * WIDTH))
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=82)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError):
        return None
    return out.getvalue()
