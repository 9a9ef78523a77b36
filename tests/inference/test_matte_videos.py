"""Laws of `raymat matte` on videos: each frame once, in order, at its time, upright; whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from raymat.inference.background_fit import BackgroundFit
from raymat.inference.homography import Aligner
from raymat.inference.pipeline import Stopwatch
from raymat.inference.shots import Notes
from raymat.inference.video_footage import VideoFootage
from raymat.inference.video_reader import VideoReader
from tests.support import mattes
from tests.support.terminal import hear_interrupts
from tests.support.videos import (
    SIDES,
    difference,
    number_of,
    numbered,
    read_video,
    turned,
    write_video,
)

COUNT = 30


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """A network that lets the source through."""
    return mattes.saved(mattes.letting_through("base"), tmp_path)


@pytest.fixture
def clip(tmp_path: Path) -> list[str]:
    """A video of 30 numbered frames and a background picture, as arguments."""
    video = write_video(tmp_path / "clip.mp4", [numbered(i) for i in range(COUNT)])
    mattes.write(tmp_path / "b.png", np.full((SIDES[1], SIDES[0], 3), 128, np.uint8))
    return ["--source", str(video), "--background", f"{tmp_path}/b.png"]


@pytest.mark.parametrize("ending", [".mp4", ".mov"])
def test_each_frame_comes_once_in_order_at_its_time(
    raymat: Any, weights: str, clip: list[str], tmp_path: Path, ending: str
) -> None:
    out = tmp_path / f"out{ending}"
    code, said, _ = raymat("matte", weights, *clip, "-o", str(out), "--composite", "red")
    assert (code, said[1]) == (0, f"{out}: 30 frames of 96 x 64, com")
    found = read_video(out)
    assert [number_of(shown.pixels) for shown in found] == [*range(COUNT)]
    assert [shown.time for shown in found] == [Fraction(i, 25) for i in range(COUNT)]
    assert max(difference(shown.pixels, numbered(i)) for i, shown in enumerate(found)) < 2.5
    assert sorted(os.listdir(tmp_path)) == sorted(["b.png", "clip.mp4", "network.pth", out.name])


def test_batches_keep_order_and_count(
    raymat: Any, weights: str, clip: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    assert raymat("matte", weights, *clip, "-o", str(out), "--batch-size", "7")[0] == 0
    assert [number_of(shown.pixels) for shown in read_video(out)] == [*range(COUNT)]


def test_a_folder_gets_a_picture_of_each_frame(
    raymat: Any, weights: str, clip: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = [*clip, "-o", str(out), "--output-type", "com"]
    assert raymat("matte", weights, *given)[0] == 0
    names = sorted(os.listdir(out))
    assert names == [f"{i:06}.png" for i in range(COUNT)]
    pictures = [mattes.read(out / name) for name in names]
    assert [number_of(picture[..., :3]) for picture in pictures] == [*range(COUNT)]
    assert all((picture[..., 3] == 255).all() for picture in pictures)
    decoded = read_video(tmp_path / "clip.mp4")[7].pixels
    assert np.array_equal(pictures[7][..., :3], decoded)
    (out / "000012.png").unlink()
    before = (out / "000013.png").stat().st_mtime_ns
    assert raymat("matte", weights, *given)[0] == 2
    code, said, _ = raymat("matte", weights, *given, "--resume")
    assert (code, said[1]) == (0, f"{out}: 1 frame of 96 x 64, 29 were there, com")
    assert number_of(mattes.read(out / "000012.png")[..., :3]) == 12
    assert (out / "000013.png").stat().st_mtime_ns == before


def test_prores_holds_the_alpha_and_mp4_stands_before_green(
    raymat: Any, clip: list[str], tmp_path: Path
) -> None:
    weights = mattes.saved(mattes.letting_through("base", alpha=0.25), tmp_path)
    for name in ("out.mov", "out.mp4"):
        assert raymat("matte", weights, *clip, "-o", f"{tmp_path}/{name}")[0] == 0
    seen = [shown.pixels for shown in read_video(tmp_path / "out.mov", "rgba")]
    assert len(seen) == COUNT
    assert {int(level) for frame in seen for level in np.unique(frame[..., 3])} <= {63, 64, 65}
    assert difference(seen[9][..., :3], numbered(9)) < 2.5
    green = np.array([0x78, 0xFF, 0x9B])
    composite = read_video(tmp_path / "out.mp4")[9].pixels
    assert difference(composite, numbered(9) * 0.25 + green * 0.75) < 2.5


def test_several_types_are_a_video_each(
    raymat: Any, weights: str, clip: list[str], tmp_path: Path
) -> None:
    out = f"{tmp_path}/out.mp4"
    assert raymat("matte", weights, *clip, "-o", out, "--output-type", "pha,fgr,err")[0] == 0
    alpha, colours, _ = (read_video(tmp_path / f"out-{kind}.mp4") for kind in ("pha", "fgr", "err"))
    assert all((shown.pixels >= 253).all() for shown in alpha)
    assert [number_of(shown.pixels) for shown in colours] == [*range(COUNT)]
    assert not Path(out).exists()


def test_a_variable_frame_rate_is_kept(raymat: Any, weights: str, tmp_path: Path) -> None:
    base = Fraction(1, 15360)
    steps = [512, 1024, 333, 7, 2048]
    ticks = [sum(steps[j % 5] for j in range(i)) for i in range(40)]
    frames = [numbered(i) for i in range(40)]
    video = write_video(tmp_path / "clip.mp4", frames, ticks, base)
    background = mattes.write(tmp_path / "b.png", np.full_like(frames[0], 128))
    given = ["--source", str(video), "--background", str(background)]
    for name in ("out.mp4", "out.mov"):
        assert (
            raymat("matte", weights, *given, "-o", f"{tmp_path}/{name}", "--composite", "red")[0]
            == 0
        )
        found = read_video(tmp_path / name)
        assert [shown.time for shown in found] == [tick * base for tick in ticks]
        assert [number_of(shown.pixels) for shown in found] == [*range(40)]


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_a_phones_video_is_turned_upright(
    raymat: Any, weights: str, tmp_path: Path, clockwise: int
) -> None:
    upright = [numbered(i) for i in range(5)]
    stored = [np.ascontiguousarray(np.rot90(frame, clockwise // 90)) for frame in upright]
    video = turned(write_video(tmp_path / "clip.mp4", stored), clockwise)
    background = mattes.write(tmp_path / "b.png", np.full_like(upright[0], 128))
    given = ["--source", str(video), "--background", str(background)]
    assert raymat("matte", weights, *given, "-o", f"{tmp_path}/out")[0] == 0
    for i, frame in enumerate(upright):
        found = mattes.read(tmp_path / f"out/{i:06}.png")
        assert found.shape[:2] == frame.shape[:2]
        assert difference(found[..., :3], frame) < 2.5
    assert raymat("matte", weights, *given, "-o", f"{tmp_path}/out.mp4")[0] == 0
    assert difference(read_video(tmp_path / "out.mp4")[3].pixels, upright[3]) < 2.5


@pytest.mark.parametrize(("ending", "sides"), [(".mp4", (96, 64)), (".mov", (95, 63))])
def test_odd_sides_stay_or_become_even_with_a_note(
    raymat: Any, weights: str, tmp_path: Path, ending: str, sides: tuple[int, int]
) -> None:
    frames = [numbered(i, (95, 63)) for i in range(6)]
    video = write_video(tmp_path / "clip.mov", frames, codec="png", pixels="rgb24")
    background = mattes.write(tmp_path / "b.png", np.full_like(frames[0], 128))
    out = tmp_path / f"out{ending}"
    given = ["--source", str(video), "--background", str(background), "-o", str(out)]
    code, _, err = raymat("matte", weights, *given)
    found = read_video(out)
    assert (code, found[0].pixels.shape[1::-1]) == (0, sides)
    assert difference(found[5].pixels[:63, :95], frames[5]) < 2.5
    notes = [line for line in err if line.startswith("note: ")]
    assert notes == (
        []
        if ending == ".mov"
        else [
            f"note: {out}: H.264 needs even sides: the last row or column is repeated; a .mov keeps the size"
        ]
    )


def test_a_background_video_is_taken_frame_by_frame(raymat: Any, tmp_path: Path) -> None:
    network = mattes.network("base")
    weights = mattes.saved(network, tmp_path)
    sources = [numbered(i) for i in range(6)]
    backs = [np.full_like(sources[0], 40 * i) for i in range(6)]
    clips = [
        write_video(tmp_path / f"{name}.mov", frames, codec="png", pixels="rgb24")
        for name, frames in (("s", sources), ("b", backs))
    ]
    given = ["--source", str(clips[0]), "--background", str(clips[1])]
    more = ["-o", f"{tmp_path}/out", "--output-type", "pha"]
    assert raymat("matte", weights, *given, *more)[0] == 0
    for i in range(6):
        expected = mattes.by_hand(network, sources[i], backs[i])["pha"]
        assert np.array_equal(mattes.read(tmp_path / f"out/{i:06}.png"), expected)


def test_a_shorter_background_video_stops_with_a_line_or_is_held(
    raymat: Any, weights: str, clip: list[str], tmp_path: Path
) -> None:
    short = write_video(tmp_path / "short.mp4", [numbered(0)] * 25)
    out = tmp_path / "out.mp4"
    given = [*clip, "--background", str(short), "-o", str(out)]
    code, _, err = raymat("matte", weights, *given)
    assert (code, out.exists()) == (2, False)
    assert err == [
        f"raymat: error: {short} ends after 25 frames, before the source: film it longer, or give --hold-background to "
        "go on with its last frame"
    ]
    assert raymat("matte", weights, *given, "--hold-background")[0] == 0
    assert [number_of(shown.pixels) for shown in read_video(out)] == [*range(COUNT)]


def test_colours_survive_whatever_the_source_says_of_them(
    raymat: Any, weights: str, tmp_path: Path
) -> None:
    """Small pictures without a statement are BT.601, and a full range is one."""
    frames = [np.full((64, 96, 3), (230, 60, 20), np.uint8)] * 3
    background = mattes.write(tmp_path / "b.png", frames[0])
    for pixels in ("yuv420p", "yuvj420p", "yuv444p"):
        codec = "mjpeg" if pixels == "yuvj420p" else "libx264"
        video = write_video(tmp_path / "clip.mov", frames, codec=codec, pixels=pixels)
        given = ["--source", str(video), "--background", str(background), "--overwrite"]
        assert raymat("matte", weights, *given, "-o", f"{tmp_path}/out.mov")[0] == 0
        found = read_video(tmp_path / "out.mov")[1].pixels
        assert np.abs(found.astype(int) - frames[0]).max() <= 4, pixels


def test_sound_that_is_not_copied_is_said(
    raymat: Any, weights: str, clip: list[str], tmp_path: Path
) -> None:
    video = write_video(tmp_path / "loud.mp4", [numbered(i) for i in range(5)], sound=True)
    given = [*clip, "--source", str(video), "-o", f"{tmp_path}/out.mp4"]
    code, _, err = raymat("matte", weights, *given)
    assert code == 0
    assert err[-1] == (
        f"note: {video}: its sound is not copied; ffmpeg -i OUT -i SOURCE -map 0:v -map 1:a -c copy NEW adds it"
    )


def test_a_moving_camera_is_followed_frame_by_frame(
    raymat: Any, weights: str, tmp_path: Path
) -> None:
    still = mattes.scene()
    frames = [np.roll(still, 3 * i, axis=1) for i in range(4)]
    video = write_video(tmp_path / "clip.mov", frames, codec="png", pixels="rgb24")
    footage = VideoFootage(
        VideoReader(str(video), Notes()),
        still,
        BackgroundFit(Notes(), aligner=Aligner()),
        Stopwatch(),
    )
    shots = [*footage.shots(lambda name: True)]
    assert len(shots) == 4
    for shot in shots[1:]:
        aligned = difference(shot.background[:, 12:], shot.source[:, 12:])
        assert 10 * aligned < difference(still[:, 12:], shot.source[:, 12:])
    background = tmp_path / "b.png"
    given = ["--source", str(video), "--background", str(background), "-o", f"{tmp_path}/out"]
    plain = np.full_like(still, 90)
    mattes.write(background, plain)
    code, _, err = raymat("matte", weights, *given, "--align")
    assert code == 0
    assert err[-1] == (
        f"note: {video}, frame 0 and 3 more: too little in common with its background to align it"
    )


@pytest.mark.slow
def test_a_job_that_is_killed_leaves_nothing_under_the_final_name(
    weights: str, clip: list[str], tmp_path: Path
) -> None:
    video = write_video(tmp_path / "long.mp4", [numbered(i % 1000) for i in range(1500)])
    out = tmp_path / "out.mp4"
    command = [sys.executable, "-c", "from raymat.cli.main import main; raise SystemExit(main())"]
    command += ["matte", weights, *clip, "--source", str(video), "-o", str(out), "--threads", "1"]
    for number in (signal.SIGKILL, signal.SIGINT):
        running = subprocess.Popen(
            command,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            preexec_fn=hear_interrupts,
        )
        deadline = time.monotonic() + 120
        while not [p for p in tmp_path.glob(".tmp-*") if f"-{running.pid}-" in p.name]:
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.send_signal(number)
        code = running.wait(300)  # beside other tests a minute was not enough
        assert not out.exists()
        left = [*tmp_path.glob(".tmp-*")]
        # What the killed one left, the next one removes.
        assert (code, len(left)) == ((-9, 1) if number == signal.SIGKILL else (130, 0))


@pytest.mark.parametrize("what", ["text", "empty", "torn", "no end", "header", "sound", "damaged"])
def test_a_video_that_cannot_be_read_whole_is_one_line(
    raymat: Any, weights: str, clip: list[str], tmp_path: Path, what: str
) -> None:
    bad = tmp_path / "bad.mp4"
    content = (tmp_path / "clip.mp4").read_bytes()
    start = content.index(b"mdat")
    data = {
        "text": b"no video at all" * 100,
        "empty": b"",
        "torn": content[:start],
        "no end": content[: start + 2000],
        "header": content[: content.index(b"stsd") + 8],
        "sound": content.replace(b"vide", b"soun"),
        "damaged": content[: start + 1200] + b"\xff" * 3000 + content[start + 4200 :],
    }[what]
    bad.write_bytes(data)
    out = tmp_path / "out.mp4"
    code, said, err = raymat("matte", weights, *clip, "--source", str(bad), "-o", str(out))
    assert (code, said, out.exists()) == (2, [], False)
    errors = [line for line in err if line.startswith("raymat: error: ")]
    assert len(errors) == 1
    assert str(bad) in errors[0]
    assert [*tmp_path.glob(".tmp-*")] == []


def test_a_video_that_states_no_number_and_is_cut_off_is_said(
    raymat: Any, weights: str, clip: list[str], tmp_path: Path
) -> None:
    """A download or a recording that broke off: Matroska says how long it should be, not how many frames."""
    whole = write_video(tmp_path / "whole.mkv", [numbered(i) for i in range(COUNT)])
    content = whole.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: 2 * len(content) // 3])
    notes = {}
    for name in ("whole", "cut"):
        more = ["--source", f"{tmp_path}/{name}.mkv", "-o", f"{tmp_path}/{name}.mp4"]
        code, _, err = raymat("matte", weights, *clip, *more)
        assert code == 0
        notes[name] = [line for line in err if line.startswith("note: ")]
    shown = len(read_video(tmp_path / "cut.mp4"))
    assert 0 < shown < COUNT
    assert notes["whole"] == []
    (note,) = notes["cut"]
    assert note.startswith(f"note: {tmp_path}/cut.mkv: states 1.20 s and shows ")
    assert note.endswith(" s: the rest is cut off or missing")


def test_the_video_is_matted_and_not_the_cover_before_it(
    raymat: Any, weights: str, clip: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "covered.mkv"
    with av.open(str(path), "w") as container:
        cover, stream = container.add_stream("mjpeg", rate=25), container.add_stream("libx264", 25)
        for made, sides, kind in ((cover, (32, 32), "yuvj420p"), (stream, SIDES, "yuv420p")):
            made.width, made.height, made.pix_fmt = *sides, kind
        for made, count in ((cover, 1), (stream, 3)):
            for i in range(count):
                picture = numbered(i) if made is stream else np.zeros((32, 32, 3), np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                container.mux(made.encode(frame))
            container.mux(made.encode(None))
    out = tmp_path / "out.mov"
    assert raymat("matte", weights, *clip, "--source", str(path), "-o", str(out))[0] == 0
    assert [number_of(shown.pixels) for shown in read_video(out)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["-o", "{tmp}/o.png"], "--output {tmp}/o.png: the source has many pictures: name a folder"),
        (["--background", "{tmp}/b"], "--background: behind a video stands a picture or a video, {tmp}/b is a folder"),
        (["-o", "{tmp}/clip.mp4", "--overwrite"], "--output {tmp}/clip.mp4 is an input: use another name"),
        (["-o", "{tmp}/there.mp4"], "{tmp}/there.mp4 exists: --resume keeps what is there and goes on"),
        (["--composite", "{tmp}/clip.mp4"], "--composite {tmp}/clip.mp4: expected a colour (white, #78ff9b) or a picture"),
        (["--source", "s3://bucket/clip.mp4"], "--source s3://bucket/clip.mp4: videos are read from this machine"),
        (["--alpha-bits", "16"], "--alpha-bits 16: videos have their own depth"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_with_a_video_is_one_line(
    raymat: Any, weights: str, clip: list[str], tmp_path: Path, given: list[str], line: str
) -> None:
    (tmp_path / "there.mp4").write_bytes(b"mine")
    (tmp_path / "b").mkdir()
    words = [word.format(tmp=tmp_path) for word in given]
    code, out, err = raymat("matte", weights, *clip, "-o", f"{tmp_path}/o.mp4", *words)
    assert (code, out, len(err)) == (2, [], 1)
    assert line.format(tmp=tmp_path) in err[0]
    assert (tmp_path / "there.mp4").read_bytes() == b"mine"


def test_a_video_that_is_there_is_kept_by_resume(
    raymat: Any, weights: str, clip: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "there.mp4"
    out.write_bytes(b"mine")
    code, said, _ = raymat("matte", weights, *clip, "-o", str(out), "--resume")
    assert (code, said[1]) == (0, f"{out}: nothing to do, 30 were there")
    assert out.read_bytes() == b"mine"
