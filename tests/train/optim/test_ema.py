"""The average of the weights: what it is, that it lives through kills, and that a bad step leaves no trace in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raymat.checkpoint.snapshot import Snapshot
from raymat.config.sections import OptimConfig
from raymat.distributed.world import World
from raymat.errors import CheckpointError, ConfigError
from raymat.train.loop import startup, trainer
from raymat.train.loop.state import ResumeContract, RunState, capture, install, lasting
from raymat.train.loop.train_step import TrainStep
from raymat.train.observability.events import read_events
from raymat.train.optim.ema import WeightAverage
from raymat.train.optim.forward import ForwardPass
from raymat.train.run.selected_weights import read_weights
from tests.support import runs
from tests.support.small import build_small
from tests.support.workers import WorkerError, in_workers

CPU = torch.device("cpu")
GOOD, BAD = torch.tensor(False), torch.tensor(True)
RATES = {"backbone": 1e-3, "aspp": 1e-3, "decoder": 1e-3}
CONFIG = runs.tiny("memory://", "average", batch_size=2, crop=32, valid_examples=0)


@pytest.fixture(scope="module")
def batches() -> list[Any]:
    return list(runs.Feed(CONFIG, World(), {}).train(0, 4))


def new_step(decay: float | None = 0.999, precision: Any = "fp32") -> TrainStep:
    torch.set_num_threads(1)
    return TrainStep(
        build_small("base", None, 0),
        ForwardPass(stage="base", precision=precision, seed=0, resolution=32, device=CPU),
        World(),
        OptimConfig(ema_decay=decay),
    )


def average_of(step: TrainStep) -> dict[str, Tensor]:
    assert step.ema is not None
    return {name: tensor.clone() for name, tensor in step.ema.tensors().items()}


def scalar(decay: float) -> tuple[nn.Linear, WeightAverage]:
    """One weight, 0 at first, and its average."""
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(layer.weight)
    return layer, WeightAverage(layer, decay)


def follow(decay: float, weights: list[float]) -> list[float]:
    layer, average = scalar(decay)
    found = []
    for weight in weights:
        nn.init.constant_(layer.weight, weight)
        average.update(GOOD)
        found.append(average.tensors()["weight"].item())
    return found


def test_the_decay_is_warmed_up_by_the_steps_that_were_averaged() -> None:
    # 1/10 of 0 and 9/10 of 1; 2/11 of 0.9 and 9/11 of 2; 3/12 of 1.8 and 9/12 of 5.
    assert follow(0.999, [1.0, 2.0, 5.0]) == pytest.approx([0.9, 1.8, 4.2], abs=1e-15)


def test_the_decay_never_passes_the_one_that_is_asked_for() -> None:
    # 1/10 again, then 0.15 instead of 2/11 and 3/12.
    assert follow(0.15, [1.0, 2.0, 5.0]) == pytest.approx([0.9, 1.835, 4.52525], abs=1e-15)


def test_a_skipped_step_changes_nothing_not_even_the_warm_up() -> None:
    layer, average = scalar(0.999)
    nn.init.constant_(layer.weight, 1.0)
    average.update(GOOD)
    nn.init.constant_(layer.weight, 7.0)
    average.update(BAD)
    assert (average.tensors()["weight"].item(), average.state_dict()) == (0.9, {"updates": 1})
    nn.init.constant_(layer.weight, 2.0)
    average.update(GOOD)
    assert average.tensors()["weight"].item() == pytest.approx(1.8, abs=1e-15)


def test_a_step_that_is_not_finite_leaves_the_average_as_it_was(batches: list[Any]) -> None:
    step = new_step()
    step(batches[0], 2, RATES)
    before = average_of(step)
    hook = step.network.decoder.register_forward_hook(lambda m, i, o: o * float("nan"))
    assert step(batches[1], 2, RATES).health.read().skipped
    assert all(torch.equal(tensor, before[name]) for name, tensor in average_of(step).items())
    hook.remove()
    step(batches[2], 2, RATES)
    assert not torch.equal(average_of(step)["decoder.conv4.weight"], before["decoder.conv4.weight"])
    assert step.ema is not None
    assert step.ema.updates == 2


def test_statistics_are_averaged_and_counts_of_batches_copied(batches: list[Any]) -> None:
    step = new_step(precision="fp64")
    mean = step.network.state_dict()["backbone.bn.running_mean"].clone()
    for number, decay in enumerate([1 / 10, 2 / 11, 3 / 12]):
        step(batches[number], 2, RATES)
        live = step.network.state_dict()["backbone.bn.running_mean"]
        mean = decay * mean + (1 - decay) * live
    found = average_of(step)
    torch.testing.assert_close(found["backbone.bn.running_mean"], mean, rtol=1e-13, atol=0)
    assert found["backbone.bn.num_batches_tracked"].item() == 3


def test_a_run_without_an_average_trains_to_the_same_bits(batches: list[Any]) -> None:
    one, other = new_step(None), new_step(0.9)
    for batch in batches:
        one(batch, 2, RATES)
        other(batch, 2, RATES)
    with_average = other.network.state_dict()
    assert all(torch.equal(t, with_average[n]) for n, t in one.network.state_dict().items())


def test_a_captured_average_goes_on_to_the_bit(batches: list[Any]) -> None:
    first, promise = new_step(), ResumeContract(CONFIG, "synthetic")
    for batch in batches[:2]:
        first(batch, 2, RATES)
    saved = Snapshot.take(2, *capture(first, RunState(step=2), promise))
    own = {n.removeprefix("model/") for n in saved.tensors if n.startswith("model/")}
    assert {n.removeprefix("ema/") for n in saved.tensors if n.startswith("ema/")} == own
    assert saved.extra["ema"] == {"updates": 2}
    second = new_step()
    install(second, saved.tensors, saved.extra)
    for step in (first, second):
        for batch in batches[2:]:
            step(batch, 2, RATES)
    other = average_of(second)
    assert all(torch.equal(tensor, other[name]) for name, tensor in average_of(first).items())


def test_a_damaged_average_is_refused(batches: list[Any]) -> None:
    tensors, extra = capture(new_step(), RunState(), ResumeContract(CONFIG, "synthetic"))
    with pytest.raises(CheckpointError, match="ema: Object missing required field updates"):
        install(new_step(), tensors, extra | {"ema": {}})
    del tensors["ema/decoder.conv4.bias"]
    with pytest.raises(CheckpointError, match=r"average of the weights lacks decoder\.conv4\.bias"):
        install(new_step(), tensors, extra)


def test_what_is_copied_beside_a_step_changes_only_when_the_optimiser_does(
    batches: list[Any],
) -> None:
    step, promise = new_step(), ResumeContract(CONFIG, "synthetic")
    step(batches[0], 2, RATES)
    tensors, names = capture(step, RunState(), promise)[0], lasting(step)
    assert {name for name in tensors if name.startswith("ema/")} <= names
    before = {name: tensors[name].clone() for name in names}
    seen = []

    def look() -> None:
        seen.append([n for n in names if not torch.equal(before[n], tensors[n])])

    step.evaluators(())["ema_"](batches[1])
    step(batches[1], 2, RATES, before_update=look)
    assert seen == [[]]
    assert len([n for n in names if not torch.equal(before[n], tensors[n])]) > 20


def test_an_evaluation_of_the_average_is_one_of_a_network_with_its_weights(
    batches: list[Any],
) -> None:
    step = new_step()
    for batch in batches[:3]:
        step(batch, 2, RATES)
    live = {name: tensor.clone() for name, tensor in step.network.state_dict().items()}
    other = new_step(None)
    other.network.load_state_dict(average_of(step))
    mine, others = step.evaluators(("sad",)), other.evaluators(("sad",))
    assert list(others) == [""]
    assert mine["ema_"](batches[3]) == others[""](batches[3])
    assert mine[""](batches[3]) != others[""](batches[3])
    assert all(torch.equal(t, live[n]) for n, t in step.network.state_dict().items())


def train_small(world: World, config: Any, kill: dict[int, int]) -> trainer.Outcome:
    startup.build = build_small
    return runs.train(world, config, kill, patient=True)


def test_killed_in_the_middle_of_the_warm_up_the_average_is_the_same_to_the_bit(
    tmp_path: Path,
) -> None:
    undisturbed, killed = (
        runs.tiny(tmp_path, name, ema_decay=0.999, steps=6, checkpoint_interval=3, valid_examples=0)
        for name in ("undisturbed", "killed")
    )
    in_workers(2, train_small, undisturbed, {})
    with pytest.raises(WorkerError):
        in_workers(2, train_small, killed, {1: 4})
    assert in_workers(2, train_small, killed, {})[0].attempt == 2
    one, other = runs.checkpoints(undisturbed), runs.checkpoints(killed)
    assert [other[step].extra["ema"]["updates"] for step in (3, 6)] == [3, 6]
    for step in (3, 6):
        assert runs.differences(one[step], other[step]) == []


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process train the small network."""
    monkeypatch.setattr(startup, "build", build_small)


@pytest.mark.usefixtures("small")
def test_an_average_can_begin_later_but_neither_change_nor_end(tmp_path: Path) -> None:
    def config(steps: int, decay: float | None) -> Any:
        return runs.tiny(tmp_path, "later", steps=steps, ema_decay=decay, valid_examples=0)

    runs.train(World(), config(2, None))
    runs.train(World(), config(4, 0.5))
    (told,) = (e for e in read_events(runs.store_of(config(4, 0.5))) if e["kind"] == "ema")
    assert told["summary"] == "the average of the weights begins with those of step 2"
    found = runs.checkpoints(config(4, 0.5))
    assert not [name for name in found[2].tensors if name.startswith("ema/")]
    assert found[4].extra["ema"] == {"updates": 2}
    selected = read_weights(f"{tmp_path}/later@ema").weights
    assert torch.equal(selected["decoder.conv4.bias"], found[4].tensors["ema/decoder.conv4.bias"])
    assert selected.keys() == {n.removeprefix("ema/") for n in found[4].tensors if "ema/" in n}
    for changed, words in ((None, "is None"), (0.9, r"is 0\.9")):
        with pytest.raises(ConfigError, match=rf"--ema-decay was 0\.5, {words}"):
            runs.train(World(), config(6, changed))


@pytest.mark.usefixtures("small")
def test_a_run_with_an_average_begins_with_its_first_weights(tmp_path: Path) -> None:
    first = runs.tiny(tmp_path, "first", steps=2, valid_examples=0)
    runs.train(World(), first)
    again = runs.tiny(
        tmp_path, "again", steps=2, valid_examples=0, ema_decay=0.9, init=f"{tmp_path}/first",
        lr_backbone=0.0,
    )  # fmt: skip
    runs.train(World(), again)
    name = "backbone.conv.weight"
    start = runs.checkpoints(first)[2].tensors[f"model/{name}"]
    assert torch.equal(runs.checkpoints(again)[2].tensors[f"ema/{name}"], start)
