"""What a check says of a matte takes account of how it is stored."""

from __future__ import annotations

import cv2
import numpy as np

from raymat.analysis.preflight.matte_looks import looks_of
from raymat.data.decode import EncodedImage
from tests.support.datakit import disc, encode, photo


def test_few_bits_in_a_deep_file_are_told_from_a_faint_matte() -> None:
    foreground = EncodedImage(encode(photo(1), "JPEG"), "fgr/a.jpg")
    few = (disc(1).astype(int) * 3000 // 255).astype(np.uint16)
    deep = cv2.imencode(".png", few)[1].tobytes()
    assert looks_of(foreground, EncodedImage(deep, "pha/a.png", grey=True)) == ("shallow",)
    faint = encode((few >> 8).astype(np.uint8), "PNG")
    assert looks_of(foreground, EncodedImage(faint, "pha/a.png", grey=True)) == ("faint",)
