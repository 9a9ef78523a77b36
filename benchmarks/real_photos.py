"""What training on a handful of real photographs gives: cut out, trained, measured, exported, matted, and one picture of it.

    pip install scikit-image scikit-learn pymatting    # the first two for the photographs that they ship
    python benchmarks/real_photos.py [-o photos] [--steps 800] [--refine-steps 120]

Cuts five subjects out of photographs (a polygon by hand, GrabCut, and PyMatting's closed-form alpha and colours along the
edge) and runs raymat's own commands on them, as a user would: `check`, `base`, `refine`, `evaluate`, `export` and `matte`.
Four subjects are trained on. The fifth is only measured and matted, before backgrounds that training never saw, in footage
as a camera would take it: the empty scene is another exposure and moved by a pixel. Writes OUT/photographs.png, a row for
each pair of subject and background: source, empty scene, true alpha, the network's alpha, and the subject before green.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pymatting import estimate_alpha_cf, estimate_foreground_ml

Points = list[tuple[int, int]]
Picture = NDArray[np.uint8]


class Subject(NamedTuple):
    """A photograph and its subject's outline, roughly."""

    package: str
    path: str
    outline: Points


ASTRONAUT = [
    (160, 70), (185, 20), (225, 8), (275, 20), (302, 75), (298, 135), (264, 172), (302, 222), (340, 218), (372, 280),
    (392, 350), (430, 340), (475, 375), (499, 425), (492, 511), (16, 511), (22, 440), (70, 312), (104, 250), (130, 222),
    (188, 172), (158, 125),
]  # fmt: skip
COFFEE = [
    (74, 205), (105, 135), (182, 92), (184, 34), (225, 10), (289, 4), (360, 12), (400, 36), (404, 66), (422, 66),
    (418, 104), (464, 152), (480, 214), (456, 290), (380, 354), (280, 386), (178, 362), (102, 298),
]  # fmt: skip
ROCKET = [(302, 112), (318, 96), (334, 112), (342, 410), (286, 420), (290, 380), (298, 300)]
FLOWER = [
    (165, 183), (190, 133), (240, 98), (309, 80), (370, 92), (416, 120), (448, 175), (452, 232), (416, 340), (312, 368),
    (240, 355), (190, 318), (162, 232),
]  # fmt: skip
CAMERA = [
    (180, 80), (219, 60), (258, 80), (274, 126), (338, 130), (340, 182), (306, 198), (262, 206), (240, 260), (215, 325),
    (206, 390), (160, 425), (155, 511), (78, 511), (68, 274), (78, 170), (137, 108),
]  # fmt: skip
SUBJECTS = {
    "astronaut": Subject("skimage", "data/astronaut.png", ASTRONAUT),
    "coffee": Subject("skimage", "data/coffee.png", COFFEE),
    "rocket": Subject("skimage", "data/rocket.jpg", ROCKET),
    "camera": Subject("skimage", "data/camera.png", CAMERA),
    "flower": Subject("sklearn", "datasets/images/flower.jpg", FLOWER),
}
HELD_OUT = "flower"
BACKGROUNDS = [
    "data/brick.png", "data/chelsea.png", "data/gravel.png", "data/hubble_deep_field.jpg", "data/motorcycle_left.png",
    "data/retina.jpg",
]  # fmt: skip
HELD_OUT_BACKGROUNDS = [
    ("sklearn", "datasets/images/china.jpg"),
    ("skimage", "data/grass.png"),
    ("skimage", "data/ihc.png"),
]
SIDE = 384
"""Pixels of the footage, and of the picture's cells."""
GREEN = (120, 255, 155)


def open_picture(package: str, path: str) -> Picture:
    """Read a picture that a package ships: (H, W, 3), RGB."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{package} is not installed: pip install scikit-image scikit-learn pymatting")
    found = cv2.imread(str(Path(spec.submodule_search_locations[0]) / path))
    if found is None:
        sys.exit(
            f"{package} has no {path}: it shipped with scikit-image 0.26.0 and scikit-learn 1.9.1"
        )
    return np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), np.uint8)


def cut_out(subject: Subject) -> tuple[Picture, Picture]:
    """Cut a subject out: its colours, (H, W, 3), and alpha, (H, W)."""
    picture = open_picture(subject.package, subject.path)
    mask = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.array(subject.outline, np.int32)], int(cv2.GC_PR_FGD))
    mask[cv2.erode(mask, np.ones((25, 25)), borderValue=255) > 0] = cv2.GC_FGD
    cv2.setRNGSeed(0)
    empty = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(picture[..., ::-1].copy(), mask, None, *empty, 6, cv2.GC_INIT_WITH_MASK)
    inside = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(inside)
    inside = (labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])).astype(np.uint8)
    sure = cv2.erode(inside, np.ones((5, 5)), borderValue=1)
    maybe = cv2.dilate(inside, np.ones((5, 5)))
    trimap = np.where(sure > 0, 1.0, np.where(maybe > 0, 0.5, 0.0))
    alpha = estimate_alpha_cf(picture / 255, trimap)
    colours = estimate_foreground_ml(picture / 255, alpha)
    return _bytes(colours), _bytes(alpha)


def _bytes(picture: NDArray[np.floating]) -> Picture:
    return np.asarray(np.clip(picture * 255, 0, 255).round(), np.uint8)


def save(path: Path, picture: Picture) -> None:
    """Write a picture, RGB or grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture.ndim == 3:
        picture = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), np.uint8)
    cv2.imwrite(str(path), picture)


def square(picture: Picture, box: tuple[int, int, int]) -> Picture:
    """Cut a square (x, y, side) out and resize it to SIDE; what lies outside repeats the edge."""
    x, y, side = box
    pad = max(0, -x, -y, x + side - picture.shape[1], y + side - picture.shape[0])
    padded = np.pad(picture, [(pad, pad), (pad, pad), (0, 0)][: picture.ndim], "edge")
    cut = padded[y + pad : y + pad + side, x + pad : x + pad + side]
    return np.asarray(cv2.resize(cut, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def make_dataset(out: Path) -> list[str]:
    """Write data/, walls/ and the footage: source/, empty/ and truth/; the names of the footage's pictures."""
    names = []
    for name, subject in SUBJECTS.items():
        colours, alpha = cut_out(subject)
        split = "valid" if name == HELD_OUT else "train"
        save(out / "data" / split / "fgr" / f"{name}.png", colours)
        save(out / "data" / split / "pha" / f"{name}.png", alpha)
        if name == HELD_OUT or name == "astronaut":
            names += make_footage(out, name, colours, alpha)
    for path in BACKGROUNDS:
        save(out / "walls/train" / f"{Path(path).stem}.png", open_picture("skimage", path))
    for package, path in HELD_OUT_BACKGROUNDS:
        save(out / "walls/valid" / f"{Path(path).stem}.png", open_picture(package, path))
    return names


def make_footage(out: Path, name: str, colours: Picture, alpha: Picture) -> list[str]:
    """Put a subject before each held-out background, as a camera sees it, and take the empty scene again."""
    ys, xs = np.nonzero(alpha > 127)
    side = int(1.15 * max(np.ptp(xs), np.ptp(ys)))
    box = (int(xs.mean()) - side // 2, int((ys.min() + ys.max()) / 2) - side // 2, side)
    subject, matte = square(colours, box), square(alpha, box)[..., None] / 255
    noise, names = np.random.default_rng(0), []
    for package, path in HELD_OUT_BACKGROUNDS:
        wall = open_picture(package, path)
        least = min(wall.shape[:2])
        scene = square(wall, ((wall.shape[1] - least) // 2, (wall.shape[0] - least) // 2, least))
        empty = np.roll(scene, 1, axis=1) * 0.97 + 2 + noise.normal(0, 2, scene.shape)
        file = f"{name}-{Path(path).stem}.png"
        source = subject * matte + scene * (1 - matte) + noise.normal(0, 2, scene.shape)
        save(out / "source" / file, _bytes(source / 255))
        save(out / "empty" / file, _bytes(empty / 255))
        save(out / "truth" / file, _bytes(matte[..., 0]))
        names.append(file)
    return names


def raymat(out: Path, *words: str, codes: tuple[int, ...] = (0,)) -> None:
    """Run one of raymat's commands in OUT; ends this script if it ends with another exit code."""
    print(f"\n$ raymat {' '.join(words)}", flush=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "raymat", *words]
    code = subprocess.run(command, cwd=out, check=False).returncode
    print(f"  {time.monotonic() - began:.0f} s, exit code {code}", flush=True)
    if code not in codes:
        sys.exit(code)


def train_and_matte(out: Path, steps: int, refine_steps: int) -> None:
    """Run the commands of a user who has pictures and wants mattes."""
    data = ["--dataset", "data", "--backgrounds", "walls"]
    small = [*data, "--backbone", "mobilenetv2", "--storage", "runs", "--workers", "1"]
    raymat(out, "check", *data, codes=(0, 1))
    base = ["--resolution", "128", "--crop", "96:128", "--batch-size", "4"]
    raymat(out, "base", "--name", "base", *small, *base, "--steps", str(steps))
    refine = [
        "--resolution",
        "256",
        "--crop",
        "192:256",
        "--batch-size",
        "2",
        "--init",
        "runs/base",
    ]
    refine += ["--refine-sample-pixels", "8000", "--backbone-scale", "0.5"]
    raymat(out, "refine", "--name", "refine", *small, *refine, "--steps", str(refine_steps))
    both = ["runs/base", "runs/refine"]
    raymat(out, "evaluate", *both, *data, "--resolution", "256")
    raymat(out, "export", "runs/refine", "-o", "refine.pth")
    footage = ["--source", "source", "--background", "empty", "--composite", "#78ff9b"]
    raymat(
        out,
        "matte",
        "refine.pth",
        *footage,
        "-o",
        "mattes",
        "--output-type",
        "pha,com",
        "--overwrite",
    )


def sheet(out: Path, names: list[str]) -> Picture:
    """Put source, empty scene, true and found alpha and composite beside each other, a row for each name; print errors."""
    rows = []
    for name in names:
        files = [
            f"source/{name}",
            f"empty/{name}",
            f"truth/{name}",
            f"mattes/pha/{name}",
            f"mattes/com/{name}",
        ]
        cells = [cv2.cvtColor(cv2.imread(str(out / f)), cv2.COLOR_BGR2RGB) for f in files]
        error = np.abs(cells[2] - cells[3].astype(float)).mean() / 255
        print(
            f"{name:24s} mean error of alpha {error:.4f}, share of the subject {cells[2].mean() / 255:.2f}"
        )
        rows.append(np.hstack(cells))
    return np.asarray(np.vstack(rows), np.uint8)


def main() -> None:
    """Make the dataset anew, train, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--out", type=Path, default=Path("photos"), help="folder, made anew")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--refine-steps", type=int, default=120)
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    names = make_dataset(given.out)
    train_and_matte(given.out, given.steps, given.refine_steps)
    save(given.out / "photographs.png", sheet(given.out, names))
    print(f"picture: {given.out}/photographs.png")


if __name__ == "__main__":
    main()
