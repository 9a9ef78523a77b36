"""Laws of `raymat matte` on pictures: what the network says, in the picture's own size, whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import mattes

GREEN = (0x78, 0xFF, 0x9B)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of a new network, for those that only read it."""
    return mattes.saved(mattes.network("base"), tmp_path_factory.mktemp("weights"))


@pytest.fixture
def one(tmp_path: Path) -> list[str]:
    """A picture and its background, 123 x 77, as arguments."""
    mattes.write(tmp_path / "s.png", mattes.picture(123, 77, 1))
    mattes.write(tmp_path / "b.png", mattes.picture(123, 77, 2))
    return ["--source", f"{tmp_path}/s.png", "--background", f"{tmp_path}/b.png"]


@pytest.fixture
def many(tmp_path: Path) -> list[str]:
    """Three pictures of three sizes in folders, each with a background of its name but another ending."""
    for name, width, height in (("a", 40, 24), ("in/b", 33, 17), ("in/c", 4, 4)):
        mattes.write(tmp_path / f"src/{name}.png", mattes.picture(width, height, 1))
        background = np.full((height, width, 3), 90, np.uint8)
        (tmp_path / f"bgr/{name}.jpg").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(background).save(tmp_path / f"bgr/{name}.jpg", quality=100)
    return ["--source", f"{tmp_path}/src", "--background", f"{tmp_path}/bgr"]


@pytest.mark.parametrize("stage", ["base", "refine"])
def test_the_outputs_are_those_of_the_network_called_by_hand(
    raymat: Any, one: list[str], tmp_path: Path, stage: str
) -> None:
    network = mattes.network(stage)
    weights = mattes.saved(network, tmp_path)
    out = tmp_path / "o.png"
    code, said, _ = raymat(
        "matte", weights, *one, "-o", f"{out}", "--output-type", "com,pha,fgr,err"
    )
    assert (code, said[0]) == (0, weights)
    assert said[1] == f"{out}: 1 picture of 123 x 77, com, pha, fgr, err"
    expected = mattes.by_hand(network, mattes.picture(123, 77, 1), mattes.picture(123, 77, 2))
    for kind, pixels in expected.items():
        assert np.array_equal(mattes.read(tmp_path / f"o-{kind}.png"), pixels), kind
    assert not out.exists()


@pytest.mark.parametrize("stage", ["base", "refine"])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 4), (7, 9), (64, 33)])
def test_any_size_is_padded_and_cut_back(
    raymat: Any, tmp_path: Path, stage: str, size: tuple[int, int]
) -> None:
    source = mattes.picture(*size, 1)
    arguments = ["--source", str(mattes.write(tmp_path / "s.png", source))]
    arguments += ["--background", str(mattes.write(tmp_path / "b.png", mattes.picture(*size, 2)))]
    weights = mattes.saved(mattes.letting_through(stage), tmp_path)
    assert raymat("matte", weights, *arguments, "-o", f"{tmp_path}/o.png")[0] == 0
    found = mattes.read(tmp_path / "o.png")
    assert np.array_equal(found[..., :3], source)
    assert (found[..., 3] == 255).all()


def test_which_patches_were_refined_is_shown_and_options_of_the_refiner_override(
    raymat: Any, one: list[str], tmp_path: Path
) -> None:
    weights = mattes.saved(mattes.network("refine"), tmp_path)
    out = f"{tmp_path}/o.png"
    more = ["-o", out, "--output-type", "ref", "--refine-mode", "sampling", "--overwrite"]
    assert raymat("matte", weights, *one, *more, "--refine-sample-pixels", "160")[0] == 0
    refined = mattes.read(tmp_path / "o.png")
    assert sorted(np.unique(refined)) == [0, 255]
    padded = np.pad(refined, ((0, 3), (0, 1)), mode="edge")
    assert (padded == 255).sum() == 160
    assert (
        raymat("matte", weights, *one, *more[:-3], "--refine-mode", "full", "--overwrite")[0] == 0
    )
    assert (mattes.read(tmp_path / "o.png") == 255).all()


def test_a_folder_has_an_output_of_each_name_with_the_background_of_that_name(
    raymat: Any, many: list[str], tmp_path: Path
) -> None:
    network = mattes.network("base")
    weights = mattes.saved(network, tmp_path)
    code, said, _ = raymat("matte", weights, *many, "-o", f"{tmp_path}/out", "--output-type", "pha")
    assert (code, said[1]) == (0, f"{tmp_path}/out: 3 pictures of 4 x 4, pha")
    for name, width, height in (("a", 40, 24), ("in/b", 33, 17), ("in/c", 4, 4)):
        background = np.full((height, width, 3), 90, np.uint8)
        expected = mattes.by_hand(network, mattes.picture(width, height, 1), background)
        assert np.array_equal(mattes.read(tmp_path / f"out/{name}.png"), expected["pha"])
    assert len([*(tmp_path / "out").rglob("*.*")]) == 3


def test_several_types_have_a_folder_each_and_a_batch_changes_nothing_but_roundings(
    raymat: Any, tmp_path: Path
) -> None:
    for i in range(5):
        size = (40, 24) if i < 4 else (24, 40)
        mattes.write(tmp_path / f"src/{i}.png", mattes.picture(*size, i))
        mattes.write(tmp_path / f"bgr/{i}.png", mattes.picture(*size, 9))
    weights = mattes.saved(mattes.network("base"), tmp_path)
    given = ["--source", f"{tmp_path}/src", "--background", f"{tmp_path}/bgr"]
    given += ["--output-type", "pha,com"]
    assert raymat("matte", weights, *given, "-o", f"{tmp_path}/x")[0] == 0
    assert raymat("matte", weights, *given, "-o", f"{tmp_path}/y", "--batch-size", "3")[0] == 0
    names = sorted(str(p.relative_to(tmp_path / "x")) for p in (tmp_path / "x").rglob("*.png"))
    assert names == [f"{kind}/{i}.png" for kind in ("com", "pha") for i in range(5)]
    for name in names:
        one, other = (mattes.read(tmp_path / run / name).astype(int) for run in "xy")
        assert np.abs(one - other).max() <= 1


def test_the_composite_stands_before_a_colour_or_a_picture_that_fills_the_frame(
    raymat: Any, one: list[str], tmp_path: Path
) -> None:
    weights = mattes.saved(mattes.letting_through("base", alpha=0.25), tmp_path)
    source = mattes.picture(123, 77, 1).astype(float)
    wide = np.zeros((77, 323, 3), np.uint8)
    wide[:, 100:223] = GREEN
    mattes.write(tmp_path / "wide.png", wide)
    for behind in ("#78ff9b", str(tmp_path / "wide.png")):
        arguments = [*one, "-o", f"{tmp_path}/o.png", "--composite", behind, "--overwrite"]
        assert raymat("matte", weights, *arguments)[0] == 0
        found = mattes.read(tmp_path / "o.png")
        assert found.shape == (77, 123, 3)
        assert np.abs(found - (source / 4 + np.array(GREEN) * 0.75)).max() <= 0.5001


def test_alpha_of_16_bits_is_finer(raymat: Any, one: list[str], tmp_path: Path) -> None:
    weights = mattes.saved(mattes.letting_through("base", alpha=0.3), tmp_path)
    more = ["-o", f"{tmp_path}/o.png", "--output-type", "pha", "--alpha-bits", "16"]
    assert raymat("matte", weights, *one, *more)[0] == 0
    found = mattes.read(tmp_path / "o.png")
    assert (found.dtype, np.unique(found).tolist()) == (np.uint16, [19660])  # 0.3 * 65535 = 19660.5


def test_pictures_are_upright_as_their_tags_say(raymat: Any, tmp_path: Path) -> None:
    upright = mattes.picture(40, 24, 1)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    stored = Image.fromarray(np.rot90(upright))
    stored.save(tmp_path / "s.png", exif=exif)
    mattes.write(tmp_path / "b.png", mattes.picture(40, 24, 2))
    weights = mattes.saved(mattes.letting_through("base"), tmp_path)
    given = ["--source", f"{tmp_path}/s.png", "--background", f"{tmp_path}/b.png"]
    assert (
        raymat("matte", weights, *given, "-o", f"{tmp_path}/o.png", "--output-type", "fgr")[0] == 0
    )
    assert np.array_equal(mattes.read(tmp_path / "o.png"), upright)


def test_what_is_there_is_refused_kept_or_replaced(
    raymat: Any, many: list[str], tmp_path: Path
) -> None:
    weights = mattes.saved(mattes.letting_through("base"), tmp_path)
    mine = mattes.write(tmp_path / "out/in/b.png", np.zeros((2, 2), np.uint8))
    before = mine.read_bytes()
    out = ["-o", f"{tmp_path}/out"]
    code, _, err = raymat("matte", weights, *many, *out)
    assert (code, sorted(os.listdir(tmp_path / "out"))) == (2, ["in"])
    assert err == [
        f"raymat: error: {mine} exists: --resume keeps what is there and goes on, --overwrite replaces it"
    ]
    code, said, _ = raymat("matte", weights, *many, *out, "--resume")
    assert (code, mine.read_bytes() == before) == (0, True)
    assert said[1] == f"{tmp_path}/out: 2 pictures of 4 x 4, 1 were there, com"
    code, said, _ = raymat("matte", weights, *many, *out, "--resume")
    assert (code, said[1]) == (0, f"{tmp_path}/out: nothing to do, 3 were there")
    assert raymat("matte", weights, *many, *out, "--overwrite")[0] == 0
    assert mine.read_bytes() != before


@pytest.mark.slow
def test_a_job_that_is_killed_leaves_whole_files_and_goes_on(tmp_path: Path) -> None:
    for i in range(40):
        mattes.write(tmp_path / f"src/{i:03}.png", mattes.picture(48, 40, i))
    mattes.write(tmp_path / "b.png", mattes.picture(48, 40, 999))
    weights = mattes.saved(mattes.letting_through("base"), tmp_path)
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from raymat.cli.main import main; raise SystemExit(main())"]
    command += [
        "matte",
        weights,
        "--source",
        f"{tmp_path}/src",
        "--background",
        f"{tmp_path}/b.png",
    ]
    command += ["-o", str(out), "--output-type", "fgr", "--threads", "1"]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len([*out.glob("*.png")]) < 5:
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    there = sorted(out.glob("*.png"))
    assert 5 <= len(there) < 40
    for path in there:
        assert np.array_equal(mattes.read(path), mattes.read(tmp_path / "src" / path.name))
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=True)
    assert f"{40 - len(there)} pictures of 48 x 40, {len(there)} were there" in again.stdout
    assert sorted(os.listdir(out)) == [f"{i:03}.png" for i in range(40)]


def test_a_background_of_another_size_is_refused_or_resized_where_its_shape_agrees(
    raymat: Any, one: list[str], tmp_path: Path
) -> None:
    mattes.write(tmp_path / "b.png", mattes.picture(246, 154, 2))
    weights = mattes.saved(mattes.network("base"), tmp_path)
    out = tmp_path / "o.png"
    code, _, err = raymat("matte", weights, *one, "-o", str(out))
    assert (code, out.exists()) == (2, False)
    assert err[-1] == (
        f"raymat: error: {tmp_path}/s.png: is 123 x 77 pixels and its background 246 x 154: film both with one "
        "setting, or give --background-fit to resize it, or --align"
    )
    more = ["-o", str(out), "--output-type", "pha"]
    assert raymat("matte", weights, *one, *more, "--background-fit")[0] == 0
    half = cv2.resize(mattes.picture(246, 154, 2), (123, 77), interpolation=cv2.INTER_AREA)
    expected = mattes.by_hand(mattes.network("base"), mattes.picture(123, 77, 1), np.asarray(half))
    assert np.array_equal(mattes.read(out), expected["pha"])
    mattes.write(tmp_path / "b.png", mattes.picture(246, 180, 2))
    code, _, err = raymat("matte", weights, *one, *more, "--background-fit", "--overwrite")
    assert code == 2
    assert "which is another shape: film both with one setting, or try --align" in err[-1]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--source", "{tmp}/none.png"], "--source {tmp}/none.png: no such file or folder"),
        (["--source", "{tmp}/text.txt"], "--source {tmp}/text.txt: expected a picture (jpg, "),
        (["--source", "{tmp}/empty"], "no pictures (jpg, jpeg, png, webp, tif, "),
        (["--source", "{tmp}/twins"], "has a.jpg, a.png: their outputs would have one name"),
        (["--source", "{tmp}/torn.png"], "{tmp}/torn.png: "),
        (["--background", "{tmp}/clip.mp4"], "--background: a video stands behind a video"),
        (["--background", "{tmp}/bgr"], "1 of 1 pictures have no background of their name in {tmp}/bgr: s.png"),
        (["-o", "{tmp}/o.jpg"], "--output {tmp}/o.jpg: pictures are written as PNG: use .png"),
        (["-o", "{tmp}/o.mkv"], "--output {tmp}/o.mkv: videos are written as .mp4 (H.264) or .mov"),
        (["-o", "{tmp}/o.mp4"], "--output {tmp}/o.mp4: the source is no video: use .png or a folder"),
        (["-o", "{tmp}/no/o.png"], "--output {tmp}/no/o.png: there is no folder {tmp}/no"),
        (["-o", "{tmp}/bgr/x.png", "--source", "{tmp}/src"], "the source has many pictures: name a folder"),
        (["-o", "{tmp}/s.png"], "--output {tmp}/s.png is an input: use another name"),
        (["-o", "{tmp}/src/out", "--source", "{tmp}/src"], "--output {tmp}/src/out lies in {tmp}/src"),
        (["-o", "{tmp}/src", "--source", "{tmp}/src"], "--output {tmp}/src is an input: use another name"),
        (["-o", "{tmp}", "--overwrite"], "--output {tmp} is an input: use another name"),
        (["-o", "{tmp}", "--resume"], "--output {tmp} is an input: use another name"),
        (["-o", "{tmp}/o", "--output-type", "com,pha", "--background", "{tmp}/o/pha/s.png"], "--output {tmp}/o is an input"),
        (["-o", "{tmp}/src/p.png", "--composite", "{tmp}/src/p.png", "--overwrite"], "--output {tmp}/src/p.png is an input"),
        (["-o", "{tmp}/s.png", "--source", "file://{tmp}/s.png"], "--output {tmp}/s.png is an input: use another name"),
        (["-o", ""], "--output is empty: name a .png, .mp4 or .mov, or a folder"),
        (["--source", ""], "--source : no such file or folder"),
        (["--background", "{tmp}/s.png"], "--background {tmp}/s.png is the source itself: give the scene without the subject"),
        (["--source", "s3://"], "--source: s3:// names no bucket: write s3://BUCKET/FOLDER"),
        (["-o", "s3://bucket/o.png"], "--output s3://bucket/o.png: expected a path of this machine"),
        (["--output-type", "alpha"], "--output-type takes com, pha, fgr, err, ref, separated by commas, got 'alpha'"),
        (["--output-type", "ref"], "--output-type ref: only a refine network refines patches"),
        (["--output-type", "pha", "--composite", "red"], "--composite: says what stands behind com"),
        (["--composite", "rred"], "--composite rred: expected a colour (white, #78ff9b) or a picture"),
        (["--composite", "rred.png"], "--composite rred.png: no such file or folder"),
        (["--composite", "#78ff9b80"], "--composite #78ff9b80: what stands behind com is opaque: use #78ff9b, or leave it out"),
        (["--composite", "rgba(255, 0, 0, 9)"], "--composite rgba(255, 0, 0, 9): what stands behind com is opaque: use #ff0000,"),
        (["--alpha-bits", "16"], "--alpha-bits 16: says how pha is written, which --output-type leaves out"),
        (["--hold-background"], "--hold-background: there is no video whose last frame could be held"),
        (["--composite", "{tmp}/src"], "--composite {tmp}/src: expected a colour (white, #78ff9b) or a picture"),
        (["--refine-mode", "full"], "--refine-mode: only a refine network refines"),
        (["--overwrite", "--resume"], "--overwrite replaces what exists and --resume keeps it: give one"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    raymat: Any, one: list[str], weights: str, tmp_path: Path, given: list[str], line: str
) -> None:
    (tmp_path / "text.txt").write_text("no picture")
    (tmp_path / "clip.mp4").write_bytes(b"")
    (tmp_path / "torn.png").write_bytes((tmp_path / "s.png").read_bytes()[:3000])
    (tmp_path / "empty").mkdir()
    for name in (
        "twins/a.jpg",
        "twins/a.png",
        "src/p.png",
        "src/q.png",
        "bgr/other.png",
        "o/pha/s.png",
    ):
        mattes.write(tmp_path / name, mattes.picture(8, 8, 1))
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(tmp=tmp_path) for word in given]
    code, out, err = raymat("matte", weights, *one, "-o", f"{tmp_path}/o.png", *words)
    assert (code, out) == (2, [])
    assert err[-1].startswith("raymat: error: ")
    assert line.format(tmp=tmp_path) in err[-1]
    assert len([e for e in err if not e.startswith("matte ")]) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_what_holds_several_pictures_is_said_and_the_first_is_matted(
    raymat: Any, one: list[str], tmp_path: Path, form: str
) -> None:
    frames = [Image.fromarray(mattes.picture(123, 77, seed)) for seed in (1, 2, 3)]
    path = tmp_path / f"moving.{form.lower()}"
    frames[0].save(path, form, save_all=True, append_images=frames[1:])
    weights = mattes.saved(mattes.network("base"), tmp_path)
    code, _, err = raymat("matte", weights, *one, "--source", str(path), "-o", f"{tmp_path}/o.png")
    assert (code, mattes.read(tmp_path / "o.png").shape) == (0, (77, 123, 4))
    assert err[-1] == (
        f"note: {path}: holds 3 pictures, of which the first is read: make a video or a folder of them to matte all"
    )


def test_several_types_may_have_names_made_of_the_source_s(
    raymat: Any, one: list[str], tmp_path: Path
) -> None:
    weights = mattes.saved(mattes.network("base"), tmp_path)
    more = ["-o", f"{tmp_path}/s.png", "--output-type", "com,pha"]
    assert raymat("matte", weights, *one, *more)[0] == 0
    assert np.array_equal(mattes.read(tmp_path / "s.png"), mattes.picture(123, 77, 1))
    assert mattes.read(tmp_path / "s-pha.png").shape == (77, 123)


def test_a_camera_jpeg_with_a_preview_behind_it_is_one_picture(
    raymat: Any, one: list[str], tmp_path: Path
) -> None:
    shot, preview = (Image.fromarray(mattes.picture(123, 77, seed)) for seed in (1, 2))
    shot.save(tmp_path / "s.jpg", "MPO", save_all=True, append_images=[preview])
    weights = mattes.saved(mattes.network("base"), tmp_path)
    more = ["--source", f"{tmp_path}/s.jpg", "-o", f"{tmp_path}/o.png"]
    code, _, err = raymat("matte", weights, *one, *more)
    assert (code, [line for line in err if "note" in line]) == (0, [])


def test_a_background_is_found_whichever_way_its_accents_are_written(
    raymat: Any, tmp_path: Path
) -> None:
    """A Mac writes e and an accent where others write one character: all viewers show the same name."""
    mattes.write(tmp_path / "src/caf\u00e9.png", mattes.picture(8, 8, 1))
    mattes.write(tmp_path / "bgr/cafe\u0301.png", mattes.picture(8, 8, 2))
    weights = mattes.saved(mattes.network("base"), tmp_path)
    inputs = ["--source", f"{tmp_path}/src", "--background", f"{tmp_path}/bgr"]
    assert raymat("matte", weights, *inputs, "-o", f"{tmp_path}/out")[0] == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["caf\u00e9.png"]


def test_files_that_are_no_pictures_are_said(raymat: Any, many: list[str], tmp_path: Path) -> None:
    (tmp_path / "src/notes.txt").write_text("")
    (tmp_path / "src/raw.heic").write_text("")
    weights = mattes.saved(mattes.network("base"), tmp_path)
    code, _, err = raymat("matte", weights, *many, "-o", f"{tmp_path}/out")
    assert code == 0
    assert err[-1] == (
        f"note: notes.txt and 1 more: left out of {tmp_path}/src: only jpg, jpeg, png, webp, tif, tiff, bmp, gif, avif "
        "are read"
    )


def test_a_run_stands_for_its_checkpoint(
    raymat: Any, local: Any, one: list[str], tmp_path: Path
) -> None:
    for step, alpha in ((10, 0.2), (20, 0.6)):
        state = mattes.letting_through("base", alpha).state_dict()
        local.commit(step, tensors={f"model/{name}": tensor for name, tensor in state.items()})
    for what, expected in ((local.url, 153), (f"{local.url}@10", 51)):
        more = ["-o", f"{tmp_path}/o.png", "--output-type", "pha", "--overwrite"]
        assert raymat("matte", what, *one, *more)[0] == 0
        assert np.unique(mattes.read(tmp_path / "o.png")).tolist() == [expected]


def test_numbers_that_are_not_finite_are_refused(
    raymat: Any, one: list[str], tmp_path: Path
) -> None:
    network = mattes.network("base")
    signs = torch.tensor([1.0, -1.0]).repeat(27)[None, :, None, None]
    network.decoder.conv4.weight.data.fill_(3e38).mul_(signs)  # infinity minus infinity
    weights = mattes.saved(network, tmp_path)
    code, _, err = raymat("matte", weights, *one, "-o", f"{tmp_path}/o.png")
    assert (code, (tmp_path / "o.png").exists()) == (2, False)
    assert err[-1] == (
        f"raymat: error: {tmp_path}/s.png: the network gives numbers that are not finite: use --precision fp32, or "
        "an earlier checkpoint"
    )
