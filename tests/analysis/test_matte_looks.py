"""What a check says of a matte takes account of how it is stored."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from raymat.analysis.preflight.matte_looks import MatteTally, looks_of
from raymat.data.decode import EncodedImage
from tests.support.datakit import disc, encode, photo


def test_few_bits_in_a_deep_file_are_told_from_a_faint_matte() -> None:
    foreground = EncodedImage(encode(photo(1), "JPEG"), "fgr/a.jpg")
    few = (disc(1).astype(int) * 3000 // 255).astype(np.uint16)
    deep = cv2.imencode(".png", few)[1].tobytes()
    assert looks_of(foreground, EncodedImage(deep, "pha/a.png", grey=True)) == ("shallow",)
    faint = encode((few >> 8).astype(np.uint8), "PNG")
    assert looks_of(foreground, EncodedImage(faint, "pha/a.png", grey=True)) == ("faint",)


@pytest.mark.parametrize(
    ("colours", "looks"),
    [("black", ("bare",)), ("white", ("bare",)), ("photograph", ()), ("cut out", ())],
)
def test_a_foreground_on_one_colour_is_told_from_a_picture_and_from_a_cut_out(
    colours: str, looks: tuple[str, ...]
) -> None:
    matte, picture = disc(5, 192, 128), photo(3, 192, 128)
    shown = matte[..., None] > 0
    made = {
        "black": np.where(shown, picture, 0),
        "white": np.where(shown, picture, 255),
        "photograph": picture,
        "cut out": np.dstack([np.where(shown, picture, 0), matte]),
    }[colours]
    foreground = EncodedImage(encode(made.astype(np.uint8), "PNG"), "fgr/a.png", cut_out=True)
    found = looks_of(foreground, EncodedImage(encode(matte, "PNG"), "pha/a.png", grey=True))
    assert found == looks


def test_foregrounds_on_one_colour_are_a_note_and_say_what_to_do() -> None:
    tally = MatteTally()
    tally.add(("bare",), "pha/a.png")
    (finding,) = tally.findings()
    assert finding.severity == "note"
    assert finding.what == (
        "1 of 1 mattes have foregrounds of one colour where they are transparent, which mixes into their edges"
    )
    assert "RGBA" in finding.advice
