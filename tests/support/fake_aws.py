"""A server that answers as EC2, STS, IAM, Service Quotas and S3 do, with the refusals that a test wants."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

import pytest

SIZES = {  # vCPUs, GPUs
    "m7i.xlarge": (4, 0),
    "g5.4xlarge": (16, 1),
    "g5.8xlarge": (32, 1),
    "c6id.8xlarge": (32, 0),
    "m6id.8xlarge": (32, 0),
    "r6id.8xlarge": (32, 0),
}


@dataclass
class FakeAws:
    """An account: what it refuses, what it has, and what it was asked."""

    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    """By instance type and market ("spot" or "demand"), EC2's error code."""
    batch: int = 100
    """Machines that one request gets at most."""
    quota: float = 1000.0
    profiles: tuple[str, ...] = ("raymat-head", "raymat-worker")
    open_group: bool = False
    bucket_region: str = "us-east-1"
    lifecycle: bool = True
    asked: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    launched: int = 0

    def launches(self) -> list[tuple[str, str]]:
        """The requests for machines: instance type and market."""
        return [_offer(each) for each in self.asked if each.get("Action") == "RunInstances"]

    def answer(self, service: str, form: dict[str, str], path: str) -> tuple[int, str]:
        if service == "s3":
            return self._s3(path)
        if service == "servicequotas":
            quota = {"QuotaName": "All G and VT Spot Instance Requests", "Value": self.quota}
            return 200, json.dumps({"Quota": quota})
        self.asked.append(form)
        answer: tuple[int, str] = getattr(self, f"_{form['Action']}")(form)
        return answer

    def _s3(self, path: str) -> tuple[int, str]:
        if "lifecycle" not in path:
            return 200, ""
        if not self.lifecycle:
            return (
                404,
                "<Error><Code>NoSuchLifecycleConfiguration</Code><Message>-</Message></Error>",
            )
        rule = "<AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation></AbortIncompleteMultipartUpload>"
        return 200, f"<LifecycleConfiguration><Rule>{rule}</Rule></LifecycleConfiguration>"

    def _RunInstances(self, form: dict[str, str]) -> tuple[int, str]:
        code = self.refused.get(_offer(form))
        if code is not None:
            return 400, _error(code, "there is none")
        if form.get("DryRun") == "true":
            return 412, _error("DryRunOperation", "Request would have succeeded")
        count = min(int(form["MaxCount"]), self.batch)
        made = "".join(
            f"<item><instanceId>i-{self.launched + n:08d}</instanceId>"
            "<instanceState><code>0</code><name>pending</name></instanceState></item>"
            for n in range(count)
        )
        self.launched += count
        return (
            200,
            f"<RunInstancesResponse><instancesSet>{made}</instancesSet></RunInstancesResponse>",
        )

    def _DescribeInstanceTypes(self, form: dict[str, str]) -> tuple[int, str]:
        items = "".join(
            f"<item><instanceType>{name}</instanceType><vCpuInfo><defaultVCpus>{cpus}</defaultVCpus></vCpuInfo>"
            f"<gpuInfo><gpus>{f'<item><count>{gpus}</count></item>' if gpus else ''}</gpus></gpuInfo></item>"
            for name, (cpus, gpus) in SIZES.items()
        )
        return 200, f"<R><instanceTypeSet>{items}</instanceTypeSet></R>"

    def _DescribeSpotPriceHistory(self, form: dict[str, str]) -> tuple[int, str]:
        items = "".join(
            f"<item><spotPrice>{price}</spotPrice></item>" for price in ("0.690000", "0.640000")
        )
        return 200, f"<R><spotPriceHistorySet>{items}</spotPriceHistorySet></R>"

    def _DescribeSecurityGroups(self, form: dict[str, str]) -> tuple[int, str]:
        ranges = "<ipRanges><item><cidrIp>0.0.0.0/0</cidrIp></item></ipRanges>"
        rule = f"<item><fromPort>22</fromPort><toPort>22</toPort>{ranges}</item>"
        group = f"<item><groupId>sg-1</groupId><ipPermissions>{rule}</ipPermissions></item>"
        return (
            200,
            f"<R><securityGroupInfo>{group if self.open_group else ''}</securityGroupInfo></R>",
        )

    def _GetCallerIdentity(self, form: dict[str, str]) -> tuple[int, str]:
        who = "<Arn>arn:aws:iam::000000000000:user/operator</Arn>"
        return 200, f"<R><GetCallerIdentityResult>{who}</GetCallerIdentityResult></R>"

    def _GetInstanceProfile(self, form: dict[str, str]) -> tuple[int, str]:
        name = form["InstanceProfileName"]
        if name not in self.profiles:
            error = f"<Error><Code>NoSuchEntity</Code><Message>{name}</Message></Error>"
            return 404, f"<ErrorResponse>{error}</ErrorResponse>"
        role = f"<Roles><member><RoleName>{name}</RoleName></member></Roles>"
        return (
            200,
            f"<R><GetInstanceProfileResult><InstanceProfile>{role}</InstanceProfile></GetInstanceProfileResult></R>",
        )


def _offer(form: dict[str, str]) -> tuple[str, str]:
    return form["InstanceType"], form.get("InstanceMarketOptions.MarketType", "demand")


def _error(code: str, message: str) -> str:
    return f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors></Response>"


def _handler(account: FakeAws) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            form = {} if body.startswith(b"{") else dict(parse_qsl(body.decode()))
            # The credential's scope: KEY/DAY/REGION/SERVICE/aws4_request.
            service = self.headers["Authorization"].split("/")[3]
            code, text = account.answer(service, form, self.path)
            data = text.encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("x-amz-bucket-region", account.bucket_region)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST

        def log_message(self, *args: Any) -> None:
            """Print nothing."""

    return Handler


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An account that every client of this process asks."""
    account = FakeAws()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(account))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    account.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", account.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    yield account
    server.shutdown()
    thread.join()
    server.server_close()
