"""Laws of exporting to TorchScript and ONNX: what is written does what the network does, says what it is, and runs alone."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymat import __version__
from raymat.config.run import to_dict
from raymat.config.sections import ModelConfig
from raymat.export import check, check_memory, formats
from raymat.export.check import Case
from raymat.export.formats import Run
from raymat.model.matting import MattingBase, MattingRefine, build
from raymat.model.weights_reader import read_file
from tests.support import runs
from tests.support.paths import ROOT, SUPPORT
from tests.support.run_exported import pictures
from tests.support.small import SmallMatting

needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="the extra onnx is not installed"
)
SCRIPT = SUPPORT / "run_exported.py"
SMALL = ("--check-size", "96x128")
MODES = ("full", "sampling", "thresholding")


def commit(local: Any, stage: Any) -> MattingBase:
    """A run with a checkpoint at step 10 of a mobilenetv2; returns its network."""
    config = runs.tiny(local.url, "run", stage)
    network = build(stage, config.model, seed=1)
    tensors = {f"model/{name}": tensor for name, tensor in network.state_dict().items()}
    local.commit(10, tensors=tensors, config=to_dict(config))
    return network.eval().requires_grad_(False)


def numbers(*argv: str) -> list[str]:
    """What a process that has no raymat prints of an export."""
    # torch 2.15 warns at each use of TorchScript.
    command = [sys.executable, "-I", "-W", "ignore::FutureWarning", str(SCRIPT), *argv]
    done = subprocess.run(
        command, cwd="/", env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def lines_of(names: tuple[str, ...], outputs: Any) -> list[str]:
    """What that process would print of these outputs."""
    arrays = [tensor.contiguous().numpy() for tensor in outputs]
    return [
        f"{name} {list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()}"
        for name, array in zip(names, arrays, strict=True)
    ]


def inputs(height: int, width: int) -> tuple[torch.Tensor, ...]:
    found = pictures(["src", "bgr"], height, width)
    return tuple(torch.from_numpy(array) for array in found.values())


# TorchScript, by the command.


@pytest.mark.slow
def test_torchscript_prints_the_network_s_numbers_in_a_process_without_raymat(
    local: Any, raymat: Any, tmp_path: Path
) -> None:
    network = commit(local, "refine")
    path = tmp_path / "net.ts"
    code, out, err = raymat("export", f"{local.url}@10", "-o", str(path), *SMALL)
    assert (code, err) == (0, [])
    assert out[0] == f"{local.url}@10: step-000000010-a001"
    tensors = len(network.state_dict())
    assert out[1] == f"{path}: {path.stat().st_size / 1e6:.1f} MB, torchscript, {tensors} tensors"
    assert [line.split("  ")[0] for line in out[3:9]] == [
        "picture", "picture", "all foreground", "all background", "equal", "picture",
    ]  # fmt: skip
    assert [line.count("0.0e+00") for line in out[3:9]] == [6] * 6
    assert numbers(str(path), "76", "52") == lines_of(
        formats.REFINE_OUTPUTS, network(*inputs(76, 52))
    )
    assert sorted(os.listdir(tmp_path)) == ["net.ts", "net.ts.json", "runs"]


@pytest.mark.slow
def test_the_sidecar_says_all_that_one_needs(local: Any, raymat: Any, tmp_path: Path) -> None:
    commit(local, "refine")
    path = tmp_path / "net.ts"
    flags = ("--refine-mode", "thresholding", "--refine-threshold", "0.5")
    code, _, _ = raymat("export", local.url, "-o", str(path), *SMALL, *flags)
    assert code == 0
    told = json.loads((tmp_path / "net.ts.json").read_text())
    assert told["digest"] == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    expected = {
        "file": "net.ts", "format": "torchscript", "opset": None, "raymat": __version__, "run": local.url,
        "checkpoint": "step-000000010-a001", "step": 10, "ema": False, "stage": "refine",
        "backbone": "mobilenetv2", "dtype": "float32", "bytes": path.stat().st_size,
        "sizes": {"batch": "1 or more", "multiple_of": 4, "smallest": 4},
        "refiner": {
            "backbone_scale": 0.25, "mode": "thresholding", "sample_pixels": None, "threshold": 0.5, "kernel_size": 3,
        },
    }  # fmt: skip
    assert {name: told[name] for name in expected} == expected
    assert [(one["name"], one["shape"], one["range"]) for one in told["inputs"]] == [
        ("src", ["batch", 3, "height", "width"], [0, 1]),
        ("bgr", ["batch", 3, "height", "width"], [0, 1]),
    ]
    assert [(one["name"], one["shape"][1]) for one in told["outputs"]] == [
        ("pha", 1), ("fgr", 3), ("pha_sm", 1), ("fgr_sm", 3), ("err_sm", 1), ("ref_sm", 1),
    ]  # fmt: skip
    assert told["outputs"][5]["shape"][2:] == ["height / 4", "width / 4"]
    assert told["check"]["tolerance"] == 1e-5
    assert [tuple(one["case"].values()) for one in told["check"]["cases"]] == [
        ("picture", 1, 48, 64), ("picture", 2, 324, 84), ("all foreground", 1, 324, 84),
        ("all background", 1, 324, 84), ("equal", 1, 324, 84), ("picture", 1, 96, 128),
    ]  # fmt: skip


def test_an_export_that_is_not_the_network_is_removed_and_what_was_there_stays(
    local: Any, raymat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(local, "base")
    other = build("base", ModelConfig(backbone="mobilenetv2"), seed=2).eval().requires_grad_(False)
    wrong = formats.torchscript_bytes(other)
    monkeypatch.setattr(formats, "torchscript_bytes", lambda network: wrong)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "net.ts").write_bytes(b"mine")
    code, out, err = raymat("export", local.url, "-o", f"{folder}/net.ts", *SMALL, "--force")
    assert (code, out, len(err)) == (1, [], 1)
    start = "raymat: error: the export is not the network: pha differs by "
    assert err[0].startswith(start)
    assert err[0].endswith(": it was removed")
    of = " at 1 x 48 x 64 (picture), tolerance 1e-05, the network's own rounding is "
    assert of in err[0]
    assert float(err[0].split(of)[1].split(":")[0]) < 1e-6
    assert float(err[0].removeprefix(start).split()[0]) > 1e-3
    assert os.listdir(folder) == ["net.ts"]
    assert (folder / "net.ts").read_bytes() == b"mine"


def test_a_network_that_gives_nothing_finite_is_not_exported(
    local: Any, raymat: Any, tmp_path: Path
) -> None:
    network = commit(local, "base")
    state = {f"model/{name}": tensor.clone() for name, tensor in network.state_dict().items()}
    state["model/decoder.bn3.running_var"][1] = -1.0
    local.commit(20, tensors=state, config=to_dict(runs.tiny(local.url, "run", "base")))
    code, _, err = raymat("export", local.url, "-o", str(tmp_path / "net.ts"), *SMALL)
    assert (code, len(err)) == (1, 1)
    assert "the network itself gives pha that is not finite at 1 x 48 x 64" in err[0]
    assert os.listdir(tmp_path) == ["runs"]


@pytest.mark.parametrize(
    ("stage", "flags", "line"),
    [
        ("base", ("--refine-mode", "full"), "--refine-mode: only a refine network refines"),
        ("refine", ("--backbone-scale", "0.7"), "--backbone-scale must be in (0, 0.5], got 0.7"),
        ("refine", ("--check-size", "100x90"), "--check-size must be HEIGHTxWIDTH, both multiples of 4"),
    ],
)  # fmt: skip
def test_an_option_without_meaning_is_one_line(
    local: Any, raymat: Any, tmp_path: Path, stage: Any, flags: Any, line: str
) -> None:
    commit(local, stage)
    code, out, err = raymat("export", local.url, "-o", str(tmp_path / "net.ts"), *flags)
    assert (code, out, len(err)) == (2, [], 1)
    assert line in err[0]


def test_without_the_extra_onnx_one_line_says_what_to_install(
    local: Any, raymat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in ("onnx", "onnxruntime", "onnxscript") else found(name),
    )
    code, out, err = raymat("export", local.url, "-o", str(tmp_path / "net.onnx"))
    assert (code, out) == (2, [])
    assert err == [
        "raymat: error: writing and checking ONNX needs onnx, onnxscript, onnxruntime: pip install 'raymat[onnx]'"
    ]


@pytest.mark.slow
def test_safetensors_hold_the_weights_and_are_weights_to_export_from(
    local: Any, raymat: Any, tmp_path: Path
) -> None:
    network = commit(local, "refine")
    path = tmp_path / "net.safetensors"
    code, out, err = raymat("export", local.url, "-o", str(path), "--refine-mode", "full")
    assert (code, err, out[-1]) == (0, [], "read back: equal to the bit")
    state = network.state_dict()
    found = read_file(str(path))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    told = json.loads((tmp_path / "net.safetensors.json").read_text())
    assert (told["format"], told["step"], told["refiner"]["mode"]) == ("safetensors", 10, "full")
    code, _, _ = raymat("export", str(path), "-o", str(tmp_path / "net.ts"), *SMALL)
    told = json.loads((tmp_path / "net.ts.json").read_text())
    assert (code, told["step"], told["run"], told["backbone"]) == (0, None, None, "mobilenetv2")
    # What a file of weights does not say is the default.
    assert told["refiner"]["mode"] == "sampling"


# ONNX, of a network of few weights.


class SmallRefine(MattingRefine):
    """MattingRefine around `SmallMatting`: the whole refiner and glue, exported in seconds."""

    def __init__(self, mode: str, **options: Any) -> None:
        super().__init__("mobilenetv2", refine_mode=mode, **options)
        small = SmallMatting()
        self.backbone, self.aspp, self.decoder = small.backbone, small.aspp, small.decoder
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.parameters():
                fan_in = max(1, parameter[0].numel())
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
            self.decoder.conv4.bias[4] = 0.3  # type: ignore[index]
        self.eval().requires_grad_(False)


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize(
    "mode",
    [
        "sampling",
        *(pytest.param(mode, marks=pytest.mark.chaos) for mode in ("full", "thresholding")),
    ],
)
def test_onnx_gives_the_network_s_outputs_at_any_size_also_without_torch(
    tmp_path: Path, mode: str
) -> None:
    network = SmallRefine(mode, refine_sample_pixels=1600, refine_threshold=0.5)
    path = tmp_path / "net.onnx"
    path.write_bytes(formats.onnx_bytes(network, {"step": "10"}))
    run = formats.run_onnx(str(path))
    cases = check.cases(network, (200, 96))
    outcomes = check.check(network, run, cases, 1e-5)
    assert [one.case for one in outcomes] == cases
    refined = [float(network(*check.pictures(case))[-1].mean()) for case in cases]
    assert all(0 < part < 1 for part in refined) or mode == "full"
    import onnx

    model = onnx.load(str(path))
    assert [(one.domain, one.version) for one in model.opset_import if not one.domain] == [("", 18)]
    assert {(one.key, one.value) for one in model.metadata_props} == {("step", "10")}
    assert str(ROOT) not in str(model.graph.node)
    told = {
        "format": "onnx",
        "inputs": [{"name": one.name} for one in model.graph.input],
        "outputs": [{"name": one.name} for one in model.graph.output],
    }
    (tmp_path / "net.onnx.json").write_text(json.dumps(told))
    assert numbers(str(path), "76", "52") == lines_of(formats.REFINE_OUTPUTS, run(*inputs(76, 52)))


@needs_onnx
@pytest.mark.chaos
def test_onnx_leaves_the_coarse_prediction_where_no_patch_is_chosen(tmp_path: Path) -> None:
    network = SmallRefine("thresholding", refine_threshold=1.0)
    path = tmp_path / "net.onnx"
    path.write_bytes(formats.onnx_bytes(network, {}))
    (outcome,) = check.check(
        network, formats.run_onnx(str(path)), [Case("picture", 1, 48, 64)], 1e-5
    )
    assert outcome.others == 0
    assert network(*inputs(48, 64))[-1].sum() == 0


# What the check lets pass and what not.


def choosing(network: MattingRefine, ref: torch.Tensor) -> Run:
    """A run that does all as the network does, but refines these patches."""
    other = SmallRefine(network.refiner.mode, refine_sample_pixels=1600)
    other.load_state_dict(network.state_dict())
    vars(other.refiner)["select"] = lambda err: ref
    return other


CASE = Case("picture", 1, 96, 96)


def test_another_patch_of_equal_error_is_no_difference() -> None:
    network = SmallRefine("sampling", refine_sample_pixels=1600)
    with torch.no_grad():
        network.decoder.conv4.weight[4] = 0  # type: ignore[index]
    mine = network(*check.pictures(CASE))[-1]
    assert (mine.numel(), float(mine.sum())) == (576, 100.0)
    (outcome,) = check.check(network, choosing(network, mine.flip(2, 3)), [CASE], 1e-5)
    assert outcome.others > 0
    assert outcome.differences == dict.fromkeys(formats.REFINE_OUTPUTS, 0.0)


def other_choice(kind: str, mine: torch.Tensor, err: torch.Tensor) -> torch.Tensor:
    chosen = mine.clone().flatten()
    order = torch.where(mine.flatten() > 0, err.flatten(), torch.inf).argsort()
    if kind in ("fewer", "worse"):
        chosen[order[50]] = 0
    if kind in ("more", "worse"):
        chosen[err.flatten().argmin()] = 1
    if kind == "half":
        chosen[order[0]] = 0.5
    return chosen.view_as(mine)


@pytest.mark.parametrize("kind", ["fewer", "more", "worse", "half"])
def test_another_choice_of_patches_is_a_difference(kind: str) -> None:
    network = SmallRefine("sampling", refine_sample_pixels=1600)
    mine = network(*check.pictures(CASE))[-1]
    err = network(*check.pictures(CASE))[-2]
    assert (mine.shape, err.shape) == ((1, 1, 24, 24), (1, 1, 24, 24))
    run = choosing(network, other_choice(kind, mine, err))
    outcome = check.compare(network, run, CASE, 1e-5)
    assert outcome.differences["ref_sm"] > 1e-3


@pytest.mark.parametrize("bad", ["one pixel", "not a number", "shape", "dtype"])
def test_every_wrong_output_is_found(bad: str) -> None:
    network = SmallRefine("full")

    def run(src: torch.Tensor, bgr: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = [tensor.clone() for tensor in network(src, bgr)]
        if bad == "one pixel":
            outputs[1][0, 2, -1, -1] += 0.001
        if bad == "not a number":
            outputs[1][0, 0, 5, 5] = torch.nan
        if bad == "shape":
            outputs[1] = outputs[1][..., :-4]
        if bad == "dtype":
            outputs[1] = outputs[1].double()
        return tuple(outputs)

    outcome = check.compare(network, run, CASE, 1e-5)
    expected = pytest.approx(0.001, rel=1e-3) if bad == "one pixel" else np.inf
    assert outcome.differences["fgr"] == expected
    assert (outcome.differences["pha"] == 0) is (bad != "shape")


def test_the_largest_size_is_what_half_of_the_memory_takes() -> None:
    network = SmallRefine("sampling")
    need = check_memory.bytes_needed(network, 2160, 3840)
    assert check_memory.largest(network, 2 * need) == (2160, 3840)
    assert check_memory.largest(network, 2 * need - 1) == (1440, 2560)
    assert check_memory.largest(network, 10**6) == (540, 960)
    assert check_memory.largest(SmallMatting(), 10**12) == (540, 960)
    assert 10**7 < check_memory.available_memory() < 10**14


# Whole networks.


@needs_onnx
@pytest.mark.chaos
@pytest.mark.parametrize("mode", ["base", *MODES])
def test_onnx_of_a_whole_network_prints_the_same_numbers_without_raymat(
    local: Any, raymat: Any, tmp_path: Path, mode: str
) -> None:
    network = commit(local, "base" if mode == "base" else "refine")
    path = tmp_path / "net.onnx"
    flags = () if mode == "base" else ("--refine-mode", mode)
    size = ("--check-size", "540x960")
    code, out, err = raymat("export", local.url, "-o", str(path), *size, *flags)
    assert (code, err) == (0, [])
    assert ", onnx opset 18, " in out[1]
    told = json.loads((tmp_path / "net.onnx.json").read_text())
    assert (told["opset"], told["step"], told["check"]["tolerance"]) == (18, 10, 1e-4)
    assert all(worst < 1e-5 for worst in told["check"]["largest_difference"].values())
    run = formats.run_onnx(str(path))
    names = formats.outputs_of(network)
    assert numbers(str(path), "76", "52") == lines_of(names, run(*inputs(76, 52)))
