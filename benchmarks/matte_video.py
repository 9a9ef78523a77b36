"""What matting a video costs, and that no frame is lost: made footage of a moving subject through `raymat matte`'s job.

Makes a video in which a subject walks before a wall and each frame shows its own number, mattes it with a network of the
given backbone (random weights, but for the foreground, which is the source's: so that the numbers can be read from the
output), and prints memory every 50 frames, frames/s, how long the network, decoding and encoding worked, and whether the
output's frames are those of the source, in count, order and time.

    python benchmarks/matte_video.py [--frames 200] [--size 1280x720] [--backbone mobilenetv2] [--stage refine]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from raymat.config.sections import ModelConfig
from raymat.console import columns, size
from raymat.inference.job import MattingJob, MattingRequest
from raymat.inference.matter import Matter
from raymat.model.matting import MattingBase, build

BITS, BLOCK = 12, 24
RATE = 25
EVERY = 50


def wall(width: int, height: int) -> NDArray[np.uint8]:
    """The scene without its subject."""
    coarse = np.random.default_rng(1).integers(60, 200, (height // 40, width // 40, 3), np.uint8)
    large = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(large, np.uint8)


def frames(count: int, empty: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The scene with its subject, frame by frame."""
    height, width = empty.shape[:2]
    for number in range(count):
        picture = empty.copy()
        x = width // 5 + number * width // 2 // count
        cv2.ellipse(picture, (x, height), (width // 9, height // 2), 0, 0, 360, (40, 60, 150), -1)
        cv2.circle(picture, (x, height // 3), height // 8, (220, 170, 140), -1, cv2.LINE_AA)
        for bit in range(BITS):
            picture[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (number >> bit & 1)
        yield picture


def write(path: str, pictures: Iterator[NDArray[np.uint8]]) -> None:
    """Write a video."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "14", "preset": "fast"})
        for number, picture in enumerate(pictures):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read(path: str) -> Iterator[tuple[int, Fraction]]:
    """The number that each frame shows, and its time in seconds."""
    with av.open(path) as container:
        for frame in container.decode(video=0):
            picture = frame.to_ndarray(format="rgb24")
            middles = [picture[BLOCK // 2, BLOCK * bit + BLOCK // 2] for bit in range(BITS)]
            shown = sum((m.mean() > 128) << bit for bit, m in enumerate(middles))
            yield int(shown), frame.pts * frame.time_base


def letting_through(given: argparse.Namespace) -> MattingBase:
    """A network of random weights whose foreground is the source and whose alpha is 1: it costs what any costs."""
    network = build(given.stage, ModelConfig(backbone=given.backbone), 0)
    last = [network.decoder.conv4]
    last += [network.refiner.conv4] if given.stage == "refine" else []
    with torch.no_grad():
        for layer in last:
            assert layer.bias is not None
            layer.weight[:4].zero_()
            layer.bias[:4] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    return network.requires_grad_(False)


def resident() -> int:
    """Bytes of memory that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Make, matte and read back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--stage", default="refine", choices=("base", "refine"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args()
    width, height = map(int, given.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        source, background, output = (f"{folder}/{n}" for n in ("s.mp4", "b.png", "o.mp4"))
        empty = wall(width, height)
        cv2.imwrite(background, cv2.cvtColor(empty, cv2.COLOR_RGB2BGR))
        write(source, frames(given.frames, empty))
        job = MattingJob.open(
            MattingRequest(source=source, background=background, output=output, composite="white")
        )
        precision = "fp16" if given.device == "cuda" else "fp32"
        matter = Matter(letting_through(given), torch.device(given.device), precision)
        rows, done = [("frames", "memory")], 0

        def on_shot(more: int) -> None:
            nonlocal done
            done += more
            if more and (done % EVERY == 0 or done == 1):
                rows.append((str(done), size(resident())))

        report = job.run(matter, on_shot)
        print(columns(rows))
        shares = ", ".join(
            f"{k} {s:.1f} s ({100 * s / report.seconds:.0f}%)" for k, s in report.work.items()
        )
        rate = report.shots / report.seconds
        print(
            f"{report.shots} frames of {width} x {height} in {report.seconds:.1f} s: {rate:.2f} frames/s"
        )
        print(f"of the time, beside each other: {shares}")
        found = [*read(output)]
        expected = [(i, Fraction(i, RATE)) for i in range(given.frames)]
        verdict = "count, order and times exact" if found == expected else "NOT the source's frames"
        print(f"{len(found)} frames in the output: {verdict}")


if __name__ == "__main__":
    main()
