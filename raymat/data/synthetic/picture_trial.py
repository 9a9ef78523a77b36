"""A small fixed treatment of pictures, whose digest tells whether two processes make the same pixels of the same files."""

from __future__ import annotations

import functools
import hashlib

import cv2
import numpy as np
import simplejpeg

from raymat.data.decode import EncodedImage, use_one_thread
from raymat.data.synthetic.pictures import synthetic_background
from raymat.data.warp import crop_map, draw_pair_warp, warp_into


@functools.cache
def picture_trial() -> str:
    """Decode, shrink, warp and draw pictures, in some hundredths of a second; return the digest of the results.

    The picture is noise: one pixel in 10,000 of a warp depends on the processor.
    """
    use_one_thread()
    numbers = np.arange(200 * 300 * 3, dtype=np.int64) * 2_654_435_761 % 2**32
    picture = (numbers >> 24).astype(np.uint8).reshape(200, 300, 3)
    jpeg = simplejpeg.encode_jpeg(picture, 90)
    png = cv2.imencode(".png", picture)[1].tobytes()
    found = [EncodedImage(jpeg, "trial").decode(scale) for scale in (1, 2)]
    found.append(EncodedImage(png, "trial").decode(2))
    for number in range(8):
        out = np.empty((96, 96, 3), np.uint8)
        warp = draw_pair_warp(0, number, "base", True)
        warp_into(out, picture, crop_map(warp, (300, 200), 128, (96, 96)))
        found.append(out)
    found.append(synthetic_background(0, 1, 96))
    digest = hashlib.sha256()
    for pixels in found:
        digest.update(pixels.tobytes())
    return digest.hexdigest()[:16]
