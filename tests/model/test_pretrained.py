from __future__ import annotations

import argparse
import gzip
import io
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import fsspec
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from raymat.config.sections import ModelConfig
from raymat.errors import WeightsError
from raymat.model.matting import MattingBase, MattingRefine, build
from raymat.model.pretrained import load_init, load_matching
from raymat.model.weights_content import nonfinite, tensors_in
from tests.support.paths import GOLDEN

State = dict[str, Tensor]


def small(stage: str = "base", seed: int = 1, **options: object) -> MattingBase:
    return build(stage, ModelConfig(backbone="mobilenetv2", **options), seed)  # type: ignore[arg-type]


def large(seed: int = 1) -> MattingBase:
    return build("base", ModelConfig(backbone="resnet50"), seed)


def copy(model: MattingBase) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())


def refused(model: MattingBase, url: object) -> str:
    """The one line with which loading is refused; the network must be as before."""
    before = copy(model)
    with pytest.raises(WeightsError) as caught:
        load_init(model, str(url))
    assert equal(before, model.state_dict())
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Published weights


def test_weights_saved_here_have_the_published_names_and_come_back(tmp_path: Path) -> None:
    saved = small("refine", 1)
    torch.save(saved.state_dict(), tmp_path / "w.pth")
    names = json.loads((GOLDEN / "state_dict_keys.json").read_text())["refine-mobilenetv2"]
    assert list(torch.load(tmp_path / "w.pth", weights_only=True)) == list(names)

    model = small("refine", 2)
    report = load_init(model, str(tmp_path / "w.pth"))
    assert equal(copy(saved), model.state_dict())
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    assert report.summary == (f"loaded 382 of the network's 382 tensors from {tmp_path / 'w.pth'}")


def test_weights_of_half_precision_in_the_old_file_format_load_through_fsspec() -> None:
    saved = small()
    with fsspec.open("memory://weights/half.pth", "wb") as file:
        torch.save(saved.half().state_dict(), file, _use_new_zipfile_serialization=False)
    model = small(seed=2)
    load_init(model, "memory://weights/half.pth")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert equal({n: t.half() for n, t in model.named_parameters()}, dict(saved.named_parameters()))


def test_base_weights_start_a_refine_network_and_the_reverse() -> None:
    base, refine = small("base", 1), small("refine", 2)
    report = load_matching(refine, base.state_dict(), "base.pth")
    assert (len(report.matched), report.unexpected, report.mismatched) == (362, (), ())
    assert len(report.missing) == 20
    assert all(name.startswith("refiner.") for name in report.missing)
    assert equal(copy(base), {n: t for n, t in copy(refine).items() if "refiner." not in n})
    assert report.summary == (
        "loaded 362 of the network's 382 tensors from base.pth; 20 not in it "
        "(refiner.conv1.weight, refiner.bn1.weight, refiner.bn1.bias, ...)"
    )
    report = load_matching(small("base", 3), refine.state_dict())
    assert (len(report.matched), len(report.unexpected)) == (362, 20)


def test_a_refiner_of_another_kernel_size_is_reported_and_left_aside() -> None:
    report = load_matching(small("refine", 2, refine_kernel_size=1), copy(small("refine")))
    assert report.mismatched == tuple(f"refiner.conv{i}.weight" for i in (1, 2, 3, 4))
    assert len(report.matched) == 378
    assert "4 of another shape (refiner.conv1.weight, " in report.summary


# DeepLabV3 checkpoints


def deeplab(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, object]:
    """A checkpoint as the public training script saves one, numpy score included."""
    first = ("backbone.conv1.weight", "backbone.features.0.0.weight")
    converted = {
        rename(name): tensor[:, :3] if name in first else tensor
        for name, tensor in state.items()
        if name.startswith(("backbone.", "aspp."))
    }
    converted["classifier.classifier.4.weight"] = torch.zeros(21, 256, 1, 1)
    score = np.float64(0.75)
    return {"cur_itrs": 30000, "model_state": converted, "best_score": score}


def aspp_name(name: str) -> str:
    return name.replace("aspp.", "classifier.classifier.0.")


@pytest.mark.parametrize("first_high", [0, 4])
def test_a_mobilenet_deeplab_checkpoint_loads_all_but_the_first_convolution(
    first_high: int, tmp_path: Path
) -> None:
    def rename(name: str) -> str:
        parts = aspp_name(name).split(".")
        if parts[1] == "features":
            index = int(parts[2])
            high = index >= 4
            parts[1] = "high_level_features" if high else "low_level_features"
            parts[2] = str(index - 4 + first_high if high else index)
        return ".".join(parts)

    source, model = small(), small("refine", 2)
    torch.save(deeplab(copy(source), rename), tmp_path / "deeplab.pth")
    report = load_init(model, str(tmp_path / "deeplab.pth"))
    assert report.mismatched == ("backbone.features.0.0.weight",)
    assert report.unexpected == ("classifier.classifier.4.weight",)
    assert {n.split(".")[0] for n in report.missing} == {"decoder", "refiner"}
    assert len(report.matched) == 341  # 362 of the base, less 20 of the decoder and one
    for name in report.matched:
        assert torch.equal(model.state_dict()[name], source.state_dict()[name])


def test_a_resnet_deeplab_checkpoint_loads_all_but_the_first_convolution(tmp_path: Path) -> None:
    source, model = large(1), large(2)
    torch.save(deeplab(copy(source), aspp_name), tmp_path / "deeplab.pth")
    report = load_init(model, str(tmp_path / "deeplab.pth"))
    assert report.mismatched == ("backbone.conv1.weight",)
    assert {n.split(".")[0] for n in report.missing} == {"decoder"}
    assert torch.equal(model.aspp.project[0].weight, source.aspp.project[0].weight)


# Wrappers around a state dict and prefixes before its names


def named(*names: str) -> State:
    return {name: torch.full((1,), float(number)) for number, name in enumerate(names)}


STATE = named("backbone.conv1.weight", "decoder.conv4.bias", "refiner.bn1.num_batches_tracked")


def prefixed(prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": STATE}, {"model": STATE}, {"model_state": STATE}, {"model_state_dict": STATE},
        {"net": STATE, "epoch": 3, "lr": [0.1]},
        {"state_dict": prefixed("model.")}, {"state_dict": prefixed("net."), "hyper_parameters": {"a": 1}},
        prefixed("module."), prefixed("_orig_mod."), prefixed("module._orig_mod."), prefixed("anything/at all:"),
        {"model": prefixed("_orig_mod.module.")}, {"state_dict": prefixed("model._orig_mod.")},
        {"checkpoint": {"model": STATE}}, {"a": {"b": {"state_dict": prefixed("model.module.")}}},
        {"state_dict": STATE, "state_dict_ema": prefixed("")},
        {"model": STATE, "ema": prefixed("module.")}, {"ema": STATE},
        {"state_dict": prefixed("model.") | prefixed("ema_model.")},
        {"state_dict": prefixed("model.") | named("loss.weight", "metric.total")},
        {"model": STATE, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": [{"lr": 1}]}},
        {"model": STATE, "optimizer": {"exp_avg": STATE}, "optimizer_states": [STATE]},
        {"model": STATE, "state_dict": STATE},
        {"backbone": named("conv1.weight"), "decoder": {"conv4": {"bias": STATE["decoder.conv4.bias"]}},
         "refiner": {"bn1.num_batches_tracked": STATE["refiner.bn1.num_batches_tracked"]}},
        {"backbone._orig_mod.conv1.weight": torch.zeros(1), **dict(list(STATE.items())[1:])},
        STATE | {"optimizer": {"a": torch.ones(1)}, "epoch": 3},
    ],
)  # fmt: skip
def test_the_state_dict_is_found_whatever_it_is_wrapped_in(content: dict[str, object]) -> None:
    assert equal(tensors_in(content, "w.pth"), STATE)


def test_an_unpickled_dictionary_that_holds_itself_is_read_once() -> None:
    content: dict[str, object] = {"model": STATE}
    content["self"] = content
    assert equal(tensors_in(content, "w.pth"), STATE)


def test_names_that_fit_as_they_are_keep_what_stands_beside_them() -> None:
    beside = STATE | prefixed("perceptual.")
    assert tensors_in(beside, "w.pth").keys() == beside.keys()
    averaged = {"n_averaged": torch.tensor(7)} | prefixed("module.")
    assert tensors_in(averaged, "w.pth").keys() == {"n_averaged"} | STATE.keys()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (torch.ones(3), "w.pth holds a Tensor, expected a state dict: give a published .pth or a DeepLabV3 checkpoint"),
        ({}, "nothing in w.pth is a network: it is empty"),
        ({"epoch": 3, "lr": 0.1}, "nothing in w.pth is a network: it holds no tensors; its keys are epoch, lr"),
        (
            {"state_dict": named("fc.weight", "fc.bias"), "epoch": 3},
            "nothing in w.pth is a network: its tensors are named state_dict.fc.weight, state_dict.fc.bias; "
            "its keys are state_dict, epoch",
        ),
        (
            {"student": STATE, "teacher": prefixed("")},
            "w.pth holds 2 networks, student.backbone., teacher.backbone.: save one network's state dict alone",
        ),
        (
            STATE | prefixed("module."),
            "w.pth holds two tensors for backbone.conv1.weight, one of them as module.backbone.conv1.weight: "
            "save one network's state dict alone",
        ),
    ],
)  # fmt: skip
def test_content_that_is_no_network_or_several_is_refused_by_its_names(
    content: object, line: str
) -> None:
    with pytest.raises(WeightsError) as caught:
        tensors_in(content, "w.pth")
    assert str(caught.value) == line


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_wrapped_state_dict_starts_a_network_whole(ending: str, tmp_path: Path) -> None:
    saved, model, path = copy(small()), small(seed=2), tmp_path / f"w.{ending}"
    names = {f"model.module._orig_mod.{name}": tensor.half() for name, tensor in saved.items()}
    if ending == "pth":
        torch.save({"checkpoint": {"state_dict": names}, "optimizer": {"state": names}}, path)
    else:
        safetensors.torch.save_file(names, path)
    report = load_init(model, str(path))
    assert report.summary == f"loaded 362 of the network's 362 tensors from {path}"
    assert torch.equal(
        model.state_dict()["aspp.project.0.weight"], saved["aspp.project.0.weight"].half().float()
    )


@pytest.mark.parametrize("bare", [True, False])
def test_a_deeplab_checkpoint_may_be_bare_or_of_data_parallel(bare: bool, tmp_path: Path) -> None:
    content = deeplab(copy(large(1)), aspp_name)
    state = content["model_state"]
    assert isinstance(state, dict)
    content["model_state"] = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save(state if bare else content, tmp_path / "deeplab.pth")
    report = load_init(large(2), str(tmp_path / "deeplab.pth"))
    assert report.mismatched == ("backbone.conv1.weight",)
    assert {n.split(".")[0] for n in report.missing} == {"decoder"}


# What is refused


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path) -> None:
    state = copy(small())
    state["decoder.conv1.weight"] = state["decoder.conv1.weight"].double()
    state["decoder.conv1.weight"][0, 0] = value
    state["decoder.conv4.bias"][1] = float("nan")
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    assert refused(small(seed=2), tmp_path / "w.pth") == (
        f"{tmp_path / 'w.pth'}: 2 of 362 tensors hold NaN or infinity, the first decoder.conv1.weight "
        "(9 of 331776 values); give weights whose training stayed finite"
    )


def test_what_is_no_weight_of_the_network_may_be_anything(tmp_path: Path) -> None:
    torch.save(copy(small()) | {"loss.mask": torch.full((2,), -torch.inf)}, tmp_path / "w.pth")
    assert load_init(small(seed=2), str(tmp_path / "w.pth")).unexpected == ("loss.mask",)
    assert nonfinite({"counter": torch.tensor(3), "half": torch.ones(2).half()}) is None


class Payload:
    """Runs when an unwary reader unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_in_a_weights_file_does_not_run(zipped: bool, tmp_path: Path) -> None:
    mark, file = tmp_path / "ran", tmp_path / "evil.pth"
    content = {**copy(small()), "x": Payload(mark)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    line = refused(small(seed=2), file)
    assert "objects other than weights, which are never run (the first: getattr)" in line
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()  # it would have


def test_an_object_in_a_weights_file_is_named_by_its_class(tmp_path: Path) -> None:
    content = {"state_dict": copy(small()), "hyper_parameters": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "w.pth")
    assert refused(small(seed=2), tmp_path / "w.pth") == (
        f"cannot read weights from {tmp_path / 'w.pth'}: it is damaged or holds objects other than weights, which are "
        "never run (the first: argparse.Namespace); save only the state dict: torch.save(model.state_dict(), ...)"
    )


def test_files_that_are_no_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    model = small()
    whole = io.BytesIO()
    torch.save({"a": torch.zeros(50)}, whole)
    contents = {
        "text.pth": b"not a network",
        "picture.pth": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "cut.pth": whole.getvalue()[:600],
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    for name in ("text.pth", "picture.pth"):
        assert refused(model, tmp_path / name) == (
            f"cannot read weights from {tmp_path / name}: it is neither a PyTorch nor a safetensors file"
        )
    assert "damaged or incomplete" in refused(model, tmp_path / "cut.pth")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty; fetch it again"),
        (b"\n<!DOCTYPE html><html>", "it is a web page, as servers send in place of a file; fetch it again, with"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "it is a pointer of Git LFS, not the file itself;"),
        (gzip.compress(b"weights", mtime=0), "it is compressed with gzip; unpack it first"),
    ],
    ids=["nothing", "page", "pointer", "gzip"],
)  # fmt: skip
def test_what_a_failed_download_leaves_is_named(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(data)
    line = refused(small(), tmp_path / "w.pth")
    assert line.startswith(f"cannot read weights from {tmp_path / 'w.pth'}: {reason}")


def test_the_content_not_the_name_says_which_format_weights_are_in(tmp_path: Path) -> None:
    weights = copy(small())
    safetensors.torch.save_file(weights, tmp_path / "safetensors.pth")
    torch.save(weights, tmp_path / "torch.safetensors")
    for name in ("safetensors.pth", "torch.safetensors"):
        assert load_init(small(seed=2), str(tmp_path / name)).missing == ()


def test_missing_files_folders_and_unknown_protocols_are_refused_in_one_line(
    tmp_path: Path,
) -> None:
    model = small()
    assert refused(model, tmp_path / "none.pth").startswith("no such weights file: ")
    assert str(tmp_path) in refused(model, tmp_path)
    assert "Protocol not known" in refused(model, "nonsense://bucket/w.pth")


def test_credentials_in_a_url_are_not_repeated() -> None:
    line = refused(small(), "memory://user:secret@bucket/w.pth?X-Signature=secret")
    assert line.startswith("cannot read weights from memory://bucket/w.pth: the URL")
    assert "carries credentials" in line
    assert "secret" not in line


def test_tensors_that_no_parameter_can_hold_are_left_aside(tmp_path: Path) -> None:
    state = copy(small())
    name = "decoder.conv4.bias"
    for odd in (state[name].to_sparse(), state[name] + 1j, state[name].to("meta")):
        torch.save({**state, name: odd}, tmp_path / "odd.pth")
        assert load_init(small(seed=2), str(tmp_path / "odd.pth")).missing == (name,)


def test_content_without_tensors_of_this_network_is_refused(tmp_path: Path) -> None:
    model = small()
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    assert "holds a list, expected a state dict" in refused(model, tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "no.pth")
    assert "nothing in" in refused(model, tmp_path / "no.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "imagenet.pth")
    line = refused(model, tmp_path / "imagenet.pth")
    assert line.startswith(f"nothing in {tmp_path / 'imagenet.pth'} fits this network: ")
    assert "its 1 tensors are named conv1.weight; give a published .pth" in line


@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated")
def test_a_torchscript_archive_is_named(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "script.pth"))
    assert "TorchScript archive" in refused(small(), tmp_path / "script.pth")


def test_another_backbone_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    torch.save(copy(small()), tmp_path / "m.pth")
    line = refused(large(), tmp_path / "m.pth")
    assert line == (
        f"{tmp_path / 'm.pth'} has the backbone mobilenetv2, this network resnet50: "
        "use --backbone mobilenetv2 or other weights"
    )


def test_a_deeper_resnet_is_another_backbone_though_all_names_of_this_one_fit() -> None:
    model = large()
    with torch.device("meta"):
        deeper = MattingRefine("resnet101").state_dict()
    before = copy(model)
    with pytest.raises(WeightsError, match="has the backbone resnet101, this network resnet50"):
        load_matching(model, deeper)
    assert equal(before, model.state_dict())


def test_a_backbone_of_other_shapes_is_refused(tmp_path: Path) -> None:
    state = copy(small())
    state["backbone.features.5.conv.2.weight"] = torch.zeros(16, 192, 1, 1)
    torch.save(state, tmp_path / "narrow.pth")
    line = refused(small(seed=2), tmp_path / "narrow.pth")
    assert "is not this network's mobilenetv2: 1 tensors are missing, of another shape" in line
    assert "(backbone.features.5.conv.2.weight)" in line
