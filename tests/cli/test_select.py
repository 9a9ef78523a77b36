"""Laws of `raymat select`: only what verifies is named, and what it prints can be read again."""

from __future__ import annotations

from typing import Any

import pytest

from raymat.checkpoint.manifest import CheckpointId
from raymat.cli.select import Options, select
from raymat.errors import ConfigError
from raymat.train.observability.metrics_log import MetricsLog
from raymat.train.run.selected_weights import read_weights
from raymat.train.run.weights_reference import parse_reference

LOSSES = {100: 0.9, 200: 0.5, 300: 0.2, 400: 0.3, 500: 0.4}


def fill(made: Any, steps: Any = LOSSES, **extra: Any) -> None:
    for step in steps:
        losses: dict[int, float | None] = {s: v for s, v in LOSSES.items() if s <= step}
        made.commit(step, losses=losses, **({"config": {"batch_size": 4}} | extra))


def damage(made: Any, step: int) -> None:
    path = f"checkpoints/{CheckpointId(step, 1)}/shard-00001-of-00002.safetensors"
    data = bytearray(made.store.read(path))
    data[-1] ^= 1
    made.store.write(path, bytes(data))


def chosen(made: Any, **options: Any) -> list[int]:
    return [point.step for point in select(Options(url=made.url, **options)).points]


def test_the_best_come_first(made: Any) -> None:
    fill(made)
    assert chosen(made) == [300]
    assert chosen(made, top=3) == [300, 400, 500]
    assert chosen(made, top=9, metric="loss", mode="max") == [100, 200, 500, 400, 300]


def test_what_is_damaged_torn_or_gone_is_never_named(local: Any) -> None:
    fill(local, [100, 200, 300, 500])
    damage(local, 300)
    local.commit(400, ranks=1)
    choice = select(Options(url=local.url, top=4))
    assert [point.step for point in choice.points] == [500, 200, 100]
    (note,) = choice.notes
    assert note.startswith("passed over step-000000300-a001: damaged: shard-00001-of-00002")


def test_fewer_than_were_asked_for_say_what_was_not_validated_and_what_measures_it(
    local: Any, raymat: Any
) -> None:
    for step in (100, 150, 200, 250, 300, 350):
        local.commit(step, losses={200: 0.5}, config={"batch_size": 4})
    code, out, err = raymat("select", local.url, "--top", "3", "-q")
    assert (code, out) == (0, [f"{local.store.url}@200"])
    assert err == [
        "note: 5 of 6 checkpoints passed over: no loss was validated there; measure them (the newest 3): "
        f"raymat evaluate {local.store.url}@250 {local.store.url}@300 {local.store.url}@350"
    ]
    assert raymat("select", local.url, "-q") == (0, [f"{local.store.url}@200"], [])


def test_a_run_of_which_nothing_verifies_is_an_error(local: Any, raymat: Any) -> None:
    fill(local, [300])
    damage(local, 300)
    code, out, err = raymat("select", local.url)
    assert (code, out, len(err)) == (2, [], 1)
    assert "no verified checkpoint with a loss" in err[0]


def test_the_runs_own_metric_and_direction_are_the_default(made: Any) -> None:
    validations = [
        {"step": 100, "loss": 1.0, "metrics": {"sad": 2.0, "ema_sad": 2.0}},
        {"step": 200, "loss": 3.0, "metrics": {"sad": 4.0, "ema_sad": 1.0}},
    ]
    for step in (100, 200):
        config = {"best_metric": "sad", "best_mode": "max"}
        made.commit(step, validations=validations, config=config)
    assert chosen(made) == [200]
    assert chosen(made, metric="loss") == [100]
    choice = select(Options(url=made.url, metric="ema_sad"))
    assert choice.names == [f"{made.store.url}@200@ema"]


def test_validations_beyond_the_newest_checkpoint_and_training_rows_come_from_metrics(
    made: Any,
) -> None:
    fill(made)
    log = MetricsLog(made.store, 1)
    for step in range(50, 501, 50):
        log.row(
            {"kind": "train", "step": step, "examples": 4 * step, "loss": abs(step - 200) + 1.0}
        )
    log.row({"kind": "valid", "step": 400, "examples": 1600, "loss": 0.1, "metrics": {"mse": 7.0}})
    log.cut(500)
    log.flush(500)
    assert chosen(made) == [300], "of a validation that the checkpoint knows its word counts"
    assert chosen(made, metric="mse") == [400]
    (point,) = select(Options(url=made.url, metric="train_loss")).points
    # Of the rows since the checkpoint before: 250 and 300 are 51 and 101 off, 150 and 200 only 51 and 1.
    assert (point.step, point.examples, point.value) == (200, 800.0, 26.0)


def test_a_metric_that_is_not_there_is_one_line_with_those_that_are(made: Any, raymat: Any) -> None:
    fill(made, [100])
    with pytest.raises(ConfigError, match="has no grad yet: there is loss"):
        select(Options(url=made.url, metric="grad"))


def test_the_command_prints_a_table_or_what_scripts_read(local: Any, raymat: Any) -> None:
    fill(local)
    code, out, err = raymat("select", local.url, "--top", "2")
    assert (code, err) == (0, [])
    assert [line.split() for line in out] == [
        ["checkpoint", "examples", "loss"],
        [f"{local.store.url}@300", "1200", "0.2"],
        [f"{local.store.url}@400", "1600", "0.3"],
    ]
    code, out, err = raymat("select", local.url, "--top", "2", "-q")
    assert (code, out, err) == (0, [f"{local.store.url}@300", f"{local.store.url}@400"], [])
    assert [parse_reference(line).step for line in out] == [300, 400]
    assert read_weights(out[0]).checkpoint == CheckpointId(300, 1)


PLATEAU = {step: max(0.2, 1.0 - step / 1000) for step in range(100, 2001, 100)}


def fall_and_stay(made: Any, steps: Any = PLATEAU) -> None:
    for step in steps:
        losses: dict[int, float | None] = {s: v for s, v in PLATEAU.items() if s <= step}
        made.commit(step, losses=losses, config={"batch_size": 4})


def test_before_the_plateau_is_the_newest_checkpoint_at_or_before_the_corner(
    local: Any, raymat: Any
) -> None:
    fall_and_stay(local, [500, 600, 700, 1000, 2000])
    code, out, err = raymat("select", local.url, "--before-plateau", "-q")
    assert (code, out, err) == (0, [f"{local.store.url}@700"], [])
    code, out, err = raymat("select", local.url, "--before-plateau")
    assert (
        out[-1] == "from step 800 on (3200 examples) no 1520 examples improve loss by 5.0% or more"
    )
    assert out[1].split() == [f"{local.store.url}@700", "2800", "0.3"]
    damage(local, 700)
    assert chosen(local, before_plateau=True) == [600]


def test_where_nothing_is_left_before_the_plateau_the_next_one_is_taken_and_said_so(
    local: Any,
) -> None:
    fall_and_stay(local, [1200, 2000])
    choice = select(Options(url=local.url, before_plateau=True))
    assert [point.step for point in choice.points] == [1200]
    assert "no checkpoint is left of step 800 or before: this one is later" in choice.notes


def test_a_curve_without_a_plateau_gives_scripts_nothing_and_exit_1(
    local: Any, raymat: Any
) -> None:
    fill(local, [100, 200])
    code, out, err = raymat("select", local.url, "--before-plateau", "-q", "--window", "400")
    assert (code, out) == (1, [])
    assert (
        "loss has no plateau: the curve still improves, by 44.4% in its last 400 examples" in err[0]
    )


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--top", "0"], "--top must be at least 1"),
        (["--window", "0"], "--window must be at least 1"),
        (["--threshold", "1.5"], "--threshold must be between 0 and 1"),
        (["--top", "2", "--before-plateau"], "exclude each other"),
    ],
)
def test_wrong_options_are_one_line(local: Any, raymat: Any, argv: list[str], line: str) -> None:
    code, out, err = raymat("select", local.url, *argv)
    assert (code, out, len(err)) == (2, [], 1)
    assert line in err[0]
