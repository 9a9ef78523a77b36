"""Laws of `raymat average`, on networks of which what they predict can be worked out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import Tensor, nn

from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.cli.average import Options, average, text
from raymat.config.run import to_dict
from raymat.config.sections import ModelConfig
from raymat.data.composite import Augmentation, composite
from raymat.distributed.world import World
from raymat.errors import ConfigError, WeightsError
from raymat.model.matting import build
from raymat.storage.store import Store
from raymat.train.run.open_run import open_run
from raymat.train.run.selected_weights import build_network, read_weights
from tests.support import runs
from tests.support.datakit import write_dataset

State = dict[str, Tensor]
EXAMPLES = 8


def config_of(folder: Path, name: str, stage: Any = "base", **options: Any) -> Any:
    return runs.tiny(folder, name, stage, **options)


def network(seed: int, alpha: float | None = None) -> State:
    """A new network's weights; with `alpha` it predicts that everywhere, whatever it sees."""
    state = build("base", ModelConfig(backbone="mobilenetv2"), seed).state_dict()
    if alpha is not None:
        state["decoder.conv4.weight"].zero_()
        state["decoder.conv4.bias"].fill_(alpha)
    return state


def commit(folder: Path, name: str, state: State, step: int = 10, **options: Any) -> str:
    """A run with one checkpoint; its URL with the step."""
    config = to_dict(config_of(folder, name, **options))
    tensors = {f"model/{n}": t for n, t in state.items()}
    snapshot = Snapshot.take(step, tensors, {"config": config})
    write_share(Store.open(str(folder), name), CheckpointId(step, 1), snapshot, World(), name)
    return f"{folder}/{name}@{step}"


def cook(folder: Path, *what: str, out: str = "out.pth", **options: Any) -> tuple[Any, State]:
    path = str(folder / out)
    asked = Options(what=what, output=path, examples=EXAMPLES, device="cpu", **options)
    done, written = average(asked)
    print(text(asked, done, written))
    return done, read_weights(path).weights


def training_batches(folder: Path) -> list[tuple[Tensor, Tensor]]:
    """What a run trains on in its first two steps of four."""
    config = config_of(folder, "any")
    found = []
    for batch in runs.Feed(config, World(), {}).train(0, EXAMPLES // 4):
        made = composite(
            *(torch.tensor(array) for array in (batch.fgr, batch.pha, batch.bgr)),
            Augmentation(config.data.seed, batch.numbers, config.data.resolution),
        )
        found.append((made.src, made.bgr))
    return found


class OneInput(nn.Module):
    """As torch's update_bn calls a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Any:
        return self.network(pictures[:, :3], pictures[:, 3:])


def by_torch(state: State, batches: list[tuple[Tensor, Tensor]]) -> State:
    """The weights with statistics as `torch.optim.swa_utils.update_bn` computes them."""
    made = build("base", ModelConfig(backbone="mobilenetv2"), 0)
    made.load_state_dict(state)
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    pictures = [torch.cat(pair, dim=1) for pair in batches]
    torch.optim.swa_utils.update_bn(pictures, OneInput(made))
    return made.state_dict()


@pytest.mark.slow
def test_the_average_of_one_is_it_with_the_statistics_of_the_runs_first_examples(
    tmp_path: Path,
) -> None:
    state = network(3)
    done, found = cook(tmp_path, commit(tmp_path, "a", state))
    assert done.examples == EXAMPLES
    expected = by_torch(state, training_batches(tmp_path))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    assert torch.equal(found["aspp.project.0.weight"], state["aspp.project.0.weight"])
    assert not torch.allclose(found["backbone.features.0.1.running_var"], torch.ones(32), rtol=0.1)


def test_weights_are_the_mean_and_the_order_of_the_arguments_changes_no_bit(tmp_path: Path) -> None:
    states = [network(seed) for seed in (3, 4, 5)]
    urls = [commit(tmp_path, f"r{i}", state) for i, state in enumerate(states)]
    torch.save(states[2], tmp_path / "third.pth")
    _, found = cook(tmp_path, urls[0], urls[1], str(tmp_path / "third.pth"))
    cook(tmp_path, str(tmp_path / "third.pth"), urls[1], urls[0], out="again.pth")
    assert (tmp_path / "out.pth").read_bytes() == (tmp_path / "again.pth").read_bytes()
    names = [
        name for name, _ in build("base", ModelConfig(backbone="mobilenetv2"), 0).named_parameters()
    ]
    for name in names:
        a, b, c = (state[name].double() for state in states)
        assert torch.equal(found[name], ((a + b + c) / 3).float()), name


def test_averaged_statistics_are_wrong_and_the_new_ones_right(tmp_path: Path) -> None:
    """Behind each first convolution, the variance of what the average sees over what its statistics say: 1 if they are right."""
    a, b = (by_torch(network(seed), training_batches(tmp_path)) for seed in (3, 4))
    _, found = cook(tmp_path, commit(tmp_path, "a", a), commit(tmp_path, "b", b))
    name = "backbone.features.0"
    pictures = torch.cat([torch.cat(pair, dim=1) for pair in training_batches(tmp_path)][:1])

    seen = nn.functional.conv2d(pictures, found[f"{name}.0.weight"], stride=2, padding=1).var(
        (0, 2, 3)
    )
    averaged = (a[f"{name}.1.running_var"] + b[f"{name}.1.running_var"]) / 2
    old = float((seen / averaged).median())
    new = float((seen / found[f"{name}.1.running_var"]).median())
    print(f"variance seen over variance kept: averaged statistics {old:.2f}, new ones {new:.2f}")
    assert old < 0.7
    assert 0.7 < new < 1.4


def test_the_file_says_what_was_averaged(tmp_path: Path) -> None:
    a = commit(tmp_path, "a", network(3))
    torch.save(network(4), tmp_path / "b.pth")
    cook(tmp_path, a, str(tmp_path / "b.pth"))
    cook(tmp_path, a, str(tmp_path / "b.pth"), out="out.safetensors")
    told = json.loads((tmp_path / "out.pth.json").read_text())
    with safetensors.safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert json.loads(file.metadata()["raymat"]) == told
    assert not (tmp_path / "out.safetensors.json").exists()
    assert told["averaged"] == [
        {"what": a, "run": f"{tmp_path}/a", "checkpoint": "step-000000010-a001", "ema": False},
        {"what": f"{tmp_path}/b.pth", "run": None, "checkpoint": None, "ema": False},
    ]
    assert (told["kind"], told["stage"], told["backbone"]) == ("uniform", "base", "mobilenetv2")
    assert told["statistics"] | {} == told["statistics"]
    assert (told["statistics"]["examples"], told["statistics"]["synthetic"]) == (8, 20)
    first, second = (
        read_weights(str(tmp_path / f"out.{e}")).weights for e in ("pth", "safetensors")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not build_network(read_weights(str(tmp_path / "out.safetensors"))).training


def mean_alpha(folder: Path) -> float:
    """Of the validation examples, each counting alike."""
    config = config_of(folder, "any")
    means = []
    for batch in runs.Feed(config, World(), {}).valid():
        made = composite(
            *(torch.tensor(array) for array in (batch.fgr, batch.pha, batch.bgr)),
            None,
        )
        means += made.pha.double().mean((1, 2, 3)).tolist()
    return sum(means) / len(means)


def test_greedy_takes_what_makes_validation_better_and_refuses_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The mean squared error of a constant is a parabola about the mean alpha.
    mean = mean_alpha(tmp_path)
    assert 0.1 < mean < 0.9
    off = {"a": -0.05, "b": 0.06, "c": 0.09}  # a: 0.05 off; a and b: 0.005 off; with c: 0.033 off
    urls = [commit(tmp_path, name, network(3, mean + delta)) for name, delta in off.items()]
    done, found = cook(tmp_path, *urls, greedy=True, metric="mse")
    assert [(t.name, t.taken) for t in done.trials] == [
        (urls[0], True),
        (urls[1], True),
        (urls[2], False),
    ]
    costs = [t.together for t in done.trials]
    assert costs[1] < costs[0]
    assert costs[1] < costs[2]
    assert found["decoder.conv4.bias"][0] == pytest.approx(mean + 0.005, abs=1e-6)
    told = json.loads((tmp_path / "out.pth.json").read_text())
    assert [trial["taken"] for trial in told["trials"]] == [True, True, False]
    assert (told["kind"], told["metric"], len(told["averaged"])) == ("greedy", "mse", 2)
    printed = capsys.readouterr().out
    assert "refused" in printed
    assert "average of 2 networks, statistics of 8 examples" in printed


def test_what_does_not_go_together_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    a = commit(tmp_path, "a", network(3))
    other = commit(tmp_path, "b", network(3), synthetic=21)
    file = str(tmp_path / "w.pth")
    torch.save(network(3), file)
    refined = str(tmp_path / "refined.pth")
    torch.save(build("refine", ModelConfig(backbone="mobilenetv2"), 3).state_dict(), refined)
    poisoned = network(3, alpha=float("nan"))
    torch.save({"model": {f"module.{n}": t for n, t in poisoned.items()}}, tmp_path / "nan.pth")
    before = sorted(path.name for path in tmp_path.iterdir())
    for what, options, line in [
        ((a, other), {}, "are of runs with different datasets: give --dataset"),
        ((file,), {}, "know no dataset: give --dataset and --backgrounds, or --synthetic N"),
        ((a, a), {}, "one of them is named twice"),
        ((), {}, "expected what to average"),
        ((a,), {"out": "w.pth"}, "exists: use another name, or --force"),
        ((a,), {"out": "w.onnx"}, "must end in .pth or .safetensors"),
        ((a,), {"out": "none/w.pth"}, "there is no folder"),
        ((a,), {"greedy": True, "valid_examples": 0}, "--greedy needs validation examples"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=line):
            cook(tmp_path, *what, **options)
    with pytest.raises(WeightsError, match="another network than"):
        cook(tmp_path, a, refined)
    with pytest.raises(WeightsError, match=r"nan.pth: 1 of 362 .* the first decoder.conv4.bias"):
        cook(tmp_path, a, str(tmp_path / "nan.pth"))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_run_whose_dataset_nobody_knows_is_told_so(tmp_path: Path) -> None:
    a = commit(tmp_path, "a", network(3), synthetic=None, dataset="/d", backgrounds="/b")
    with pytest.raises(ConfigError, match=r"has no run.json, which knows its dataset"):
        cook(tmp_path, a)
    done, _ = cook(tmp_path, a, synthetic=4)
    assert done.examples == 8


def test_the_runs_own_files_are_found_by_its_listing_and_the_run_is_left_as_it_is(
    tmp_path: Path,
) -> None:
    dataset, walls = write_dataset(str(tmp_path / "files"))
    options = {"synthetic": None, "dataset": dataset, "backgrounds": walls, "valid_examples": 2}
    store = Store.open(str(tmp_path), "a")
    open_run(config_of(tmp_path, "a", **options), store)
    before = {info.path: store.read(info.path) for info in store.list()}
    # The run was made longer since: its checkpoint knows another length than its run.json.
    a = commit(tmp_path, "a", network(3), **options, steps=5)
    _, found = cook(tmp_path, a, out="own.pth")
    assert {path: store.read(path) for path in before} == before
    assert sorted(info.path for info in store.list() if "checkpoints" not in info.path) == sorted(
        before
    )
    _, given = cook(tmp_path, a, out="given.pth", dataset=dataset, backgrounds=walls)
    assert all(torch.equal(tensor, given[name]) for name, tensor in found.items())
    told = json.loads((tmp_path / "own.pth.json").read_text())
    assert (told["statistics"]["dataset"], told["statistics"]["backgrounds"]) == (dataset, walls)


def test_the_command_writes_the_file_and_says_so(tmp_path: Path, raymat: Any) -> None:
    a, b = (commit(tmp_path, name, network(3)) for name in "ab")
    path = str(tmp_path / "out.pth")
    code, out, err = raymat("average", a, b, "-o", path, "--examples", "4", "--device", "cpu")
    assert (code, err) == (0, [])
    assert out[:2] == [f"{url} (step-000000010-a001)" for url in (a, b)]
    assert out[2].startswith(f"{path}: ")
    assert out[2].endswith("average of 2 networks, statistics of 4 examples")
    code, out, err = raymat("average", a, "-o", path)
    assert (code, out, len(err)) == (2, [], 1)
