"""Laws of `raymat export`: a small plain file that loads anywhere, whole or not at all."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from raymat.config.run import to_dict
from raymat.config.sections import ModelConfig, Stage
from raymat.export.exporter import export_network
from raymat.model.matting import MattingBase, build
from raymat.model.pretrained import load_init
from tests.support import runs
from tests.support.paths import GOLDEN

KEYS = GOLDEN / "state_dict_keys.json"


def _network(stage: Any, seed: int) -> MattingBase:
    return build(stage, ModelConfig(backbone="mobilenetv2"), seed)


@pytest.mark.parametrize("stage", get_args(Stage))
def test_the_file_is_the_network_under_its_published_names(
    local: Any, raymat: Any, tmp_path: Path, stage: Any
) -> None:
    network = _network(stage, seed=1)
    state = {f"model/{name}": tensor for name, tensor in network.state_dict().items()}
    moments = {f"optimizer/exp_avg/{n}": torch.ones_like(p) for n, p in network.named_parameters()}
    local.commit(10, tensors=state | moments)
    path = tmp_path / "weights.pth"
    code, out, err = raymat("export", local.url, "-o", str(path))
    assert (code, err) == (0, [])
    after = path.stat().st_size
    assert out == [
        f"{local.url}: step-000000010-a001",
        f"{path}: {after / 1e6:.1f} MB, weights, {len(network.state_dict())} tensors",
        "read back: equal to the bit",
    ]
    loaded = torch.load(path, weights_only=True)
    published = json.loads(KEYS.read_text())[f"{stage}-mobilenetv2"]
    assert {name: list(tensor.shape) for name, tensor in loaded.items()} == published
    assert type(loaded) is dict
    # Nothing but these weights is in the file: no moment, no shard around a view.
    weights = sum(t.numel() * t.element_size() for t in loaded.values())
    assert after < 1.05 * weights + 100_000
    other = _network(stage, seed=2)
    report = load_init(other, str(path))
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in network.state_dict().items())


def _value(path: Path) -> float:
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    assert loaded.keys() == {"a"}
    return float(loaded["a"][0])


def test_a_run_stands_for_its_newest_verified_checkpoint(
    local: Any, raymat: Any, tmp_path: Path
) -> None:
    for step in (10, 20, 30):
        local.commit(step)
    (shard,) = Path(local.url).glob("checkpoints/step-000000030*/shard-00000*")
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    path = tmp_path / "w.pth"
    code, _, err = raymat("export", local.url, "--output", str(path))
    assert (code, _value(path)) == (0, 20.0)
    assert len(err) == 1
    assert err[0].startswith("note: passed over: step-000000030-a001 is damaged")
    one = f"{local.url}/checkpoints/step-0000000{{}}0-a001"
    assert raymat("export", one.format(1), "-o", str(path), "--force")[0] == 0
    assert _value(path) == 10.0
    code, _, err = raymat("export", one.format(3), "-o", str(path), "--force")
    assert (code, len(err), _value(path)) == (2, 1, 10.0)


def test_it_reads_any_storage_that_fsspec_does(made: Any, tmp_path: Path) -> None:
    made.commit(10)
    found = export_network(made.url, str(tmp_path / "w.pth"))
    assert (found.selected.step, len(found.selected.weights)) == (10, 1)
    assert _value(tmp_path / "w.pth") == 10.0


def test_an_existing_file_is_replaced_only_by_force(
    local: Any, raymat: Any, tmp_path: Path
) -> None:
    local.commit(10)
    path = tmp_path / "w.pth"
    path.write_bytes(b"mine")
    code, _, err = raymat("export", local.url, "-o", str(path))
    assert (code, path.read_bytes()) == (2, b"mine")
    assert err == [f"raymat: error: {path} exists: use another name, or --force to replace it"]
    assert raymat("export", local.url, "-o", str(path), "--force")[0] == 0
    assert _value(path) == 10.0
    path.unlink()
    code, _, err = raymat("export", local.url, "-o", str(path))
    assert (code, path.exists()) == (2, False)
    assert err == [f"raymat: error: {path}.json exists: use another name, or --force to replace it"]


def test_a_link_is_followed(local: Any, tmp_path: Path) -> None:
    local.commit(10)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "w.pth"
    link.symlink_to(tmp_path / "elsewhere/real.pth")
    export_network(local.url, str(link))
    assert link.is_symlink()
    assert _value(tmp_path / "elsewhere/real.pth") == 10.0


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("nowhere/w.pth", "there is no folder {tmp}/out/nowhere"),
        ("weights", "--output must end in .pth, .pt, .ckpt, .bin or .safetensors"),
        ("net.torchscript", ".ts (TorchScript) or .onnx: got"),
        ("folder.pth", "something that is no file is there"),
        ("pipe.pth", "something that is no file is there"),
        (f"{'x' * 250}.pth", "File name too long"),
    ],
)
def test_a_wrong_path_is_one_line_and_leaves_nothing(
    local: Any, raymat: Any, tmp_path: Path, output: str, line: str
) -> None:
    local.commit(10)
    folder = tmp_path / "out"
    (folder / "folder.pth").mkdir(parents=True)
    os.mkfifo(folder / "pipe.pth")
    code, out, err = raymat("export", local.url, "-o", f"{folder}/{output}", "--force")
    assert (code, out, len(err)) == (2, [], 1)
    assert line.format(tmp=tmp_path) in err[0]
    assert sorted(os.listdir(folder)) == ["folder.pth", "pipe.pth"]


def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    local: Any, raymat: Any, tmp_path: Path
) -> None:
    local.commit(10, tensors={"model/a": torch.zeros(100_000)})
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "w.pth").write_bytes(b"mine")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        code, out, err = raymat("export", local.url, "-o", str(folder / "w.pth"), "--force")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, out, len(err)) == (2, [], 1)
    assert "no space left there" in err[0]
    assert os.listdir(folder) == ["w.pth"]
    assert (folder / "w.pth").read_bytes() == b"mine"


def test_a_wrapped_state_dict_is_exported_plain_and_without_what_is_not_the_networks(
    raymat: Any, tmp_path: Path
) -> None:
    state = _network("base", seed=1).state_dict()
    names = {f"model._orig_mod.{name}": tensor for name, tensor in state.items()}
    names["model.loss.weight"] = torch.ones(3)
    torch.save({"state_dict": names, "optimizer_states": [{}]}, tmp_path / "lightning.ckpt")
    path = tmp_path / "w.pth"
    code, out, err = raymat("export", str(tmp_path / "lightning.ckpt"), "-o", str(path))
    assert (code, err) == (0, [])
    assert out[1].endswith(" MB, weights, 362 tensors")
    loaded = torch.load(path, weights_only=True)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def test_a_file_without_a_whole_finite_network_is_not_exported(raymat: Any, tmp_path: Path) -> None:
    state = dict(_network("base", seed=1).state_dict())
    cases: dict[str, tuple[Any, str]] = {
        "foreign": (
            {"state_dict": {"fc.weight": torch.ones(2)}},
            "nothing in {} is a network: its tensors are named state_dict.fc.weight; its keys are state_dict",
        ),
        "unknown": (
            {"fc.weight": torch.ones(2)},
            "{} is no matting network: its 1 tensors have no backbone that is known",
        ),
        "part": (
            {name: tensor for name, tensor in state.items() if name != "decoder.conv4.bias"},
            "{} is no whole base network: 1 tensors are missing or of another shape, the first decoder.conv4.bias",
        ),
        "shape": (
            state | {"decoder.conv4.bias": torch.ones(5)},
            "{} is no whole base network: 1 tensors are missing or of another shape, the first decoder.conv4.bias",
        ),
        "infinite": (
            state | {"decoder.conv4.bias": torch.full((37,), torch.inf)},
            "{}: 1 of 362 tensors hold NaN or infinity, the first decoder.conv4.bias (37 of 37 values); "
            "give weights whose training stayed finite",
        ),
    }  # fmt: skip
    for name, (content, line) in cases.items():
        source = str(tmp_path / f"{name}.pth")
        torch.save(content, source)
        code, out, err = raymat("export", source, "-o", str(tmp_path / "out.pth"))
        assert (code, out, err) == (2, [], [f"raymat: error: {line.format(source)}"])
        assert not list(tmp_path.glob("out*"))


def test_a_checkpoint_with_a_weight_that_is_not_finite_is_not_exported(
    local: Any, raymat: Any, tmp_path: Path
) -> None:
    state = {f"model/{name}": tensor for name, tensor in _network("base", 1).state_dict().items()}
    state["model/decoder.conv4.bias"][1] = float("nan")
    local.commit(10, tensors=state, config=to_dict(runs.tiny(local.url, "run", "base")))
    code, out, err = raymat("export", local.url, "-o", str(tmp_path / "w.pth"))
    assert (code, out) == (2, [])
    assert err == [
        f"raymat: error: {local.url} (step-000000010-a001): 1 of 362 tensors hold NaN or infinity, the first "
        "decoder.conv4.bias (1 of 37 values); give weights whose training stayed finite"
    ]
    assert not (tmp_path / "w.pth").exists()


def test_what_holds_no_network_is_refused(local: Any, raymat: Any, tmp_path: Path) -> None:
    local.commit(10, tensors={"optimizer/a": torch.zeros(3)})
    code, _, err = raymat("export", local.url, "-o", str(tmp_path / "w.pth"))
    assert code == 2
    assert "holds no network" in err[0]


def test_a_run_without_a_good_checkpoint_is_refused(
    local: Any, raymat: Any, tmp_path: Path
) -> None:
    local.commit(10, ranks=1)
    code, _, err = raymat("export", local.url, "-o", str(tmp_path / "w.pth"))
    assert code == 2
    assert err[-1].startswith(f"raymat: error: no checkpoint that verifies for {local.url}: ")
    assert not (tmp_path / "w.pth").exists()
