"""Laws of `raymat cluster check`: each mistake that costs money, time or safety is one line, and nothing is made or changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymat.cli.main import main
from tests.support.cluster_files import CLUSTER, changed
from tests.support.fake_aws import FakeAws, aws  # noqa: F401
from tests.support.paths import ROOT

GPU = "available_node_types.gpu"
PROVIDER = "raymat.cluster.ec2_provider.Ec2Provider"


def test_the_clusters_own_file_lacks_nothing_but_ones_own_address(check: Any) -> None:
    code, lines = check(CLUSTER, "--offline")
    assert code == 1
    assert [line for line in lines if line.startswith("  error") or "warning" in line] == [
        "  error: provider.ssh_from names no address: `ray up` could not reach the head; your own, such as "
        "[203.0.113.7/32]; `curl https://checkip.amazonaws.com` prints it"
    ]
    code, lines = check(changed(), "--offline")
    assert code == 0
    assert lines == [
        "Ray's schema: fine",
        "  Ray accepts the file",
        "EC2's requests: fine",
        "  EC2's model accepts each machine and each alternative",
        "doors: fine",
        "  a token, and no port that is open to the world",
        "costs: fine",
        "  nothing is paid for without use",
        "capacity: fine",
        "  no run waits for one market, and the head stays",
        "machines: fine",
        "  instance profiles, made once: raymat-head, raymat-worker",
        "commands: fine",
        "  shells read each, and Ray each start",
        "running: fine",
        "  gpu, decode: each new machine installs for minutes, from AWS's image",
        "this machine: fine",
        "  what is mounted is here",
        "the account: not looked at: --offline",
        "result: fine",
    ]


RAYS = [("provider.type", "aws"), ("provider.module", None)]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        # What the first cluster.yaml had.
        (RAYS, "error: SSH would be open to the world: Ray's default group lets 0.0.0.0/0 in at port 22"),
        (RAYS, f"warning: spot alone: without capacity a run waits for ever: gpu; provider.module {PROVIDER}"),
        ([(f"{GPU}.min_workers", 1)],
         "warning: machines that stay, and are paid, after the last job's end: gpu (min_workers: 1)"),
        ([("worker_start_ray_commands", ["ray start --address=$RAY_HEAD_IP:6379"])],
         "warning: 2 x disks that are paid and not used: gpu (g5.4xlarge has NVMe), decode (c6id.8xlarge has NVMe)"),
        ([("provider.launches_per_hour", None)],
         "warning: a machine whose set-up fails is launched and ended again and again"),
        ([("available_node_types.decode", None), ("provider.alternatives.decode", None)], "no machines that only decode"),
        # Others.
        ([("setup_comands", [])], "error: Additional properties are not allowed ('setup_comands' was unexpected)"),
        ([("max_workers", "6")], "error: max_workers: expected a whole number, got '6'"),
        ([(f"{GPU}.node_config.InstanceType", "g5.4xlrge")],
         "error: 2 x EC2 would refuse a machine: gpu ('g5.4xlrge' is no InstanceType), gpu, alternative 2 ("),
        ([("provider.alternatives", {"gpu": [{"InstanceTyp": "g5.8xlarge"}]})],
         'error: EC2 would refuse a machine: gpu, alternative 1 (Unknown parameter in input: "InstanceTyp"'),
        ([("provider.alternatives", {"gpu": [{"InstanceType": "g5.8xlarge"}]})],
         "warning: spot alone: without capacity a run waits for ever: gpu"),
        ([("provider.ssh_from", ["0.0.0.0/0"])], "error: provider.ssh_from opens SSH to the world: 0.0.0.0/0"),
        ([("provider.ssh_from", ["here"])], "error: provider.ssh_from has what is no network: here"),
        ([("provider.security_group", {"IpPermissions": [{"FromPort": 8265, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]})],
         "error: a rule of the security group lets the world in: port 8265"),
        ([("provider.cache_stopped_nodes", True)], "warning: machines are stopped, not ended, and their disks paid"),
        ([("idle_timeout_minutes", 120)], "warning: idle machines are paid for long: idle_timeout_minutes (120 min)"),
        ([(f"{GPU}.node_config.ImageId", None)], "error: no ImageId: Ray would take Ubuntu 18.04 with CUDA 11.2: gpu"),
        ([(f"{GPU}.node_config.IamInstanceProfile", None)],
         "error: no instance profile: the machine cannot reach the bucket: gpu; IamInstanceProfile: {Name: ...}"),
        ([("available_node_types.head.node_config.IamInstanceProfile", None)],
         "error: no instance profile: Ray would make one that may do all of EC2 and S3: head"),
        ([(f"{GPU}.node_config.MetadataOptions", None)],
         "warning: any program that fetches a URL for others may read the machine's rights: gpu"),
        ([("auth.ssh_private_key", "~/.ssh/mine.pem")],
         "error: 3 x auth has a key, and the node_config no KeyName: head, gpu, decode"),
        ([(f"{GPU}.node_config.KeyName", "mine")], "error: KeyName without auth.ssh_private_key: gpu (mine)"),
        ([("available_node_types.head.node_config.InstanceMarketOptions", {"MarketType": "spot"})],
         "warning: the head is a spot machine: the cluster ends with it: head"),
        ([("available_node_types.head.node_config.InstanceType", "g5.xlarge")],
         "warning: the head has a GPU, and computes nothing: head"),
        ([("head_start_ray_commands", ["export RAY_AUTH_MODE=token; ray start --head --dashboard-host=0.0.0.0"])],
         "error: the dashboard answers on every network of the head; --dashboard-host=127.0.0.1"),
        ([("head_start_ray_commands", ["ray start --head"])],
         "warning: a machine that vanishes is noticed after 15 s to a minute"),
        ([("head_start_ray_commands", ["ray start --head"]), ("worker_start_ray_commands", ["ray start"])],
         "error: 2 x Ray asks for no token: whoever reaches the head runs code on every machine"),
        ([("head_start_ray_commands", ["ray start --head"]), ("worker_start_ray_commands", ["ray start"])],
         "warning: `ray up` exports OMP_NUM_THREADS=1: each task computes on one core"),
        ([("worker_start_ray_commands", ["ray start"])],
         "warning: EC2's two-minute notice is not heard: steps are lost at each reclaim"),
        ([("worker_start_ray_commands", [])],
         "error: Ray's defaults would start it, with a nightly version: worker_start_ray_commands"),
        ([("file_mounts", {"/home/ubuntu/lost": "lost"})], "error: a mounted file is not there: "),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line(changes: list[tuple[str, Any]], line: str, check: Any) -> None:
    code, lines = check(changed(*changes), "--offline")
    assert len([each for each in lines if each.strip().startswith(line)]) == 1, "\n".join(lines)
    assert code == int(not line.startswith("no machines"))


def test_a_token_that_is_missing_or_that_others_may_read_is_found(check: Any) -> None:
    token = Path("~/.ray/auth_token").expanduser()
    token.chmod(0o644)
    code, lines = check(changed(), "--offline")
    assert (code, lines[-3]) == (
        1,
        f"  error: others may read the token: {token}; chmod 600 {token}",
    )
    token.unlink()
    code, lines = check(changed(), "--offline")
    assert lines[-3].startswith(f"  error: there is no token yet: {token}; `ray get-auth-token")


@pytest.mark.parametrize("text", ["", "a: [", "available_node_types: [head]", "- 1"])
def test_what_describes_no_cluster_is_refused(text: str, check: Any, capsys: Any) -> None:
    assert check(text, "--offline") == (2, [])


def test_files_of_other_clouds_are_looked_at_as_far_as_it_goes(check: Any) -> None:
    theirs = yaml.safe_load((ROOT / "deploy/gcp.yaml").read_text(encoding="utf-8"))
    code, lines = check(theirs)
    assert [line for line in lines if line.startswith("  error") or "warning" in line] == [
        "  error: provider.project_id is no project's: PROJECT; your own: `gcloud config get project` prints it"
    ]
    theirs["provider"] |= {"project_id": "my-mattings"}
    code, lines = check(theirs)
    assert (code, lines[-1]) == (0, "result: fine")
    assert "EC2's requests: not looked at: the machines are not EC2's" in lines
    assert "the account: not looked at: the machines are not EC2's" in lines


@pytest.mark.parametrize(
    ("provider", "line"),
    [
        ({"availability_zone": "europe-west4-a"}, "error: a zone lies outside of provider.region us-central1"),
        ({"cache_stopped_nodes": True}, "warning: machines are stopped, not ended, and their disks paid"),
    ],
)  # fmt: skip
def test_googles_mistakes_are_a_line_each(provider: dict[str, Any], line: str, check: Any) -> None:
    theirs = yaml.safe_load((ROOT / "deploy/gcp.yaml").read_text(encoding="utf-8"))
    theirs["provider"] |= {"project_id": "my-mattings"} | provider
    code, lines = check(theirs)
    assert code == 1
    assert len([each for each in lines if each.strip().startswith(line)]) == 1


def test_findings_are_had_as_json(check: Any, capsys: Any) -> None:
    _, lines = check(CLUSTER, "--offline", "--json")
    told = json.loads("\n".join(lines))
    assert told["code"] == 1
    assert [s["title"] for s in told["sections"] if s["findings"][0]["severity"] == "error"] == [
        "doors"
    ]


# With an account.


def account(lines: list[str]) -> list[str]:
    return lines[next(i for i, line in enumerate(lines) if line.startswith("the account")) : -1]


def test_a_good_account_is_fine_and_nothing_is_launched(check: Any, aws: FakeAws) -> None:  # noqa: F811
    code, lines = check(changed(), "--storage", "s3://bucket/runs")
    assert account(lines) == [
        "the account: fine",
        "  asked as arn:aws:iam::000000000000:user/operator in us-east-1",
    ]
    assert code == 0
    assert len(aws.launches()) == 7  # a head, three offers of one type, three of the other
    assert {a["DryRun"] for a in aws.asked if a["Action"] == "RunInstances"} == {"true"}
    assert aws.launched == 0


def test_what_the_account_lacks_is_a_line_each(check: Any, aws: FakeAws) -> None:  # noqa: F811
    aws.refused = {("g5.4xlarge", "spot"): "UnauthorizedOperation"}
    aws.profiles = ("raymat-head",)
    aws.quota = 64.0
    aws.open_group = True
    aws.bucket_region = "eu-west-1"
    aws.lifecycle = False
    wrong = changed((f"{GPU}.resources", {"CPU": 20, "GPU": 1}), (f"{GPU}.max_workers", 3))
    code, lines = check(wrong, "--storage", "s3://bucket/runs")
    quota = "All G and VT Spot Instance Requests"  # as the server calls every quota
    assert code == 1
    assert account(lines) == [
        "the account: look here",
        "  error: EC2 would not launch it: gpu (g5.4xlarge, spot) (UnauthorizedOperation: there is none)",
        "  error: an instance profile is not there: raymat-worker; docs/aws.md makes it",
        "  error: 2 x Ray is promised more than there is: gpu (resources has CPU: 20, g5.4xlarge 16), "
        "gpu (resources has CPU: 20, g5.4xlarge 16)",
        f"  error: a quota is too small: {quota}, L-3819A6DF (64 vCPUs, 96 needed for g spot); "
        "`aws service-quotas request-service-quota-increase`, days ahead (docs/aws.md)",
        "  error: a security group of an earlier `ray up` lets the world in: ray-autoscaler-raymat, sg-1; "
        "`aws ec2 delete-security-group --group-id sg-1`: `ray up` makes it anew",
        "  warning: each checkpoint crosses regions, and is paid: bucket (it is in eu-west-1, the machines in us-east-1)",
        "  warning: what killed uploads leave is kept and paid: bucket; deploy/aws/lifecycle.json",
        "  asked as arn:aws:iam::000000000000:user/operator in us-east-1",
    ]


def test_a_spot_price_below_the_market_is_told_with_it(check: Any, aws: FakeAws) -> None:  # noqa: F811
    most = f"{GPU}.node_config.InstanceMarketOptions.SpotOptions.MaxPrice"
    _, lines = check(
        changed((most, "0.10"), ("provider.alternatives.gpu", [{"InstanceMarketOptions": None}]))
    )
    assert [line for line in account(lines) if "warning" in line] == [
        "  warning: MaxPrice is below the market: a run would wait for it: gpu (0.10, and g5.4xlarge costs 0.64 or more); "
        "leave MaxPrice out: spot costs at most the price on demand"
    ]
    _, lines = check(changed((most, "0.70")))
    assert [line for line in account(lines) if "warning" in line] == []


def test_a_type_of_which_ec2_says_no_size_is_passed_over(check: Any, aws: FakeAws) -> None:  # noqa: F811
    code, lines = check(changed(("provider.alternatives.gpu", [{"InstanceType": "g9.4xlarge"}])))
    assert (code, account(lines)[0]) == (1, "the account: fine")
    assert "'g9.4xlarge' is no InstanceType" in "\n".join(lines)


def test_an_account_that_does_not_answer_is_unseen(
    check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "AKEXAMPLE")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    code, lines = check(changed())
    assert code == 2
    assert account(lines)[1].startswith("  unseen: AWS cannot be asked: Could not connect")


def test_without_credentials_the_account_is_not_asked(
    check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    code, lines = check(changed())
    assert (code, lines[-2]) == (0, "the account: not looked at: no credentials of AWS here")


def test_a_subcommand_that_is_none_is_refused(capsys: Any) -> None:
    assert main(["cluster", "chekc"]) == 2
    assert capsys.readouterr().err == (
        "raymat: error: what to do with a cluster is missing: raymat cluster check FILE\n"
    )
