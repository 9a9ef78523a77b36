"""What `raymat check` costs: every picture of a dataset decoded, and the listing of a large one.

    python benchmarks/check_dataset.py [--pairs 10000] [--distinct 40] [--files 200000]

The pictures are HD: foregrounds as JPEG, alphas as PNG, `distinct` of each, which stand under `pairs` names as hard links, so
that the disk holds few of them. Each is read and decoded as often as it is named. The files of the listing are hard links to one
picture; with them a sample of 200 pairs and backgrounds is looked at, as without --all. Seconds are wall-clock time and CPU time of
the command, which runs as a process of its own; memory is the largest that it had.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from data_path import keyed, photo

HD = (1920, 1080)
COMMAND = [sys.executable, "-c", "import sys; from raymat.cli.main import main; sys.exit(main())"]


VALID = 2
"""Distinct pictures of each kind to validate on, none of which is trained on."""


def write_pictures(folder: Path, distinct: int) -> None:
    """Write `distinct` pairs and backgrounds of HD, and those to validate on."""
    for number in range(distinct + VALID):
        rng = np.random.Generator(np.random.Philox(number))
        _, matte = keyed(rng, *HD)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
        for kind in ("fgr", "bgr"):
            cv2.imwrite(f"{folder}/{kind}-{number}.jpg", photo(rng, *HD), quality)
        cv2.imwrite(f"{folder}/pha-{number}.png", matte)


def link_dataset(folder: Path, pictures: Path, distinct: int, pairs: int) -> list[str]:
    """Link the pictures under `pairs` names to train on and a hundredth as many to validate on; return the options."""
    for split, count in (("train", pairs), ("valid", max(1, pairs // 100))):
        kinds, first = (distinct, 0) if split == "train" else (VALID, distinct)
        for below, kind, suffix in (
            ("data/{}/fgr", "fgr", "jpg"),
            ("data/{}/pha", "pha", "png"),
            ("walls/{}", "bgr", "jpg"),
        ):
            place = folder / below.format(split)
            place.mkdir(parents=True)
            for n in range(count):
                if n % 1000 == 0:
                    (place / f"clip{n // 1000:03}").mkdir()
                source = pictures / f"{kind}-{first + n % kinds}.{suffix}"
                os.link(source, place / f"clip{n // 1000:03}/{n:06}.{suffix}")
    return ["--dataset", f"{folder}/data", "--backgrounds", f"{folder}/walls"]


def measure(what: str, *words: str, pairs: int = 0) -> None:
    """Run `raymat check`, and print its wall and CPU seconds, the most memory that it had, and its result."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [*COMMAND, "check", *words],
            stdout=output,
            stderr=output,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        _, status, used = os.wait4(process.pid, 0)
        output.seek(0)
        lines = output.read().splitlines()
    seconds, cpu = time.monotonic() - began, used.ru_utime + used.ru_stime
    if os.waitstatus_to_exitcode(status) not in (0, 1) or not lines[-1].startswith("result: "):
        raise SystemExit("\n".join(lines))
    rate = (
        f", {pairs / seconds:.1f} pairs/s, {1000 * cpu / pairs:.1f} CPU ms a pair" if pairs else ""
    )
    memory = used.ru_maxrss / 1000
    print(
        f"{what}: {seconds:.1f} s, {cpu:.1f} CPU s{rate}, {memory:.0f} MB; {lines[-1]}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--distinct", type=int, default=40)
    parser.add_argument("--files", type=int, default=200_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder, arguments.distinct)
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        print(f"{len(os.sched_getaffinity(0))} cores, load {load}")
        measure("no pictures (the command's imports)", "--synthetic", "3")
        words = link_dataset(folder / "many", folder, arguments.distinct, arguments.files // 3)
        measure(f"listing of {arguments.files:,} files", *words, "--sample", "1")
        measure("the same and a sample of 200", *words)
        pairs = arguments.pairs
        words = link_dataset(folder / "all", folder, arguments.distinct, pairs)
        measure(f"all of {pairs:,} pairs with backgrounds", *words, "--all", pairs=pairs)


if __name__ == "__main__":
    main()
