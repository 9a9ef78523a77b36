"""The laws of the training loop, on real processes that are really killed, without Ray."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from raymat.checkpoint.catalog import scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.config.run import RunConfig
from raymat.data.batch import Doubt, MicroBatch, Replacement
from raymat.data.feed import Stretch
from raymat.distributed.world import World
from raymat.errors import ConfigError, DataError, StorageError, TrainingError, WeightsError
from raymat.train.loop import startup
from raymat.train.loop.interfaces import Host
from raymat.train.loop.trainer import Outcome
from raymat.train.observability.events import read_events
from raymat.train.observability.metrics_log import read_metrics
from tests.support import runs
from tests.support.small import build_small
from tests.support.workers import WorkerError, in_workers
from tests.train.conftest import Pair, make_pair

# What a row says of its step; time is when it happened.
ROW = ("kind", "step", "examples", "epoch", "loss", "digest", "metrics", "lr")


def rows(config: RunConfig, kind: str | None = None) -> list[dict[str, Any]]:
    found = read_metrics(runs.store_of(config))
    return [row for row in found if kind in (None, row["kind"])]


def events(config: RunConfig, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(runs.store_of(config)) if event["kind"] == kind]


def assert_equal_to_the_bit(pair: Pair) -> None:
    undisturbed, killed = runs.checkpoints(pair.undisturbed), runs.checkpoints(pair.killed)
    assert list(undisturbed) == list(killed) == [3, 6]
    for step in undisturbed:
        assert runs.differences(undisturbed[step], killed[step]) == []
    assert [[row.get(k) for k in ROW] for row in rows(pair.undisturbed)] == [
        [row.get(k) for k in ROW] for row in rows(pair.killed)
    ]


def test_three_workers_killed_and_resumed_equal_an_undisturbed_run_to_the_bit(
    pair_of_three: Pair,
) -> None:
    assert_equal_to_the_bit(pair_of_three)
    assert (pair_of_three.outcome.step, pair_of_three.outcome.attempt) == (6, 2)


@pytest.mark.slow
def test_two_workers_killed_and_resumed_equal_an_undisturbed_run_to_the_bit(tmp_path: Path) -> None:
    assert_equal_to_the_bit(make_pair(tmp_path, 2, "base"))


@pytest.mark.slow
def test_a_refine_run_killed_and_resumed_equals_an_undisturbed_one_to_the_bit(
    tmp_path: Path,
) -> None:
    assert_equal_to_the_bit(make_pair(tmp_path, 2, "refine", valid_examples=0))


def test_an_interrupted_run_has_every_step_once_in_its_metrics(pair_of_three: Pair) -> None:
    found = [(row["step"], row["kind"]) for row in rows(pair_of_three.killed)]
    train = [(step, "train") for step in range(1, 7)]
    assert found == sorted([*train, (0, "valid"), (3, "valid"), (6, "valid")])


def test_events_tell_who_took_part_and_where_each_attempt_went_on(pair_of_three: Pair) -> None:
    starts = events(pair_of_three.killed, "start")
    assert [start["attempt"] for start in starts] == [1, 2]
    for start in starts:
        assert [worker["rank"] for worker in start["ranks"]] == [0, 1, 2]
        assert len({worker["pid"] for worker in start["ranks"]}) == 3
        assert start["world"] == 3
    (restored,) = events(pair_of_three.killed, "restore")
    assert (restored["step"], restored["checkpoint"]) == (3, "step-000000003-a001")
    commits = [(e["step"], e["attempt"]) for e in events(pair_of_three.killed, "commit")]
    assert commits == [(3, 1), (6, 2)]
    assert [e["step"] for e in events(pair_of_three.killed, "first_step")] == [1, 4]
    ends = [e["outcome"] for e in events(pair_of_three.killed, "end") if e["attempt"] == 2]
    assert ends == ["complete"]


def uneven(folder: Path, world: int) -> RunConfig:
    """fp64; 22 examples in batches of 4: with 3 workers the last batch, of 2, leaves one without an example.

    Not smaller: where batch norm sees a handful of values per channel, rounding grows by orders of magnitude in a step.
    """
    return runs.tiny(
        folder, f"fp64-{world}", precision="fp64", epochs=1, epoch_examples=22, valid_interval=3,
        checkpoint_interval=100, valid_examples=5, resolution=48, crop=48,
    )  # fmt: skip


@pytest.mark.slow
def test_any_number_of_workers_does_the_same_mathematics(tmp_path: Path) -> None:
    found = {}
    for world in (1, 2, 3):
        config = uneven(tmp_path, world)
        in_workers(world, runs.train, config)
        found[world] = rows(config)
    for row in found[1]:
        assert 0.05 < row["loss"] < 5
    assert [row["examples"] for row in found[1] if row["kind"] == "train"] == [4, 8, 12, 16, 20, 22]
    for world in (2, 3):
        # Of the same weights, which these are before the first step, a validation says the same to the bit.
        first, same = found[world][0], found[1][0]
        assert (first["step"], first["kind"], first["count"]) == (0, "valid", 5)
        assert (first["loss"], first["metrics"]) == (same["loss"], same["metrics"])
        assert [r["digest"] for r in found[world]] == [r["digest"] for r in found[1]]
        losses = [r["loss"] for r in found[world]]
        # Validation rows too.
        assert losses == pytest.approx([r["loss"] for r in found[1]], rel=1e-9, abs=0)
    assert [(r["step"], r["count"]) for r in found[3] if r["kind"] == "valid"] == [
        (0, 5),
        (3, 5),
        (6, 5),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    [
        "sampling",
        *(pytest.param(mode, marks=pytest.mark.chaos) for mode in ("thresholding", "full")),
    ],
)
def test_any_number_of_workers_refines_the_same(tmp_path: Path, mode: str) -> None:
    losses = {}
    for world in (1, 3):
        # 10 examples in batches of 4: the last batch, of 2, leaves one of 3 workers without an example.
        config = runs.tiny(
            tmp_path, f"refine-{world}", "refine", precision="fp64", epochs=1, epoch_examples=10, valid_interval=3,
            checkpoint_interval=100, valid_examples=2, resolution=96, crop=96, backbone_scale=0.5, refine_mode=mode,
        )  # fmt: skip
        in_workers(world, runs.train, config)
        losses[world] = [row["loss"] for row in rows(config)]
    assert len(losses[1]) == 5  # one of them before the first step
    assert losses[3] == pytest.approx(losses[1], rel=1e-9, abs=0)


class Poison:
    """Makes the coarse prediction of one rank NaN in some training steps (from 1), whatever the weights."""

    def __init__(self, steps: set[int], first: int = 0) -> None:
        self.steps, self.done = steps, first

    def __call__(self, module: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        self.done += 1
        return output * (math.nan if self.done in self.steps else 1.0)


def train_poisoned(world: World, config: RunConfig, steps: set[int], first: int = 0) -> Outcome:
    plain = startup.build

    def build(*args: Any) -> Any:
        network = plain(*args)
        if world.rank == world.size - 1:
            network.decoder.register_forward_hook(Poison(steps, first))
        return network

    startup.build = build
    return runs.train(world, config, patient=True)


@pytest.mark.slow
def test_a_single_step_that_is_not_finite_is_skipped_and_named_at_any_world_size(
    tmp_path: Path,
) -> None:
    losses = {}
    for world in (1, 2):
        config = runs.tiny(
            tmp_path, f"poisoned-{world}", precision="fp64", steps=4, checkpoint_interval=1, valid_examples=0, crop=32
        )  # fmt: skip
        in_workers(world, train_poisoned, config, {3})
        (event,) = events(config, "nonfinite")
        assert (event["step"], event["examples"], event["loss"]) == (3, [8, 11], "nan")
        states = runs.checkpoints(config)
        # Weights, optimiser and batch-norm statistics alike: the step left nothing behind but the cursor.
        assert [
            n for n, t in states[2].tensors.items() if not torch.equal(t, states[3].tensors[n])
        ] == []
        assert states[3].extra["cursor"]["next_example"] == 12
        assert [states[step].extra["bad_steps"] for step in (2, 3, 4)] == [0, 1, 0]
        losses[world] = [row["loss"] for row in rows(config)]
    assert losses[1][2] is None
    assert losses[2][2] is None
    for step in (0, 1, 3):
        assert losses[1][step] == pytest.approx(losses[2][step], rel=1e-9, abs=0)


@pytest.mark.slow
def test_failures_that_persist_end_training_on_every_worker_and_across_restarts(
    tmp_path: Path,
) -> None:
    config = runs.tiny(
        tmp_path, "bad", steps=8, checkpoint_interval=3, valid_examples=0, max_bad_steps=3
    )
    for error in in_workers(2, train_poisoned, config, {2, 3, 4, 5}):
        assert isinstance(error, TrainingError)
        assert "in 4 steps in a row" in error.line
        assert "step 5 (examples 16 to 19)" in error.line
    # The checkpoint of step 3 remembers the two failures before it: two more are enough.
    (error, _) = in_workers(2, train_poisoned, config, {4, 5}, 3)
    assert isinstance(error, TrainingError)
    assert "in 4 steps in a row" in error.line
    assert [e["step"] for e in events(config, "nonfinite")] == [2, 3, 4, 5, 4, 5]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A short run of one worker in this process, with its checkpoints of the steps 2 and 4."""
    config = runs.tiny(tmp_path_factory.mktemp("one"), "finished", steps=4, valid_interval=2)
    outcome = runs.train(World(), config)
    assert (outcome.step, outcome.attempt, outcome.already_complete) == (4, 1, False)
    return config


def again(config: RunConfig, **options: Any) -> RunConfig:
    storage = Path(config.storage)
    return runs.tiny(storage, config.name, **({"steps": 4, "valid_interval": 2} | options))


class Heard(Host):
    """A host that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def restored(self, checkpoint: Any) -> None:
        self.told.append(("restored", checkpoint and checkpoint.step))

    def committed(self, checkpoint: Any, metrics: dict[str, Any]) -> None:
        self.told.append(("committed", checkpoint.step, sorted(metrics)))

    def progress(self, progress: Any) -> None:
        self.told.append(("progress", progress.step, progress.commit_step, progress.examples_left))


def test_a_complete_run_returns_at_once(finished: RunConfig) -> None:
    before = [status.id for status in scan(runs.store_of(finished))]
    outcome = runs.train(World(), finished)
    assert outcome.already_complete
    assert outcome.checkpoint.step == 4
    assert outcome.best is not None
    assert outcome.best.step in (2, 4)
    assert [status.id for status in scan(runs.store_of(finished))] == before


def test_a_changed_promise_is_refused_with_the_difference(finished: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"--seed was 0, is 1; use the old one"):
        runs.train(World(), again(finished, seed=1))
    with pytest.raises(DataError, match=r"listing was synthetic, is other"):
        runs.train(World(), finished, listing_digest="other")


@pytest.mark.slow
def test_a_torn_and_a_damaged_checkpoint_are_skipped_and_named(tmp_path: Path) -> None:
    config = runs.tiny(tmp_path, "damaged", steps=3, checkpoint_interval=1, valid_examples=0)
    runs.train(World(), config, patient=True)
    folder = tmp_path / "damaged" / "checkpoints"
    (folder / "step-000000003-a001" / "manifest-00000-of-00001.json").unlink()
    shard = folder / "step-000000002-a001" / "shard-00000-of-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    undisturbed = runs.tiny(tmp_path, "undisturbed", steps=3, valid_examples=0)
    runs.train(World(), undisturbed)
    host = Heard()
    assert runs.train(World(), config, host=host).attempt == 2
    assert host.told[0] == ("restored", 1)
    skips = [(e["step"], e["reason"]) for e in events(config, "skip")]
    assert [step for step, _ in skips] == [3, 2]
    assert "torn" in skips[0][1]
    assert "digest" in skips[1][1]
    assert runs.differences(runs.checkpoints(config)[3], runs.checkpoints(undisturbed)[3]) == [
        "config"
    ]  # another checkpoint interval


@pytest.mark.slow
def test_a_checkpoint_whose_weights_are_not_finite_is_not_resumed(tmp_path: Path) -> None:
    config = runs.tiny(tmp_path, "nan", steps=2, checkpoint_interval=1, valid_examples=0)
    runs.train(World(), config, patient=True)
    name, newest = "model/decoder.conv4.bias", CheckpointId(2, 2)
    before = runs.checkpoints(config)[2]
    tensors = before.tensors | {name: torch.full_like(before.tensors[name], math.nan)}
    poisoned = Snapshot.take(2, tensors, before.extra)
    write_share(runs.store_of(config), newest, poisoned, World(), config.name)
    host = Heard()
    runs.train(World(), config, host=host)
    assert host.told[0] == ("restored", 2)
    count = sum(not name.startswith("optimizer/") for name in tensors)
    assert [(e["checkpoint"], e["reason"]) for e in events(config, "skip")] == [
        (
            "step-000000002-a002",
            f"step-000000002-a002 cannot be resumed: 1 of {count} tensors hold NaN or infinity, "
            "the first model/decoder.conv4.bias (37 of 37 values)",
        )
    ]


def test_the_host_hears_of_the_restore_every_commit_and_the_progress(tmp_path: Path) -> None:
    host = Heard()
    runs.train(
        World(), runs.tiny(tmp_path, "heard", steps=3, valid_interval=2), host=host, patient=True
    )
    metrics = ["examples", "loss", "step", "valid_loss", "valid_mse", "valid_sad"]
    assert host.told == [
        ("restored", None),
        ("progress", 1, None, 8),
        ("progress", 2, None, 4),
        # What is committed beside training is noticed at the next logged step.
        ("committed", 2, metrics),
        ("progress", 3, 2, 0),
        ("committed", 3, metrics),
        ("progress", 3, 3, 0),
    ]


def test_a_run_can_be_made_longer(finished: RunConfig) -> None:
    outcome = runs.train(World(), again(finished, steps=5))
    assert (outcome.step, outcome.already_complete) == (5, False)


def test_a_refine_run_starts_from_the_weights_of_a_base_run(
    finished: RunConfig, tmp_path: Path
) -> None:
    url = f"{finished.storage}/{finished.name}"
    config = runs.tiny(
        tmp_path, "refine", "refine", init=url, steps=1, lr_backbone=0, valid_examples=0
    )
    runs.train(World(), config)
    base, refined = runs.checkpoints(finished), runs.checkpoints(config)[1]
    newest = base[max(base)].tensors
    name = "model/backbone.features.0.0.weight"
    assert torch.equal(refined.tensors[name], newest[name])
    (told,) = events(config, "init")
    assert "refiner" in told["summary"]
    with pytest.raises(WeightsError, match="neither a weights file"):
        runs.train(World(), runs.tiny(tmp_path, "none", init=f"{tmp_path}/nowhere"))


def test_storage_that_cannot_be_written_ends_the_run_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where the storage should be")
    with pytest.raises(StorageError):
        runs.train(World(), runs.tiny(tmp_path / "file", "run"))


def test_a_run_trains_on_a_last_example_that_is_a_batch_of_its_own(tmp_path: Path) -> None:
    config = runs.tiny(tmp_path, "lone", epochs=1, epoch_examples=5)
    assert runs.train(World(), config).step == 2
    last = read_metrics(runs.store_of(config))[-2]
    assert (last["kind"], last["step"], last["examples"]) == ("train", 2, 5)
    assert 0 < last["loss"] < 10


def test_a_batch_of_one_is_refused_before_the_run_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--batch-size 1 cannot be trained"):
        runs.train(World(), runs.tiny(tmp_path, "one", batch_size=1))
    assert not (tmp_path / "one").exists()


def test_a_replaced_file_is_reported_once_and_counted(tmp_path: Path) -> None:
    class Broken(runs.Feed):
        def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
            for batch in super().train(first_step, end_step):
                found = tuple(Replacement(n, "a/b.png", "truncated") for n in batch.numbers[:2])
                yield MicroBatch(**(vars(batch) | {"replaced": found}))

    config = runs.tiny(tmp_path, "replaced", steps=2, valid_examples=0)
    runs.train(World(), config, feed=Broken(config, World(), {}))
    (event,) = events(config, "replaced")
    assert (event["path"], event["reason"], event["example"]) == ("a/b.png", "truncated", 0)
    assert events(config, "end")[0]["replaced"] == 4


class Told(runs.Feed):
    """Keeps what it was told to expect, and what it was asked for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.told: list[list[Stretch]] = []
        self.asked: list[Stretch] = []

    def expect(self, stretches: Iterable[Stretch]) -> None:
        assert not self.asked
        self.told.append(list(stretches))

    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        self.asked.append(Stretch("train", first_step, end_step))
        return super().train(first_step, end_step)

    def valid(self) -> Iterator[MicroBatch]:
        self.asked.append(Stretch("valid"))
        return super().valid()


def test_the_feed_is_told_of_all_that_it_is_asked_for_before_a_checkpoint_is_read(
    tmp_path: Path,
) -> None:
    config = runs.tiny(tmp_path, "told", validation="loop")
    first = Told(config, World(), {}, True)
    runs.train(World(), config, feed=first)
    assert first.told == [first.asked]
    shard = next(tmp_path.glob("told/checkpoints/step-000000008-a001/shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    again = Told(config, World(), {})
    runs.train(World(), config, feed=again)
    assert again.asked == [Stretch("train", 6, 8), Stretch("valid")]
    assert again.told == [
        [],
        again.asked,
    ]  # nothing is left to do after step 8, which turns out to be damaged


class EveryFifth(runs.Feed):
    """Says that every fifth example has a substitute, for two pictures."""

    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        for batch in super().train(first_step, end_step):
            found = [
                Replacement(n, path, "gone")
                for n in batch.numbers
                if n % 5 == 0
                for path in ("a.png", "b.png")
            ]
            yield MicroBatch(**(vars(batch) | {"replaced": tuple(found)}))


def train_with_substitutes(
    world: World, config: RunConfig, kill: dict[int, int] | None = None
) -> Outcome:
    return runs.train(world, config, feed=EveryFifth(config, world, kill or {}, patient=True))


def test_the_count_of_substitutes_is_the_same_after_a_kill_and_with_two_workers(
    tmp_path: Path,
) -> None:
    whole, killed = (
        runs.tiny(
            tmp_path, name, steps=6, checkpoint_interval=3, valid_examples=0, log_loss_interval=4
        )
        for name in ("whole", "killed")
    )
    in_workers(1, train_with_substitutes, whole)
    with pytest.raises(WorkerError):
        in_workers(2, train_with_substitutes, killed, {1: 5})
    in_workers(2, train_with_substitutes, killed)
    for config in (whole, killed):
        counts = {step: s.extra["substitutes"] for step, s in runs.checkpoints(config).items()}
        assert counts == {3: 3, 6: 5}  # examples 0, 5, 10 of 12, and 15, 20 of 24
        assert events(config, "end")[-1]["substitutes"] == 5


@pytest.mark.parametrize(
    ("limit", "step"), [("3", 4), ("4", 6), ("5", None), ("10%", 4), ("24%", None), (None, None)]
)
def test_a_run_that_trains_on_substitutes_ends_at_the_same_step_however_often_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, step: int | None
) -> None:
    monkeypatch.setattr(startup, "build", build_small)
    config = runs.tiny(
        tmp_path, "run", steps=6, checkpoint_interval=3, valid_examples=0, log_loss_interval=2,
        epoch_examples=20, max_replaced=limit,
    )  # fmt: skip
    for _ in range(2):
        if step is None:
            assert train_with_substitutes(World(), config).step == 6
            continue
        found = {4: (4, 16), 6: (5, 24)}[step]
        with pytest.raises(TrainingError) as ended:
            train_with_substitutes(World(), config)
        assert ended.value.line.startswith(
            "{} of {} examples were trained with a substitute for a picture that cannot be read, ".format(
                *found
            )
        )
        assert f"--max-replaced {limit} allows" in ended.value.line


@pytest.mark.parametrize("log_loss_interval", [1, 10])
def test_mattes_that_look_wrong_are_said_once_for_each_kind_with_a_count_and_an_example(
    tmp_path: Path, log_loss_interval: int
) -> None:
    """At the next row, or else at the end."""

    class Doubtful(runs.Feed):
        def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
            for batch in super().train(first_step, end_step):
                found = [Doubt("inverted", f"a/{n}.png") for n in batch.numbers[:2]]
                found += [Doubt("hard", "a/late.png")] if batch.step == 2 else []
                more = {"looked": len(batch.numbers), "doubts": tuple(found)}
                yield MicroBatch(**(vars(batch) | more))

    config = runs.tiny(
        tmp_path, "doubt", steps=4, valid_examples=0, log_loss_interval=log_loss_interval
    )
    runs.train(World(), config, feed=Doubtful(config, World(), {}))
    said = [
        (e["likely"], e["count"], e["looked"], e["path"])
        for e in sorted(events(config, "mattes"), key=lambda e: str(e["likely"]), reverse=True)
    ]
    size = config.data.batch_size
    if log_loss_interval == 1:
        expected = [("inverted", 2, size, "a/0.png"), ("hard", 1, 3 * size, "a/late.png")]
    else:
        expected = [("inverted", 8, 4 * size, "a/0.png"), ("hard", 1, 4 * size, "a/late.png")]
    assert said == expected


def test_a_feed_that_skips_a_step_is_an_error(tmp_path: Path) -> None:
    class Skipping(runs.Feed):
        def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
            return super().train(first_step + 1, end_step)

    config = runs.tiny(tmp_path, "skipping", valid_examples=0)
    with pytest.raises(TrainingError, match="the feed gave step 1, expected 0"):
        runs.train(World(), config, feed=Skipping(config, World(), {}))
    (end,) = events(config, "end")
    assert end["outcome"] == "failed"
