"""Begin a run with one worker, move its folder, and go on with two: each step trains on the examples that it would have had.

    python examples/resume_elsewhere.py [FOLDER]

Takes about a minute on two cores.
"""

import shutil
import sys
from pathlib import Path

from raymat import Store, build, fit, read_metrics

RUN = {
    "name": "moved",
    "synthetic": 64,
    "backbone": "mobilenetv2",
    "resolution": 64,
    "crop": "32:64",
    "device": "cpu",
    "log_loss_interval": 1,
    "valid_examples": 0,
}


def main(folder: Path) -> None:
    """Train 20 steps in one place, 20 more in another, and compare with 40 steps in one go."""
    here, there = str(folder / "here"), str(folder / "there")
    fit(build("base", RUN | {"storage": here, "steps": 20, "workers": 1}))
    shutil.move(here, there)
    result = fit(build("base", RUN | {"storage": there, "steps": 40, "workers": 2}))
    print(f"{result.url}: step {result.step} of {result.total_steps}")

    whole = str(folder / "whole")
    fit(build("base", RUN | {"storage": whole, "steps": 40, "workers": 1}))
    moved, undisturbed = (
        [(row["step"], row["digest"]) for row in read_metrics(Store.open(storage, "moved"))]
        for storage in (there, whole)
    )
    assert moved == undisturbed, "a step trained on other examples"
    print(f"{len(moved)} steps, each once, each on the same examples")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"))
