"""Laws of the spot watch: a cloud's notice drains this node once, with its deadline, whatever else fails."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymat.cluster.spot import drain, watch
from raymat.cluster.spot import metadata_request as clouds
from raymat.cluster.spot.metadata import (
    Auto,
    Aws,
    Azure,
    Gcp,
    Interruption,
    aws_action,
    aws_rebalance,
    azure_preemption,
    gcp_preempted,
)
from raymat.cluster.spot.metadata_request import MetadataError
from raymat.cluster.spot.watch import Options, SpotWatch, address_of, cloud_of, says_more
from raymat.errors import ClusterError, ConfigError
from tests.support.heads import listens, standing_head, wait_for
from tests.support.paths import ROOT

NODE = "ab" * 28
NOW = 1_505_722_800.0  # 2017-09-18T08:20:00Z
AWS_ACTION = '{"action": "terminate", "time": "2017-09-18T08:22:00Z"}'
AWS_DEADLINE = 1_505_722_920.0
ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
TOKEN = "/latest/api/token"
PREEMPTED = "/computeMetadata/v1/instance/preempted"
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"


def azure_event(**fields: Any) -> dict[str, Any]:
    """An event as in Azure's documents."""
    return {
        "EventId": "602d9444-d2cd-49c7-8624-8643e7171297",
        "EventType": "Preempt",
        "ResourceType": "VirtualMachine",
        "Resources": ["FrontEnd_IN_0", "BackEnd_IN_0"],
        "EventStatus": "Scheduled",
        "NotBefore": "Mon, 18 Sep 2017 08:20:30 GMT",
        "Description": "",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    } | fields


def azure_events(*events: Any) -> str:
    return json.dumps({"DocumentIncarnation": 1, "Events": events})


class Metadata(ThreadingHTTPServer):
    """A metadata service: `answers` maps a path to (status, text), to a function of the headers, or to "hang"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.ended = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def be_aws(self, tokens: tuple[str, ...] = ("one", "two", "three")) -> None:
        """Grants tokens in turn; only the last granted is good."""
        granted: list[str] = []

        def grant(headers: Any) -> tuple[int, str]:
            assert 1 <= int(headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600
            granted.append(tokens[len(granted)])
            return 200, granted[-1]

        def guarded(answer: Callable[[], tuple[int, str]]) -> Callable[[Any], tuple[int, str]]:
            def check(headers: Any) -> tuple[int, str]:
                good = granted and headers["X-aws-ec2-metadata-token"] == granted[-1]
                return answer() if good else (401, "")

            return check

        self.granted = granted
        self.action: tuple[int, str] = (404, "")
        self.recommendation: tuple[int, str] = (404, "")
        self.answers = {
            f"PUT {TOKEN}": grant,
            f"GET {ACTION}": guarded(lambda: self.action),
            f"GET {REBALANCE}": guarded(lambda: self.recommendation),
        }

    def be_gcp(self, text: str = "FALSE") -> None:
        def answer(headers: Any) -> tuple[int, str]:
            return (200, text) if headers["Metadata-Flavor"] == "Google" else (403, "")

        self.answers = {f"GET {PREEMPTED}": answer}

    def be_azure(self, text: str, name: tuple[int, str] = (200, "FrontEnd_IN_0")) -> None:
        def guarded(answer: tuple[int, str]) -> Callable[[Any], tuple[int, str]]:
            return lambda headers: answer if headers["Metadata"] == "true" else (400, "")

        self.answers = {f"GET {EVENTS}": guarded((200, text)), f"GET {NAME}": guarded(name)}


class Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_GET(self) -> None:
        asked = f"{self.command} {self.path}"
        self.server.asked.append(asked)
        answer = self.server.answers.get(asked, (404, ""))
        if answer == "hang":
            self.server.ended.wait(10)
            return
        if answer == "rubbish":
            self.wfile.write(b"\x00\xff not http\r\n\r\n")
            return
        status, text = answer(self.headers) if callable(answer) else answer
        self.send_response(status)
        if status == 302:
            self.send_header("Location", text)
        self.end_headers()
        self.wfile.write(text if isinstance(text, bytes) else text.encode())

    do_PUT = do_GET

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clouds, "ANSWER_SECONDS", 0.2)


class Drains:
    """Stands for Ray: remembers the drains that it accepted, and refuses while told to."""

    def __init__(self) -> None:
        self.accepted: list[Interruption] = []
        self.attempts = 0
        self.refusing = ""

    def __call__(self, notice: Interruption) -> str:
        self.attempts += 1
        if self.refusing:
            raise ClusterError(self.refusing)
        self.accepted.append(notice)
        return NODE


class Scene:
    """A watch on a cloud, what it drained and what it said, and the time."""

    def __init__(self, cloud: Any) -> None:
        self.now = NOW
        self.drains = Drains()
        self.lines: list[str] = []
        self.watch = SpotWatch(cloud, self.drains, self.lines.append, lambda: self.now)

    def steps(self, count: int = 3, seconds: float = 2.0) -> Scene:
        for _ in range(count):
            self.watch.poll()
            self.now += seconds
        return self

    @property
    def deadlines(self) -> list[float | None]:
        return [notice.deadline for notice in self.drains.accepted]


# What the clouds answer.


def test_the_time_in_awss_notice_is_the_deadline() -> None:
    notice = aws_action(AWS_ACTION)
    assert notice.deadline == AWS_DEADLINE
    assert "terminate" in notice.reason
    assert aws_action('{"action": "stop", "time": "2017-09-18T08:22:00.500Z"}').deadline == (
        AWS_DEADLINE + 0.5
    )


def test_awss_recommendation_has_no_deadline() -> None:
    assert aws_rebalance('{"noticeTime": "2020-10-27T08:22:00Z"}').deadline is None


def test_gcps_true_leaves_thirty_seconds() -> None:
    assert gcp_preempted("FALSE\n", NOW) is None
    notice = gcp_preempted("TRUE\n", NOW)
    assert notice is not None
    assert notice.deadline == NOW + 30


def test_azures_deadline_is_the_earliest_preemption_of_this_machine() -> None:
    text = azure_events(
        azure_event(EventType="Reboot", NotBefore="Mon, 18 Sep 2017 08:20:10 GMT"),
        azure_event(Resources=["other"], NotBefore="Mon, 18 Sep 2017 08:20:20 GMT"),
        azure_event(NotBefore="Mon, 18 Sep 2017 08:21:00 GMT"),
        azure_event(),
    )
    notice = azure_preemption(text, "frontend_in_0", NOW)
    assert notice is not None
    assert notice.deadline == NOW + 30


def test_azures_events_of_other_machines_and_kinds_are_no_notice() -> None:
    for event in (
        azure_event(Resources=["other"]),
        azure_event(EventType="Freeze"),
        azure_event(EventType="Terminate"),
        "not an event",
    ):
        assert azure_preemption(azure_events(event), "FrontEnd_IN_0", NOW) is None
    assert azure_preemption(azure_events(), "FrontEnd_IN_0", NOW) is None


def test_an_azure_event_that_has_started_leaves_no_time() -> None:
    text = azure_events(azure_event(EventStatus="Started", NotBefore=""))
    notice = azure_preemption(text, "FrontEnd_IN_0", NOW)
    assert notice is not None
    assert notice.deadline == NOW


GARBAGE = [
    "",
    "null",
    "[]",
    "{}",
    "TRUEish",
    "<html>",
    '{"action": 3, "time": []}',
    '{"Events": 7}',
]


@pytest.mark.parametrize("text", [*GARBAGE, "[" * 50_000, '{"action":"stop","time":"soon"}'])
def test_what_no_cloud_documents_is_an_error_and_no_notice(text: str) -> None:
    for parse in (
        aws_action,
        aws_rebalance,
        lambda t: gcp_preempted(t, NOW),
        lambda t: azure_preemption(t, "", NOW),
    ):
        with pytest.raises(MetadataError) as caught:
            parse(text)
        assert len(caught.value.line) < 150


def test_an_azure_time_that_is_none_is_an_error() -> None:
    with pytest.raises(MetadataError, match="expected a time"):
        azure_preemption(azure_events(azure_event(NotBefore="soon")), "", NOW)


# What is decided.


def test_ray_is_told_what_leaves_less_time_and_nothing_else() -> None:
    recommendation, notice = Interruption("r"), Interruption("n", NOW + 120)
    assert says_more(recommendation, None)
    assert says_more(notice, recommendation)
    assert says_more(Interruption("n", NOW + 60), notice)
    for same in (notice, recommendation, Interruption("n", NOW + 122)):
        assert not says_more(same, notice)
    assert not says_more(recommendation, recommendation)


# The watch on a metadata service.


def test_a_notice_of_aws_drains_exactly_once_with_its_deadline(metadata: Metadata) -> None:
    metadata.be_aws()
    scene = Scene(Aws(metadata.url)).steps()
    assert scene.deadlines == []
    metadata.action = (200, AWS_ACTION)
    scene.steps()
    assert scene.deadlines == [AWS_DEADLINE]
    assert scene.drains.attempts == 1
    assert metadata.granted == ["one"]


def test_a_watch_says_one_line_for_each_change_and_none_for_a_poll(metadata: Metadata) -> None:
    metadata.be_aws()
    scene = Scene(Aws(metadata.url)).steps(5)
    metadata.action = (503, "")
    scene.steps(5)
    metadata.action = (200, AWS_ACTION)
    scene.steps(5)
    assert [re.sub(r"http\S+:\d+", "URL", line) for line in scene.lines] == [
        "the metadata service answers",
        f"no answer, asking on: URL{ACTION}: HTTP 503",
        "the metadata service answers",
        "notice: AWS will terminate this spot instance, at 2017-09-18T08:22:00Z",
        "Ray drains node abababab",
    ]


@pytest.mark.parametrize(
    "trouble",
    [(500, ""), (404, ""), "hang", "rubbish", (200, "<html>"), (200, b"\xff"), (302, "http://x")],
    ids=str,
)
@pytest.mark.parametrize("path", [f"GET {ACTION}", f"PUT {TOKEN}"])
def test_a_notice_is_heard_after_any_trouble(metadata: Metadata, path: str, trouble: Any) -> None:
    metadata.be_aws(("one", "two", "three", "four"))
    scene = Scene(Aws(metadata.url))
    good = metadata.answers[path]
    metadata.answers[path] = trouble
    scene.steps(2)
    assert scene.deadlines == []
    metadata.answers[path] = good
    metadata.action = (200, AWS_ACTION)
    assert scene.steps().deadlines == [AWS_DEADLINE]
    assert len(scene.lines) <= 4


def test_a_silent_service_holds_a_step_for_little_longer_than_its_time_out(
    metadata: Metadata,
) -> None:
    metadata.answers = {f"PUT {TOKEN}": "hang"}
    began = time.monotonic()
    Scene(Aws(metadata.url)).steps(1)
    assert time.monotonic() - began < 10


def test_a_service_that_is_not_there_is_asked_until_it_is(metadata: Metadata) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        cloud = Aws(f"http://127.0.0.1:{unused.getsockname()[1]}")
        scene = Scene(cloud).steps()
    assert len(scene.lines) == 1
    metadata.be_aws()
    metadata.action = (200, AWS_ACTION)
    cloud.endpoint = metadata.url
    assert scene.steps().deadlines == [AWS_DEADLINE]


def test_a_token_that_is_refused_is_replaced_in_the_same_step(metadata: Metadata) -> None:
    metadata.be_aws()
    scene = Scene(Aws(metadata.url)).steps(1)
    metadata.granted.append("elsewhere")  # the first is good no longer
    metadata.action = (200, AWS_ACTION)
    assert scene.steps(1).deadlines == [AWS_DEADLINE]
    assert metadata.granted == ["one", "elsewhere", "three"]


def test_a_service_that_refuses_every_token_is_an_error_and_not_a_loop(metadata: Metadata) -> None:
    metadata.be_aws()
    metadata.action = (401, "")
    scene = Scene(Aws(metadata.url)).steps(1)
    assert len(metadata.asked) == 4
    assert "HTTP 401" in scene.lines[0]


def test_a_token_is_renewed_before_it_expires(metadata: Metadata) -> None:
    metadata.be_aws()
    now = [0.0]
    cloud = Aws(metadata.url, clock=lambda: now[0])
    for seconds, granted in ((0, 1), (21000, 1), (21599, 2), (21600, 2)):
        now[0] = seconds
        assert cloud.poll() is None
        assert len(metadata.granted) == granted


def test_a_token_is_in_no_message(metadata: Metadata) -> None:
    metadata.be_aws(("secret\nsecret",))
    scene = Scene(Aws(metadata.url)).steps(1)
    assert "no token" in scene.lines[0]
    assert "secret" not in scene.lines[0] + repr(Aws(_token="secret"))


def test_a_recommendation_counts_only_when_asked_for(metadata: Metadata) -> None:
    metadata.be_aws()
    metadata.recommendation = (200, '{"noticeTime": "2017-09-18T08:10:00Z"}')
    assert Scene(Aws(metadata.url)).steps().deadlines == []
    assert f"GET {REBALANCE}" not in metadata.asked
    metadata.be_aws()
    metadata.recommendation = (200, '{"noticeTime": "2017-09-18T08:10:00Z"}')
    scene = Scene(Aws(metadata.url, rebalance=True)).steps()
    assert scene.deadlines == [None]
    metadata.action = (200, AWS_ACTION)
    assert scene.steps().deadlines == [None, AWS_DEADLINE]


def test_gcps_notice_drains_once_with_the_deadline_of_its_first_sight(metadata: Metadata) -> None:
    metadata.be_gcp()
    scene = Scene(None)
    scene.watch._cloud = Gcp(metadata.url, lambda: scene.now)
    scene.steps(3)
    metadata.be_gcp("TRUE")
    assert scene.steps(10).deadlines == [NOW + 6 + 30]


def test_azures_notice_drains_once(metadata: Metadata) -> None:
    metadata.be_azure(azure_events())
    cloud = Azure(metadata.url)
    scene = Scene(cloud).steps()
    metadata.be_azure(azure_events(azure_event()))
    assert scene.steps().deadlines == [NOW + 30]
    metadata.be_azure(azure_events(azure_event(EventStatus="Started", NotBefore="")))
    assert scene.steps().deadlines == [NOW + 30]
    assert metadata.asked.count(f"GET {NAME}") == 1


def test_azures_notice_to_another_machine_of_the_set_drains_nothing(metadata: Metadata) -> None:
    metadata.be_azure(azure_events(azure_event()), name=(200, "BackEnd_IN_7"))
    assert Scene(Azure(metadata.url)).steps().deadlines == []


def test_a_machine_whose_name_azure_does_not_tell_takes_every_notice(metadata: Metadata) -> None:
    metadata.be_azure(azure_events(azure_event()), name=(500, ""))
    scene = Scene(Azure(metadata.url)).steps()
    assert scene.deadlines == []
    metadata.be_azure(azure_events(azure_event()), name=(404, ""))
    assert scene.steps().deadlines == [NOW + 30]


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_the_cloud_is_found_by_asking_each_until_one_answers(
    metadata: Metadata, cloud: str
) -> None:
    auto = Auto((Aws(metadata.url), Gcp(metadata.url, lambda: NOW), Azure(metadata.url)))
    scene = Scene(auto).steps()
    assert [line[:31] for line in scene.lines] == ["no answer, asking on: no cloud'"]
    if cloud == "aws":
        metadata.be_aws()
        metadata.action = (200, AWS_ACTION)
    elif cloud == "gcp":
        metadata.be_gcp("TRUE")
    else:
        metadata.be_azure(azure_events(azure_event()))
    assert scene.steps().deadlines == [{"aws": AWS_DEADLINE}.get(cloud, NOW + 30)]
    asked = len(metadata.asked)
    scene.steps(1)
    assert len(metadata.asked) == asked + 1


def test_no_proxy_is_asked(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    metadata.be_gcp("TRUE")
    assert Gcp(metadata.url, lambda: NOW).poll() is not None


# Ray that does not accept.


def test_a_drain_is_tried_until_ray_accepts_it_even_if_the_cloud_falls_silent(
    metadata: Metadata,
) -> None:
    metadata.be_aws()
    metadata.action = (200, AWS_ACTION)
    scene = Scene(Aws(metadata.url))
    scene.drains.refusing = "the head is away"
    scene.steps(3)
    metadata.answers = {f"GET {ACTION}": (500, "")}
    scene.steps(3)
    assert scene.drains.attempts == 6
    scene.drains.refusing = ""
    assert scene.steps(3).deadlines == [AWS_DEADLINE]
    assert sum("trying on" in line for line in scene.lines) == 1


def test_a_drain_is_given_up_when_the_deadline_has_passed(metadata: Metadata) -> None:
    metadata.be_aws()
    metadata.action = (200, AWS_ACTION)
    scene = Scene(Aws(metadata.url))
    scene.drains.refusing = "the head is away"
    scene.steps(5, seconds=40)
    assert scene.drains.attempts == 4  # after 0, 40, 80 and 120 s
    assert scene.lines[-1].startswith("Ray accepted no drain before the deadline")


def test_a_deadline_that_has_passed_when_it_is_heard_is_tried_once(metadata: Metadata) -> None:
    metadata.be_aws()
    metadata.action = (200, AWS_ACTION)
    scene = Scene(Aws(metadata.url))
    scene.now = AWS_DEADLINE + 5
    assert scene.steps().deadlines == [AWS_DEADLINE]


def test_a_notice_that_is_withdrawn_before_ray_accepted_it_is_forgotten(metadata: Metadata) -> None:
    metadata.be_aws()
    metadata.action = (200, AWS_ACTION)
    scene = Scene(Aws(metadata.url))
    scene.drains.refusing = "the head is away"
    scene.steps(1)
    metadata.action = (404, "")
    scene.drains.refusing = ""
    assert scene.steps().deadlines == []
    assert sum("withdrawn" in line for line in scene.lines) == 1
    metadata.action = (200, AWS_ACTION)
    assert scene.steps().deadlines == [AWS_DEADLINE]


def test_a_notice_that_comes_and_goes_drains_once(metadata: Metadata) -> None:
    metadata.be_aws()
    scene = Scene(Aws(metadata.url))
    for _ in range(3):
        metadata.action = (200, AWS_ACTION)
        scene.steps(1)
        metadata.action = (404, "")
        scene.steps(1)
    assert scene.deadlines == [AWS_DEADLINE]


def drain_of(address: str | None, node: str | None) -> drain.DrainProcess:
    return drain.DrainProcess(address, node, lambda line: None)


def test_a_process_that_hangs_is_ended_and_one_that_dies_says_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(stand_in))
    monkeypatch.setattr(drain, "DRAIN_SECONDS", 0.5)
    for script, words in (
        ("exec sleep 30", "did not answer within"),
        (
            "echo '{'; echo 'F: Failed to connect to GCS' >&2; exit 1",
            "^F: Failed to connect to GCS",
        ),
        ("kill -ABRT $$", "ended with -6"),
    ):
        stand_in.write_text(f"#!/bin/sh\n{script}\n")
        stand_in.chmod(0o755)
        with pytest.raises(ClusterError, match=words):
            drain_of(None, NODE)(Interruption("r"))


def test_a_head_that_is_away_is_told_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(ClusterError, match=rf"^Ray's head at \S+:{port}: Connection refused$"):
            drain_of(f"127.0.0.1:{port}", NODE)(Interruption("r"))


@pytest.mark.slow
def test_where_no_order_is_answered_ray_start_is_told_to_end_and_drains_by_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with standing_head(cpus=1) as head:
        starter, node = head.node()
        stand_in = tmp_path / "python"
        stand_in.write_text("#!/bin/sh\nexec sleep 30\n")
        stand_in.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(stand_in))
        monkeypatch.setattr(drain, "DRAIN_SECONDS", 0.5)
        said: list[str] = []
        assert drain.DrainProcess(head.address, node, said.append)(Interruption("r")) == node
        assert said == [
            f"Ray did not answer within 0 s: SIGTERM to process {starter}, `ray start`, which drains the node"
        ]
        wait_for(lambda: not listens(head.port), 60)


# The command.


def test_aws_has_an_environment_variable_for_its_address_and_a_flag_beats_it() -> None:
    environ = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://[fd00:ec2::254]/"}
    found = cloud_of(Options(), environ)
    assert isinstance(found, Auto)
    assert [c.endpoint for c in found.clouds] == [  # type: ignore[attr-defined]
        "http://[fd00:ec2::254]",
        "http://169.254.169.254",
        "http://169.254.169.254",
    ]
    flagged = cloud_of(Options(cloud="aws", endpoint="http://127.0.0.1:1338"), environ)
    assert flagged == Aws("http://127.0.0.1:1338")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "169.254.169.254", "http://", "http://[::1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="a metadata service is at"):
        cloud_of(Options(endpoint=url), {})


def test_rays_address_comes_from_the_flag_the_environment_or_this_machine() -> None:
    environ = {"RAY_ADDRESS": "10.0.0.1:6379"}
    assert address_of(Options(address="10.0.0.2:6379"), environ) == "10.0.0.2:6379"
    assert address_of(Options(), environ) == "10.0.0.1:6379"
    for other in ("", "auto", "http://localhost:8265", "ray://head:10001"):
        assert address_of(Options(), {"RAY_ADDRESS": other}) is None
    with pytest.raises(ConfigError, match="--address must be HOST:PORT"):
        address_of(Options(address="ray://head:10001"), {})


@pytest.mark.parametrize("argv", [["--interval", "0"], ["--interval", "nan"], ["--node-id", "zz"]])
def test_a_mistaken_flag_is_refused(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match=argv[0]):
        watch.main(argv)


def test_cluster_yaml_starts_it_on_workers_alone_after_ray() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    assert not any("watch.sh" in c for c in cluster["head_start_ray_commands"])
    (start,) = (c for c in cluster["worker_start_ray_commands"] if "watch.sh" in c)
    before, _, after = start.partition(" && ")
    assert "ray start" in before
    assert after == "bash ~/raymat/deploy/node/watch.sh aws"


def test_it_is_started_once_and_lets_the_session_go(tmp_path: Path) -> None:
    """With programs in the place of raymat and sudo that say what they were called with."""
    for name, body in (
        ("raymat", 'echo "$@"; exec sleep 60'),
        ("pgrep", "false"),
        ("sudo", 'echo "$@" > "$HOME/off"'),
    ):
        program = tmp_path / name
        program.write_text(f"#!/bin/bash\necho $$ >> $HOME/pids\n{body}\n")
        program.chmod(0o755)
    environ = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "RAYMAT_GUARD_PERIOD": "0.05",
    }
    script = ["bash", str(ROOT / "deploy/node/watch.sh"), "aws"]
    for _ in range(2):
        # It returns at once, its output closed: `ray up` waits for that.
        subprocess.run(script, env=environ, check=True, timeout=10, capture_output=True)
    try:
        # A shell makes the file before it runs the command that writes into it.
        off = tmp_path / "off"
        assert wait_for(lambda: off.exists() and off.read_text(), 20) == "shutdown -h now\n"
        log = tmp_path / "spot-watch.log"
        assert wait_for(log.read_text, 20) == "spot-watch --cloud aws\n"
    finally:
        for pid in (tmp_path / "pids").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Have so many processes keep the machine busy, for 20 s at most."""
    loop = "import os, time; os.nice(5); end = time.time() + 20\nwhile time.time() < end: pass"
    loops = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(count)]
    try:
        time.sleep(2)
        yield
    finally:
        for process in loops:
            process.kill()
            process.wait()


def start_watch(*argv: str) -> subprocess.Popen[str]:
    command = "import sys; from raymat.cli.main import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", command, "spot-watch", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def end_watch(process: subprocess.Popen[str]) -> tuple[str, str]:
    """SIGTERM, and what it had said; it ends at once and well."""
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0
    return out, err


def line_with(process: subprocess.Popen[str], words: str) -> str:
    """The next line of a process that has the words."""
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return line
    pytest.fail(f"it ended without {words!r}: {process.communicate()}")


def test_it_ends_at_once_by_sigterm_while_it_waits_for_an_answer(metadata: Metadata) -> None:
    metadata.be_aws()
    process = start_watch("--endpoint", metadata.url, "--interval", "0.1", "--cloud", "aws")
    assert re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ the meta", line_with(process, "answers"))
    metadata.answers[f"GET {ACTION}"] = "hang"
    time.sleep(0.3)
    assert end_watch(process) == ("", "")


def test_a_log_that_cannot_be_written_ends_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115  (what it could not write makes its end fail, too)
    monkeypatch.setattr(sys, "stdout", full)
    watch._say("a line")
    monkeypatch.undo()
    with pytest.raises(OSError, match="No space"):
        full.close()


DRIVER = """
import json, sys
import ray
from raymat.cluster.ray_internals import draining_nodes

ray.init(address=sys.argv[1], log_to_driver=False)

@ray.remote(num_cpus=1)
class Busy:  # a node with nothing to do would go as soon as it is drained
    def ping(self):
        return True

busy = Busy.remote()
ray.get(busy.ping.remote())
print(json.dumps(draining_nodes()), flush=True)
for line in sys.stdin:
    print(json.dumps(draining_nodes()), flush=True)
"""


class Driver:
    """A process that keeps a node of a cluster busy and says which nodes are drained.

    Of its own, since a process has but one Ray, and the tests of this one share theirs.
    """

    def __init__(self, address: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == {}

    def draining_nodes(self) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@pytest.mark.slow
def test_the_command_drains_its_node_with_the_deadline(metadata: Metadata) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    process = driver = None
    try:
        assert drain._node(drain._client(cluster.address), None) == cluster.head_node.node_id
        node = cluster.add_node(num_cpus=1).node_id
        driver = Driver(cluster.address)
        metadata.be_aws()
        metadata.recommendation = (200, '{"noticeTime": "2017-09-18T08:10:00Z"}')
        process = start_watch(
            *("--endpoint", metadata.url, "--interval", "0.2", "--rebalance"),
            *("--address", cluster.address, "--node-id", node),
        )
        line_with(process, f"Ray drains node {node[:8]}")
        assert driver.draining_nodes() == {node: None}
        deadline = int(time.time()) + 120
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(deadline))
        with busy(16):
            began = time.monotonic()
            metadata.action = (200, json.dumps({"action": "terminate", "time": when}))
            line_with(process, f"Ray drains node {node[:8]}")
            seconds = time.monotonic() - began
        print(f"from the notice to the drain under load 16: {seconds:.2f} s")
        assert seconds < 10
        assert driver.draining_nodes() == {node: float(deadline)}
        # More than one node runs on this machine: without its id none is drained.
        with pytest.raises(ClusterError, match=r"give --node-id"):
            drain_of(cluster.address, None)(Interruption("r"))
        with pytest.raises(ClusterError, match=r"node cdcdcdcd is not alive"):
            drain_of(cluster.address, "cd" * 28)(Interruption("r"))
        assert end_watch(process)[1] == ""
        process = None
    finally:
        if process:
            process.kill()
            process.communicate()
        if driver:
            driver.stop()
        cluster.shutdown()
