"""Laws of the configuration: defaults as documented, every unusable value refused in words, values kept through JSON."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest

from raymat.config.fixed_options import RULES, promise_changes
from raymat.config.run import RunConfig, build, from_dict, to_dict
from raymat.config.settled import with_pace
from raymat.config.values import Duration, Range
from raymat.distributed.world import World
from raymat.errors import ClusterError, ConfigError, RaymatError


def run(stage: Any = "base", **options: Any) -> RunConfig:
    return build(stage, {"name": "r", "synthetic": 8} | options)


def refusal(stage: Any = "base", **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        run(stage, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "low", "high"), [("1:4", 1, 4), ("3", 3, 3), (7, 7, 7), (" 2 : 5 ", 2, 5)]
)
def test_a_range_is_one_number_or_two(text: Any, low: int, high: int) -> None:
    assert Range.parse(text) == Range(low, high)


@pytest.mark.parametrize("text", ["4:1", "0", "0:2", "-1:2", "1:", ":2", "a", "1.5", "1:2:3", ""])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="MIN:MAX"):
        Range.parse(text)


def test_a_range_reads_what_it_writes() -> None:
    assert str(Range(1, 4)) == "1:4"
    assert str(Range(3, 3)) == "3"


def test_base_defaults_are_the_documented_ones() -> None:
    flat = to_dict(with_pace(run("base"), 250_000))
    assert flat["storage"] == "./runs"
    assert (flat["batch_size"], flat["resolution"], flat["crop"]) == (8, 512, "256:512")
    assert (flat["epochs"], flat["steps"], flat["epoch_examples"]) == (8.0, None, None)
    assert (flat["checkpoint_interval"], flat["valid_interval"]) == ("auto", 5000)
    assert (flat["valid_examples"], flat["log_loss_interval"]) == (50, 10)
    assert flat["log_images_interval"] == 2000
    assert (flat["backbone"], flat["init"], flat["device"]) == ("resnet50", None, "auto")
    assert (flat["workers"], flat["seed"], flat["precision"]) == ("1", 0, None)
    assert (flat["lr_backbone"], flat["lr_aspp"], flat["lr_decoder"]) == (1e-4, 5e-4, 5e-4)


def test_refine_defaults_are_the_documented_ones() -> None:
    flat = to_dict(with_pace(run("refine"), 250_000))
    assert (flat["batch_size"], flat["resolution"], flat["crop"]) == (4, 2048, "1024:2048")
    assert flat["epochs"] == 1.0
    assert (flat["checkpoint_interval"], flat["valid_interval"]) == ("auto", 2000)
    assert (flat["log_loss_interval"], flat["log_images_interval"]) == (10, 1000)
    assert (flat["lr_backbone"], flat["lr_aspp"]) == (5e-5, 5e-5)
    assert (flat["lr_decoder"], flat["lr_refiner"]) == (1e-4, 3e-4)


def test_steps_replace_the_default_epochs() -> None:
    length = run(steps=7).length
    assert (length.steps, length.epochs) == (7, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 3, "epochs": 2.0}, "--epochs or --steps"),
        ({"synthetic": None}, "--dataset and --backgrounds, or --synthetic"),
        ({"dataset": "d", "backgrounds": "b"}, "--dataset and --backgrounds, or --synthetic"),
        ({"synthetic": None, "dataset": "d"}, "go together"),
        ({"synthetic": 0}, "--synthetic"),
        ({"crop": "254:512"}, "--crop must be multiples of 4"),
        ({"crop": "256:1024"}, "larger than --resolution"),
        ({"resolution": 510}, "--resolution must be a positive multiple of 4"),
        ({"batch_size": 0}, "--batch-size"),
        ({"seed": -1}, "--seed"),
        ({"backbone_scale": 0.6}, "--backbone-scale"),
        ({"lr_aspp": 1.0}, "--lr-aspp"),
        ({"clip_norm": 0.0}, "--clip-norm must be more than 0"),
        ({"weight_decay": -0.1}, "--weight-decay must be in [0, 1)"),
        ({"freeze": "backbone,head"}, "--freeze takes backbone, aspp, decoder, refiner"),
        ({"freeze": "refiner"}, "--freeze refiner: base has no refiner"),
        ({"accumulate": 0}, "--accumulate must be at least 1"),
        ({"accumulate": 3}, "--accumulate 3 does not divide --batch-size 8"),
        ({"accumulate": 8}, "--accumulate 8 leaves 1 example in a chunk"),
        (
            {"accumulate": 2, "workers": "2:6"},
            "--workers 2:6 is more than the 4 examples of a chunk (--batch-size over --accumulate): use --workers 2:4",
        ),
        ({"ema_decay": 1.0}, "--ema-decay must be between 0 and 1"),
        ({"epochs": -1.0}, "--epochs"),
        ({"checkpoint_interval": 0}, "--checkpoint-interval: expected at least 1, got 0"),
        (
            {"checkpoint_interval": "often"},
            "--checkpoint-interval: expected a whole number or auto, got 'often'",
        ),
        ({"keep_every": 0}, "--keep-every must be at least 1"),
        (
            {"checkpoint_at_loss": "0.1,low"},
            "--checkpoint-at-loss: expected numbers like 0.5,0.4, got '0.1,low'",
        ),
        (
            {"checkpoint_at_loss": "0.1", "best_metric": "sad"},
            "--checkpoint-at-loss goes by the loss, --best-metric by sad: leave one of them out",
        ),
        ({"keep": 0}, "--keep"),
        ({"valid_examples": -1}, "--valid-examples"),
        ({"log_loss_interval": 0}, "--log-loss-interval"),
        ({"threads": 0}, "--threads must be in 1..1024, got 0"),
        ({"threads": 100_000}, "--threads must be in 1..1024, got 100000"),
        ({"name": "../x"}, "--name"),
        ({"name": ""}, "--name"),
        ({"storage": ""}, "--storage"),
        ({"workers": "1:9"}, "--workers 1:9 is more than the 8 examples of a batch"),
    ],
)
def test_an_unusable_value_is_refused_with_its_flag(options: dict[str, Any], words: str) -> None:
    assert words in refusal(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backbone": "vgg16"}, "--backbone must be one of resnet50, resnet101, mobilenetv2"),
        ({"refine_kernel_size": 2}, "--refine-kernel-size must be one of 1, 3"),
        ({"precision": "fp8"}, "--precision must be one of fp16, bf16, fp32, fp64 or nothing"),
        ({"batch_size": "8"}, "--batch-size must be a whole number, got '8'"),
        ({"batch_size": True}, "--batch-size must be a whole number, got True"),
        ({"steps": 2.0}, "--steps must be a whole number or nothing, got 2.0"),
        ({"epochs": float("nan")}, "--epochs must be a number or nothing, got nan"),
        ({"scaled_decode": "no"}, "--scaled-decode must be true or false, got 'no'"),
        ({"storage": 3}, "--storage must be text, got 3"),
    ],
)
def test_a_value_of_another_type_is_refused(options: dict[str, Any], words: str) -> None:
    assert words in refusal(**options)


def test_a_whole_number_of_epochs_is_a_number() -> None:
    assert run(epochs=2).length.epochs == 2


def test_an_unknown_option_is_refused_by_name() -> None:
    assert "batchsize" in refusal(batchsize=4)


def test_too_many_workers_come_with_the_fix() -> None:
    assert "use --workers 2:4 or a larger --batch-size" in refusal("refine", workers="2:6")


def test_a_run_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="--name is missing"):
        build("base", {"synthetic": 8})


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        run().data.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("stage", ["base", "refine"])
@pytest.mark.parametrize("length", [{"steps": 3}, {"epochs": 14.3, "epoch_examples": 1000}, {}])
def test_a_configuration_survives_json(stage: str, length: dict[str, Any]) -> None:
    config = run(stage, workers="1:4", crop="64:128", init="s3://b/x.pth", **length)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_what_would_change_the_weights_is_named_with_both_values() -> None:
    changes = promise_changes(run(), run(batch_size=4, backbone="resnet101", seed=1))
    assert changes == {
        "batch_size": (8, 4),
        "backbone": ("resnet50", "resnet101"),
        "seed": (0, 1),
    }


def test_the_training_craft_is_promised() -> None:
    asked = {"clip_norm": 1.0, "weight_decay": 0.01, "freeze": "backbone", "accumulate": 2}
    assert promise_changes(run(), run(**asked)) == {
        "clip_norm": (None, 1.0),
        "weight_decay": (0.0, 0.01),
        "freeze": (None, "backbone"),
        "accumulate": (1, 2),
    }


def test_workers_places_length_and_logging_may_change() -> None:
    other = run(workers="1:4", storage="s3://b", steps=9, keep=5, valid_interval=1, device="cpu")
    assert promise_changes(run(), other) == {}


def test_an_average_may_be_added_later_but_not_changed_or_dropped() -> None:
    assert promise_changes(run(), run(ema_decay=0.5)) == {}
    assert promise_changes(run(ema_decay=0.5), run()) == {"ema_decay": (0.5, None)}
    assert promise_changes(run(ema_decay=0.5), run(ema_decay=0.9)) == {"ema_decay": (0.5, 0.9)}


def test_an_error_is_one_line_and_survives_another_process() -> None:
    error = ClusterError("no GPU\n  in this   cluster")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.line) == (ClusterError, "no GPU in this cluster")
    assert isinstance(ConfigError("x"), (RaymatError, ValueError))


def test_shares_follow_each_other_and_differ_by_one_at_most() -> None:
    assert [list(World(r, 3).share(8)) for r in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [list(World(r, 4).share(2)) for r in range(4)] == [[0], [1], [], []]


@pytest.mark.parametrize(("rank", "size"), [(1, 1), (-1, 2), (0, 0)])
def test_a_rank_outside_of_the_world_is_refused(rank: int, size: int) -> None:
    with pytest.raises(ValueError, match="world"):
        World(rank, size)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), (2.5, 2.5)]
)
def test_a_time_is_read_with_its_unit(text: str, seconds: float) -> None:
    assert Duration.parse(text).seconds == seconds
    assert Duration.parse(str(Duration.parse(text))) == Duration.parse(text)


@pytest.mark.parametrize("text", ["", "m", "-5s", "0", "1d", "5 minutes", "inf", "1e3"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Duration.parse(text)


def test_every_option_says_whether_a_resumed_run_may_change_it() -> None:
    assert [name for name, rule in RULES.items() if rule is None] == []


@pytest.mark.parametrize(
    ("given", "kept", "of_200"), [("20", "20", 20.0), (7, "7", 7.0), ("2.5%", "2.5%", 5.0), ("0%", "0%", 0.0)]
)  # fmt: skip
def test_a_limit_is_a_number_or_a_share(given: Any, kept: str, of_200: float) -> None:
    config = run(max_replaced=given)
    assert config.data.max_replaced is not None
    assert to_dict(config)["max_replaced"] == kept
    assert config.data.max_replaced.of(200) == of_200
    assert from_dict(to_dict(config)) == config
    assert promise_changes(run(), config) == {}


@pytest.mark.parametrize("given", ["-1", "2.5", "101%", "few", "%"])
def test_what_is_no_limit_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="expected a whole number or a share such as"):
        run(max_replaced=given)
