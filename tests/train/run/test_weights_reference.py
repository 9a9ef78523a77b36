"""Laws of choosing weights by a text: what each form means, that nothing unverified is read, one line for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.config.run import to_dict
from raymat.config.sections import ModelConfig
from raymat.distributed.collectives import Group
from raymat.distributed.world import World
from raymat.errors import WeightsError
from raymat.model.matting import MattingRefine, build
from raymat.storage.store import Store
from raymat.train.loop.startup import initialise_from
from raymat.train.run.selected_weights import build_network, named_source, read_weights
from raymat.train.run.weights_reference import parse_reference, pin
from tests.support import runs
from tests.support.workers import in_workers

LOSSES = {1000: 0.5, 2000: 0.2, 3000: 0.3, 4000: None}


class Run:
    """A run's folder with checkpoints whose only weight is their step, averaged a half more."""

    def __init__(self, folder: Path) -> None:
        self.url, self.store = f"{folder}/night", Store.open(str(folder), "night")

    def commit(self, step: int, attempt: int = 1, *, ranks: int = 2, **more: Any) -> None:
        ema = more.pop("ema", True)
        tensors = {"model/a": torch.tensor([float(step)]), "optimizer/m/a": torch.zeros(9)}
        tensors |= {"ema/a": torch.tensor([step + 0.5])} if ema else {}
        told = [{"step": s, "loss": v} for s, v in LOSSES.items() if s <= step]
        snapshot = Snapshot.take(step, tensors, {"validations": told} | more)
        for rank in range(ranks):
            write_share(self.store, CheckpointId(step, attempt), snapshot, World(rank, 2), "id")

    def damage(self, step: int, attempt: int = 1) -> None:
        path = f"checkpoints/{CheckpointId(step, attempt)}/shard-00000-of-00002.safetensors"
        data = bytearray(self.store.read(path))
        data[-1] ^= 1
        self.store.write(path, bytes(data))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path)
    for step in (1000, 2000, 3000, 4000):
        made.commit(step)
    return made


def weight(what: str, **more: Any) -> float:
    return float(read_weights(what, **more).weights["a"])


def refusal(what: str) -> str:
    with pytest.raises(WeightsError) as caught:
        read_weights(what)
    return caught.value.line


@pytest.mark.parametrize(
    ("form", "value"),
    [
        ("", 4000.0), ("/", 4000.0), ("@3000", 3000.0), ("@best", 2000.0), ("@ema", 4000.5), ("@3000@ema", 3000.5),
        ("@best@ema", 2000.5), ("/checkpoints/step-000001000-a001", 1000.0),
        ("/checkpoints/step-000001000-a001@ema", 1000.5),
    ],
)  # fmt: skip
def test_each_form_means_its_checkpoint(run: Run, form: str, value: float) -> None:
    found = read_weights(run.url + form)
    assert found.weights == {"a": torch.tensor([value])}
    step = int(value)
    assert (found.step, found.checkpoint) == (step, CheckpointId(step, 1))
    assert found.run_url == run.store.url
    assert found.ema == form.endswith("@ema")
    assert (found.stage, found.config) == ("base", None)


def test_the_weights_do_not_hold_the_rest_of_the_checkpoint_in_memory(run: Run) -> None:
    (tensor,) = read_weights(run.url).weights.values()
    assert tensor.untyped_storage().nbytes() == 4


def test_of_two_attempts_of_a_step_the_newer_counts_unless_it_is_damaged(run: Run) -> None:
    run.commit(3000, attempt=2)
    for form in ("@3000", "@3000@ema"):
        assert read_weights(run.url + form).checkpoint == CheckpointId(3000, 2)
    run.damage(3000, attempt=2)
    assert read_weights(run.url + "@3000").checkpoint == CheckpointId(3000, 1)


def test_a_damaged_newest_is_passed_over_and_said_so(run: Run) -> None:
    run.damage(4000)
    skipped: list[tuple[CheckpointId, str]] = []
    assert weight(run.url, on_skip=lambda c, why: skipped.append((c, why))) == 3000.0
    ((checkpoint, reason),) = skipped
    assert checkpoint == CheckpointId(4000, 1)
    assert "another digest" in reason


def test_where_the_best_is_gone_or_damaged_the_next_best_is_taken_and_said_so(run: Run) -> None:
    run.damage(2000)
    told: list[str] = []
    assert weight(run.url + "@best", on_skip=lambda _, why: told.append(why)) == 3000.0
    assert "step-000002000-a001 is damaged" in told[0]
    gone = [i.path for i in run.store.list("checkpoints/step-000002000-a001")]
    run.store.delete(gone)
    told.clear()
    assert weight(run.url + "@best", on_skip=lambda _, why: told.append(why)) == 3000.0
    assert told == ["the checkpoint of step 2000 (loss 0.2) is no longer there"]


def test_best_is_by_the_metric_and_direction_of_the_run(tmp_path: Path) -> None:
    made = Run(tmp_path)
    told = [
        {"step": 10, "loss": 0.1, "metrics": {"loss": 0.1, "sad": 9.0}},
        {"step": 20, "loss": 0.2, "metrics": {"loss": 0.2, "sad": 3.0}},
        {"step": 30, "loss": 0.3, "metrics": {"loss": 0.3, "sad": None}},
    ]
    for step in (10, 20, 30):
        made.commit(step, validations=told, config={"best_metric": "sad"})
    assert weight(made.url + "@best") == 20.0
    made.commit(40, validations=told, config={"best_metric": "sad", "best_mode": "max"})
    assert weight(made.url + "@best") == 10.0


def test_wrong_inputs_are_one_line_that_says_what_to_do(run: Run, tmp_path: Path) -> None:
    url = run.store.url
    assert (
        f"there is no checkpoint of step 2600 in {url}: the nearest that is committed is @3000"
        in refusal(run.url + "@2600")
    )
    assert "there is no step-000002000-a009 in" in refusal(
        f"{run.url}/checkpoints/step-000002000-a009"
    )
    assert "after a run's URL expected @STEP, @best or @ema (last), got @latest" in refusal(
        run.url + "@latest"
    )
    assert "got @ema@best" in refusal(run.url + "@ema@best")
    assert "expected @ema only, got @best" in refusal(
        f"{run.url}/checkpoints/step-000002000-a001@best"
    )
    assert "is neither a weights file" in refusal(f"{tmp_path}/nothing")
    assert "leave out the @" in refusal(f"{tmp_path}/w.pth@ema")
    assert "no such weights file" in refusal(f"{tmp_path}/w.safetensors")
    run.damage(1000)
    assert "step-000001000-a001 is damaged: shard-00000-of-00002" in refusal(run.url + "@1000")


def test_a_run_without_validation_or_average_or_checkpoint_says_so(tmp_path: Path) -> None:
    made = Run(tmp_path)
    made.store.write("run.json", b"{}")
    assert "has no checkpoint yet" in refusal(made.url)
    made.commit(7, ranks=1)
    assert "step-000000007-a001 is torn" in refusal(made.url)
    made.commit(8, ema=False)
    assert "has no validation with a finite loss yet" in refusal(made.url + "@best")
    assert "holds no averaged weights, the run was trained without: leave out @ema" in refusal(
        made.url + "@ema"
    )


def test_best_of_a_run_whose_validated_checkpoints_are_all_gone_names_the_nearest(
    tmp_path: Path,
) -> None:
    made = Run(tmp_path)
    made.commit(3500)
    assert (
        "no checkpoint of any step that was validated: the nearest that is committed is @3500"
        in refusal(made.url + "@best")
    )


def test_an_at_sign_before_the_runs_name_is_a_part_of_the_path() -> None:
    assert parse_reference("/home/a@b/runs/night@5").url == "/home/a@b/runs/night"
    assert parse_reference("s3://b/w@2.pth").is_file


def test_a_pinned_text_means_the_same_checkpoint_for_ever(run: Run) -> None:
    found = read_weights(run.url + "@best@ema")
    assert found.checkpoint is not None
    text = pin(run.url + "@best@ema", found.checkpoint)
    assert text == f"{run.url}/checkpoints/step-000002000-a001@ema"
    assert weight(text) == 2000.5


# Networks.


def small(stage: Any = "base", seed: int = 3, kernel: Any = 3) -> Any:
    return build(stage, ModelConfig(backbone="mobilenetv2", refine_kernel_size=kernel), seed)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize(("stage", "kernel"), [("base", 3), ("refine", 1)])
def test_of_a_file_backbone_and_stage_are_told_from_the_names(
    tmp_path: Path, ending: str, stage: Any, kernel: int
) -> None:
    state, path = small(stage, kernel=kernel).state_dict(), str(tmp_path / f"w.{ending}")
    (torch.save if ending == "pth" else safetensors.torch.save_file)(state, path)
    found = read_weights(path)
    assert (found.stage, found.run_url, found.checkpoint, found.step) == (stage, None, None, None)
    network = build_network(found)
    assert isinstance(network, MattingRefine) == (stage == "refine")
    assert not network.training
    assert_equal(network.state_dict(), state)


def test_part_of_a_network_is_none(tmp_path: Path) -> None:
    state = small().state_dict()
    torch.save({n: t for n, t in state.items() if n != "aspp.project.0.weight"}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="is no whole base network: 1 tensors"):
        build_network(read_weights(str(tmp_path / "w.pth")))
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="is no matting network"):
        build_network(read_weights(str(tmp_path / "x.pth")))


def test_a_damaged_safetensors_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"nothing of the kind")
    assert "neither a PyTorch nor a safetensors file" in refusal(str(tmp_path / "w.safetensors"))


def commit_network(folder: Path, seed: int, step: int, **more: Any) -> None:
    config = runs.tiny(folder, "real", "refine", refine_mode="thresholding", refine_threshold=0.25)
    weights, average = small("refine", seed).state_dict(), small("refine", seed + 1).state_dict()
    tensors = {f"model/{n}": t for n, t in weights.items()}
    tensors |= {f"ema/{n}": t for n, t in average.items()}
    extra = {"config": to_dict(config), "validations": [{"step": 10, "loss": 1.0}]} | more
    snapshot = Snapshot.take(step, tensors, extra)
    write_share(Store.open(str(folder), "real"), CheckpointId(step, 1), snapshot, World(), "id")


def test_a_run_gives_its_configuration_and_its_network(tmp_path: Path) -> None:
    commit_network(tmp_path, 5, 10)
    found = read_weights(f"{tmp_path}/real@ema")
    assert found.config is not None
    assert (found.stage, found.config.model.refine_threshold) == ("refine", 0.25)
    network = build_network(found)
    assert isinstance(network, MattingRefine)
    assert network.refiner.mode == "thresholding"
    assert_equal(network.state_dict(), small("refine", 6).state_dict())
    commit_network(tmp_path, 5, 20, config={"stage": "base", "of_tomorrow": 1})
    assert "of another raymat (unknown option of_tomorrow)" in refusal(f"{tmp_path}/real")


def start_from(world: World, urls: list[str]) -> list[tuple[Tensor, str] | str]:
    """Of each URL a weight of the network and where it came from, or the error."""
    torch.set_num_threads(1)
    network, group = small("refine", seed=world.rank), Group(world, torch.device("cpu"))
    found: list[tuple[Tensor, str] | str] = []
    for url in urls:
        try:
            source = initialise_from(network, url, group).source
        except WeightsError as error:
            found.append(error.line)
        else:
            found.append((network.state_dict()["aspp.project.0.weight"].clone(), source))
    return found


def test_a_checkpoint_is_named_once_in_the_source_of_weights() -> None:
    chosen = CheckpointId(160, 2)
    assert named_source("runs/a@best", chosen) == "runs/a@best (step-000000160-a002)"
    pinned = "/data/runs/a/checkpoints/step-000000160-a002"
    assert named_source(pinned, chosen) == pinned
    assert named_source("base.pth", None) == "base.pth"


@pytest.mark.slow
def test_all_workers_start_from_the_checkpoint_that_the_first_chose(tmp_path: Path) -> None:
    commit_network(tmp_path, 5, 10)
    commit_network(tmp_path, 7, 20)
    forms = {"@best": 5, "@best@ema": 6, "@20": 7, "": 7}
    urls = [f"{tmp_path}/real{form}" for form in (*forms, "@21")]
    name = "aspp.project.0.weight"
    expected = {seed: small("refine", seed).state_dict()[name] for seed in (5, 6, 7)}
    for *loaded, refused in in_workers(2, start_from, urls):
        for (weight, _), (form, seed) in zip(loaded, forms.items(), strict=True):
            assert torch.equal(weight, expected[seed]), form
        assert loaded[-1][1] == f"{tmp_path}/real (step-000000020-a001)"
        assert "the nearest that is committed is @20" in refused


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [n for n in a if not torch.equal(a[n], b[n])] == []
