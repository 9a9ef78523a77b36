"""From nothing to a picture that is cut out: train base, then refine, on synthetic pictures, and matte one.

    python examples/train_and_matte.py [FOLDER]

Takes about a minute on two cores. The networks are too small and trained too briefly to cut out people; the commands and calls
are those that your own footage takes, with "dataset" and "backgrounds" in the place of "synthetic".
"""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from raymat import build, fit

SMALL = {
    "synthetic": 64,  # with footage: "dataset": "s3://bucket/VideoMatte240K", "backgrounds": "s3://bucket/backgrounds"
    "backbone": "mobilenetv2",
    "resolution": 64,
    "crop": "32:64",
    "device": "cpu",
    "valid_examples": 8,
}


def main(folder: Path) -> None:
    """Train both stages below `folder`, and write folder/cut.png."""
    runs = str(folder / "runs")
    base = fit(build("base", SMALL | {"name": "base", "storage": runs, "steps": 60}))
    print(base.url, "is at step", base.step)
    refine = fit(
        build(
            "refine",
            SMALL | {"name": "refine", "storage": runs, "steps": 20, "init": f"{runs}/base"},
        )
    )
    print(refine.report)

    source, background = draw_scene(folder)
    matte = [
        "raymat",
        "matte",
        f"{runs}/refine@best",
        "--source",
        source,
        "--background",
        background,
    ]
    subprocess.run([*matte, "-o", str(folder / "cut.png"), "--overwrite"], check=True)


def draw_scene(folder: Path) -> tuple[str, str]:
    """Write a scene with and without its subject, as a camera on a tripod would see it."""
    grain = np.random.default_rng(0).normal(0, 4, (256, 256, 3))
    empty = np.clip(np.linspace(60, 180, 256)[:, None, None] + grain, 0, 255).astype(np.uint8)
    scene = empty.copy()
    cv2.circle(scene, (128, 140), 70, (60, 90, 200), thickness=-1, lineType=cv2.LINE_AA)
    paths = str(folder / "scene.png"), str(folder / "empty.png")
    for path, picture in zip(paths, (scene, empty), strict=True):
        cv2.imwrite(path, picture)
    return paths


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "example")
    place.mkdir(parents=True, exist_ok=True)
    main(place)
