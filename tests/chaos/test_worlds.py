"""The number of workers changes no sample and, in float64, no loss beyond rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raymat.cluster.driver.launch import fit
from raymat.data.sample_order import digest_lanes, digest_text
from raymat.storage.store import Store
from raymat.train.run.open_run import open_run
from tests.support.kit import rows, tiny

STEPS, BATCH, PAIRS = 10, 8, 64


def trained(storage: Path, world: int, precision: str, stage: Any = "base") -> Store:
    config = tiny(
        stage,
        storage,
        f"{stage}-{precision}-{world}",
        workers=str(world),
        precision=precision,
        batch_size=BATCH,
        synthetic=PAIRS,
        steps=STEPS,
        valid_examples=0,
        # Batch norm sees few values where pictures are smaller, and rounding grows with that.
        resolution=64,
        crop="48:64",
    )
    fit(config)
    return Store.open(config.storage, config.name)


@pytest.mark.chaos
def test_one_to_four_workers_take_the_same_steps(cluster: None, tmp_path: Path) -> None:
    found = {world: rows(trained(tmp_path, world, "fp64")) for world in (1, 2, 3, 4)}
    config = tiny("base", tmp_path, "base-fp64-1", batch_size=BATCH, synthetic=PAIRS, steps=STEPS)
    order = open_run(config, Store.open(str(tmp_path), "other")).order
    expected = [
        digest_text(digest_lanes(order.examples(order.step_numbers(step)))) for step in range(STEPS)
    ]
    worst = 0.0
    for world, steps in found.items():
        assert [row[0] for row in steps] == list(range(1, STEPS + 1))
        assert [row[3] for row in steps] == expected, f"{world} workers"
        for one, other in zip(found[1], steps, strict=True):
            worst = max(worst, abs(other[2] - one[2]) / one[2])
    print(f"fp64, 1 to 4 workers, {STEPS} steps: losses differ by {worst:.1e} relative at most")
    assert worst < 1e-9


@pytest.mark.chaos
def test_in_float32_rounding_alone_moves_the_losses(cluster: None, tmp_path: Path) -> None:
    one, three = (rows(trained(tmp_path, world, "fp32")) for world in (1, 3))
    drift = [abs(b[2] - a[2]) / a[2] for a, b in zip(one, three, strict=True)]
    print("fp32, 1 against 3 workers, relative drift by step:", " ".join(f"{d:.0e}" for d in drift))
    assert drift[0] < 1e-4
    assert [row[3] for row in one] == [row[3] for row in three]
