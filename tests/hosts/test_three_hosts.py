"""What `make hosts` stands on, without its hosts: the cluster file, the metadata server, and what a machine lacks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from raymat.cluster.ray_autoscaler_internals import schema_mistake
from raymat.cluster.spot.metadata import Aws
from raymat.cluster.spot.metadata_request import ask
from tests.hosts import needs
from tests.hosts.cluster_file import cluster_of
from tests.hosts.machine import Machine
from tests.hosts.metadata_server import MetadataHandler
from tests.hosts.transcript import MARK, write_transcript
from tests.support.paths import ROOT


def test_the_hosts_file_is_rays_and_starts_what_cluster_yaml_starts() -> None:
    file = cluster_of(Machine("head", 10), [Machine("one", 11), Machine("two", 12)])
    assert schema_mistake(file) is None
    assert file["provider"]["worker_ips"] == ["10.77.0.11", "10.77.0.12"]
    aws = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    assert len(file["file_mounts"]) == len(aws["file_mounts"])
    (_, head), (_, worker) = file["head_start_ray_commands"], file["worker_start_ray_commands"]
    assert "--dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert worker == (
        "source ~/raymat/deploy/node/env.sh; RAY_raylet_start_wait_time_s=600 ray start --num-cpus=4 "
        "--address=$RAY_HEAD_IP:6379 --object-store-memory=300000000 --object-spilling-directory=/tmp/nvme/spill "
        "&& bash ~/raymat/deploy/node/watch.sh aws"
    )


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The metadata server of a host, with its notice in `tmp_path`."""
    monkeypatch.setattr(MetadataHandler, "notice", tmp_path / "notice.json")
    monkeypatch.setattr(MetadataHandler, "log_request", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), MetadataHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_the_metadata_server_answers_raymats_reader_as_ec2_does(
    endpoint: str, tmp_path: Path
) -> None:
    assert ask(f"{endpoint}/latest/meta-data/spot/instance-action", {}).status == 401
    cloud = Aws(endpoint)
    assert cloud.poll() is None
    notice = {"action": "terminate", "time": "2026-01-31T08:22:00Z"}
    (tmp_path / "notice.json").write_text(json.dumps(notice), encoding="utf-8")
    assert str(cloud.poll()) == "AWS will terminate this spot instance, at 2026-01-31T08:22:00Z"


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "find", lambda program: None)
    monkeypatch.setattr(needs.os, "geteuid", lambda: 1000)
    packages = "iproute2 openssh-client openssh-server procps rsync util-linux"
    assert needs.missing() == (
        f"install {packages.replace(' ', ', ')} (apt-get install {packages}); "
        "root is needed, which makes namespaces of networks, processes and mounts"
    )


def test_a_transcript_replaces_what_stands_behind_its_mark(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{MARK}\n\nold\n", encoding="utf-8")
    write_transcript(page, [("The times:", ["1 s", "2 s"])])
    before, after = page.read_text(encoding="utf-8").split(MARK)
    assert before == "# Page\n\n"
    assert "old\n" not in after
    assert after.endswith("\n\nThe times:\n\n    1 s\n    2 s\n")
