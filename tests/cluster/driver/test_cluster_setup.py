"""Which Ray a run is driven on, and what is said of the room there."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

import raymat
from raymat.cluster.driver import launch
from raymat.cluster.driver.cluster_setup import (
    address_to_join,
    check_room,
    installed_packages_first,
    require_room,
)
from raymat.cluster.driver.ray_watch import RayWatch
from raymat.errors import ClusterError, ConfigError
from tests.support.heads import free_port
from tests.support.kit import tiny
from tests.support.paths import ROOT


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ray's record of the last `ray start` on this machine: there was none yet."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray/ray_current_cluster"


def head() -> str:
    return str(ray.get_runtime_context().gcs_address)


def test_the_ray_of_another_run_on_this_machine_is_not_joined(cluster: None, record: Path) -> None:
    assert address_to_join() is None


def test_what_ray_start_started_here_is_joined(cluster: None, record: Path) -> None:
    record.write_text(head())
    assert address_to_join() == head()


def test_a_record_of_a_cluster_that_is_gone_is_said_and_passed_over(
    record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = f"127.0.0.1:{free_port()}"
    record.write_text(gone)
    assert address_to_join() is None
    assert capsys.readouterr().err == (
        f"the Ray cluster at {gone} does not answer any more: starting Ray on this machine\n"
    )


def test_ray_address_decides(cluster: None, record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", head())
    assert address_to_join() == head()
    monkeypatch.setenv("RAY_ADDRESS", "local")
    record.write_text(head())
    assert address_to_join() is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert address_to_join() == head()


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("127.0.0.1:9", "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:9: start it, or unset"),
        ("192.0.2.1:6379", "no Ray cluster answers at RAY_ADDRESS=192.0.2.1:6379: start it, or"),
        ("nonsense", "RAY_ADDRESS=nonsense is no address"),
        ("auto", "RAY_ADDRESS=auto, but no cluster that `ray start` started on this machine"),
    ],
)
def test_an_address_at_which_nothing_answers_costs_seconds_and_one_line(
    address: str, line: str, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(ClusterError) as raised:
        address_to_join()
    assert raised.value.line.startswith(line)
    assert time.monotonic() - began < 30  # Ray's own way takes 240 s


def test_a_temporary_folder_whose_path_is_too_long_for_sockets_is_refused_in_one_line(
    tmp_path: Path,
) -> None:
    folder = tmp_path / ("a" * 100)
    folder.mkdir()
    script = "from raymat.cluster.driver.cluster_setup import running_ray\nwith running_ray(): pass"
    environment = {n: v for n, v in os.environ.items() if n != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"RAY_TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert f"ClusterError: Ray cannot start in {folder}: " in last
    assert last.endswith("set RAY_TMPDIR to a short path with room")


def test_a_ray_of_a_runs_own_has_no_process_that_only_clusters_need(tmp_path: Path) -> None:
    script = """
import os
from pathlib import Path
from raymat.cluster.driver.cluster_setup import running_ray
from tests.support.heads import descendants
with running_ray():
    for pid in descendants(os.getpid()):
        print(Path(f"/proc/{pid}/cmdline").read_text())
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    for needed in ("gcs_server", "raylet", "runtime_env"):
        assert needed in done.stdout
    for in_vain in ("dashboard/dashboard.py", "monitor.py", "log_monitor.py"):
        assert in_vain not in done.stdout


def test_a_folder_called_raymat_in_the_working_directory_shadows_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray hands on the working directory of the moment in which a driver connects."""
    package = Path(raymat.__file__).resolve().parent
    monkeypatch.chdir(tmp_path)
    with installed_packages_first():
        assert Path.cwd() == tmp_path
    (tmp_path / "raymat").mkdir()
    with installed_packages_first():
        assert Path.cwd() == package.parent
    assert Path.cwd() == tmp_path
    monkeypatch.chdir(package.parent)
    with installed_packages_first():
        assert Path.cwd() == package.parent
    assert os.getcwd() == str(package.parent)


@pytest.mark.parametrize("name", ["torch.py", "ray/__init__.py", "yaml.py", "numpy.py", "queue.py"])
def test_no_file_in_the_working_directory_shadows_a_package_in_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    package = Path(raymat.__file__).resolve().parent
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_losses.py").touch()
    (tmp_path / "data").mkdir()
    with installed_packages_first():
        assert Path.cwd() == tmp_path
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with installed_packages_first():
        assert Path.cwd() == package.parent
    assert Path.cwd() == tmp_path
    said = capsys.readouterr()
    first = tmp_path / name.partition("/")[0]
    assert (
        f"{first} is not the package {first.stem}: workers import nothing from {tmp_path}"
        in said.out + said.err
    )


def test_no_program_starts_ray_with_a_file_on_pythonpath_that_shadows_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "yaml.py").touch()
    with (
        pytest.raises(ConfigError, match=r"yaml\.py takes the place of the package yaml"),
        installed_packages_first(),
    ):
        pass


def test_a_file_that_shadows_a_package_beside_raymat_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raymat").symlink_to(Path(raymat.__file__).resolve().parent)
    (tmp_path / "yaml.py").touch()
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(ConfigError, match=r"yaml\.py takes the place of the package yaml"),
        installed_packages_first(),
    ):
        pass


def test_cores_that_others_have_are_said_to_be_waited_for(
    cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class SomebodyElse:
        def here(self) -> None:
            return

    config = tiny("base", tmp_path, "run", workers="2")
    check_room(config, can_grow=False)
    assert capsys.readouterr().err == ""
    other = ray.remote(num_cpus=4)(SomebodyElse).remote()
    ray.get(other.here.remote())
    try:
        deadline = time.monotonic() + 30
        while ray.available_resources().get("CPU", 0) > 0 and time.monotonic() < deadline:
            time.sleep(0.1)
        check_room(config, can_grow=False)
    finally:
        ray.kill(other)
    assert capsys.readouterr().err == (
        "waiting for others to finish: 2 workers need 2 CPU, the cluster has 4, of which 0 is free\n"
    )


def test_a_machine_without_a_gpu_is_told_of_the_device_that_it_has(tmp_path: Path) -> None:
    with pytest.raises(ClusterError) as refused:
        require_room(tiny("base", tmp_path, "run", device="cuda", workers="4"), {"CPU": 2.0})
    assert str(refused.value) == (
        "--device cuda: Ray finds no GPU on this machine, use --device cpu"
    )
    with pytest.raises(ClusterError) as refused:
        require_room(
            tiny("base", tmp_path, "run", device="cuda", workers="4"), {"CPU": 8, "GPU": 2}
        )
    assert str(refused.value) == (
        "4 workers need 4 GPU, the cluster has 2: use fewer --workers or a larger machine"
    )


def test_a_run_that_finds_no_room_has_not_begun(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run.json would refuse the corrected command: the precision of --device cuda is no CPU's."""
    own = contextlib.nullcontext(RayWatch(own=True))
    monkeypatch.setattr(launch, "running_ray", lambda *_: own)
    wanted = tiny("base", tmp_path, "run", device="cuda", precision=None, workers="8", spares=False)
    with pytest.raises(ClusterError):
        launch.fit(wanted)
    assert not (tmp_path / "run/run.json").exists()
