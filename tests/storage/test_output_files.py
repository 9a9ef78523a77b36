"""Laws of the files that commands produce: what takes no file is told before the work, and left as it is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from raymat.errors import ConfigError
from raymat.storage.output_files import check_new_files, check_output


def test_an_output_takes_the_place_of_no_pipe_or_device(tmp_path: Path) -> None:
    pipe = tmp_path / "scores.csv"
    os.mkfifo(pipe)
    link = tmp_path / "link.csv"
    link.symlink_to("/dev/null")
    for path in (pipe, link, Path("/dev/null")):
        with pytest.raises(ConfigError, match="something that is no file is there"):
            check_output("--csv", str(path))
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_file_in_the_place_of_the_outputs_folder_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in ("file/scores.csv", "file/deeper/scores.csv"):
        with pytest.raises(ConfigError, match=f"{tmp_path}/file is no folder"):
            check_output("--csv", str(tmp_path / path))
    check_output("--csv", str(tmp_path / "new" / "deeper" / "scores.csv"))


@pytest.mark.parametrize("new", [True, False])
def test_a_folder_without_the_right_to_write_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool
) -> None:
    path = str(tmp_path / "w.pth")
    # Root, as whom tests may run, may write everywhere.
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    with pytest.raises(ConfigError, match=f"this account may not write in {tmp_path}"):
        if new:
            check_new_files(path, {path: path}, force=False)
        else:
            check_output("--csv", path)
