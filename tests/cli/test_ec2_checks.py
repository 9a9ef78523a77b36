"""Laws of what a cluster file says of EC2's machines: what EC2 would refuse or bill otherwise is one line, and good files pass."""

from __future__ import annotations

from typing import Any

import pytest

from raymat.analysis.clusterfile.machine_sizes import Size, size_of
from tests.support.cluster_files import changed

GPU = "available_node_types.gpu"
HEAD = "available_node_types.head"
CONFIG = f"{GPU}.node_config"
ARM = (
    "resolve:ssm:/aws/service/canonical/ubuntu/server/24.04/stable/current/arm64/hvm/ebs-gp3/ami-id"
)
UBUNTU = ARM.replace("arm64", "amd64")
DISK = f"{CONFIG}.BlockDeviceMappings"


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("provider.region", "eu-wst-1", "error: provider.region is no region of EC2: did you mean eu-west-1?"),
        ("provider.region", "us-east-1a", "error: provider.region is no region of EC2: the region is us-east-1"),
        ("provider.availability_zone", "us-east-1a,us-west-2b",
         "error: a zone lies outside of provider.region us-east-1: no subnet would be found: provider.availability_zone us-w"),
        (f"{CONFIG}.InstanceType", "g5.xlarge",
         "error: 2 x Ray is promised more than there is: what it starts there would never run: gpu (resources has CPU: 16, "),
        (f"{GPU}.resources", {"CPU": 16, "GPU": 4}, "error: 3 x Ray is promised more than there is: what it starts there"),
        ("provider.alternatives.gpu", [{"InstanceType": "g5.2xlarge"}, {"InstanceMarketOptions": None}],
         "error: Ray is promised more than there is: what it starts there would never run: gpu, alternative 1 (resources"),
        (f"{CONFIG}.InstanceType", "p5.48xlarge", "warning: 2 x GPUs that are paid and not used: gpu (resources has GPU: 1, "),
        (f"{HEAD}.node_config.InstanceType", "m7g.xlarge",
         "error: EC2 refuses an image of another processor: head (m7g.xlarge is arm64, the image amd64)"),
        (f"{CONFIG}.ImageId", "am-0123", "error: 3 x ImageId is neither ami-... nor resolve:ssm:...: gpu (am-0123)"),
        (f"{CONFIG}.ImageId", UBUNTU, "error: the image has no driver of NVIDIA: its machines would be launched again and"),
        (f"{GPU}.min_workers", 5, "error: min_workers is above max_workers: gpu (5 > 4)"),
        (f"{HEAD}.min_workers", 1, "warning: machines that stay, and are paid, after the last job's end: head"),
        (f"{GPU}.max_workers", 0, "error: max_workers: 0: no worker would ever come: gpu"),
        ("max_workers", 0, "error: max_workers: 0: no worker would ever come: of the cluster"),
        ("provider.alternatives.gpus", [], "error: provider.alternatives has what is no node type: did you mean gpu?: gpus"),
        (f"{CONFIG}.InstanceMarketOptions.SpotOptions.SpotInstanceType", "persistent",
         "error: a persistent spot request launches machines again after `ray down`, paid for ever: gpu"),
        (f"{CONFIG}.InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior", "stop",
         "error: EC2 refuses it for one-time spot requests: gpu (InstanceInterruptionBehavior: stop)"),
        (f"{CONFIG}.InstanceMarketOptions.SpotOptions.MaxPrice", "$0.70", "error: MaxPrice is no number of dollars an hour"),
        (DISK, [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 8}}],
         "warning: a root disk that CUDA and torch would fill: gpu (8 GB)"),
        (DISK, [{"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 100}}], "warning: a disk beside the root, which nothing mounts"),
        (DISK, [{"DeviceName": "/dev/sda1", "Ebs": {"DeleteOnTermination": False}}],
         "warning: a disk that stays after its machine, and is paid: gpu"),
        (DISK, [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeType": "io2"}}], "error: EC2 refuses such a disk without Iops: gpu"),
        (f"{CONFIG}.SubnetId", "subnet-1", "error: Ray writes over SubnetId: it would take the default network: gpu"),
        (f"{CONFIG}.SecurityGroups", ["mine"], "error: Ray names a group by SecurityGroupIds: EC2 refuses both: gpu"),
        (f"{CONFIG}.MetadataOptions.HttpEndpoint", "disabled", "error: without the metadata service a machine has no rights"),
        (f"{CONFIG}.IamInstanceProfile", {"Arn": "arn:aws:iam::123456789012:role/mine"}, "error: the Arn is no instance profile's"),
        ("provider.ssh_from", ["203.0.113.7/0"], "error: provider.ssh_from opens SSH to the world: 203.0.113.7/0"),
        ("provider.ssh_from", ["0.0.0.0/1", "128.0.0.0/1"], "error: 2 x provider.ssh_from opens SSH to the world: 0.0.0.0/1"),
        ("provider.ssh_from", ["192.168.1.5/32"], "warning: a private address, which EC2 never sees"),
        (f"{CONFIG}.InstanceInitiatedShutdownBehavior", None,
         "warning: a machine that powers off is stopped, not ended, and its disk paid: gpu"),
        ("cluster_name", "mine", "warning: raymat-head may launch machines of a cluster called raymat alone: cluster_name mine"),
        ("idle_timeout_minutes", 0, "warning: machines end before a job has come to them, and are launched again"),
        (f"{GPU}.idle_timeout_s", 864000, "warning: idle machines are paid for long: gpu.idle_timeout_s (14400 min)"),
    ],
)  # fmt: skip
def test_what_ec2_would_refuse_or_bill_is_one_line(
    path: str, value: Any, line: str, check: Any
) -> None:
    code, lines = check(changed((path, value)), "--offline")
    assert [each for each in lines if each.strip().startswith(line)] != [], "\n".join(lines)
    assert code == 1


@pytest.mark.parametrize(
    "changes",
    [
        [("provider.region", "eu-central-1"), ("provider.availability_zone", "eu-central-1a, eu-central-1b")],
        [("provider.region", "us-west-2"), ("provider.availability_zone", "us-west-2-lax-1a")],
        [("provider.region", "cn-north-1")],
        [("cluster_name", "mine"), (f"{HEAD}.node_config.IamInstanceProfile.Name", "my-head")],
        [(f"{HEAD}.node_config.InstanceType", "t4g.xlarge"), (f"{HEAD}.node_config.ImageId", ARM)],
        [(f"{HEAD}.node_config.ImageId", "ami-0123456789abcdef0")],
        # Ray asks EC2 for what is not said.
        [(f"{GPU}.resources", {}), ("available_node_types.decode.resources", {}), (f"{HEAD}.resources", {})],
        [(f"{CONFIG}.InstanceType", "g6e.12xlarge"), (f"{GPU}.resources", {"CPU": 48, "GPU": 4}),
         ("provider.alternatives.gpu", [{"InstanceType": "g5.12xlarge", "InstanceMarketOptions": None}])],
        [(f"{CONFIG}.InstanceType", "p6-b200.48xlarge"), (f"{GPU}.resources", {"CPU": 192, "GPU": 8}),
         ("provider.alternatives.gpu", [{"InstanceMarketOptions": None}])],
        [(f"{CONFIG}.SubnetIds", ["subnet-1"]), (f"{CONFIG}.SecurityGroupIds", ["sg-1"])],
        [("provider.ssh_from", ["203.0.113.7", "203.0.113.9/24", "2001:db8::/48"])],
        [("provider.ssh_from", ["10.0.0.0/8"]), ("provider.use_internal_ips", True)],
        [(f"{CONFIG}.InstanceMarketOptions.SpotOptions.MaxPrice", "0.9")],
        [(f"{GPU}.max_workers", 20), ("max_workers", 2)],
        [("idle_timeout_minutes", 1)],
    ],
)  # fmt: skip
def test_good_files_of_others_pass(changes: list[tuple[str, Any]], check: Any) -> None:
    code, lines = check(changed(*changes), "--offline")
    assert (code, lines[-1]) == (0, "result: fine"), "\n".join(lines)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        # As EC2's pages of instance types have them.
        ("g5.4xlarge", Size(16, 1, 64, False)),
        ("g5.12xlarge", Size(48, 4, 192, False)),
        ("g6e.xlarge", Size(4, 1, 32, False)),
        ("c6id.8xlarge", Size(32, 0, 64, False)),
        ("r7gd.2xlarge", Size(8, 0, 64, True)),
        ("m7i.xlarge", Size(4, 0, 16, False)),
        ("p4d.24xlarge", Size(96, 8, None, False)),
        ("t3.xlarge", None),
        ("m8i-flex.xlarge", None),
        ("c4.8xlarge", None),  # 36 vCPUs
        ("hpc6a.48xlarge", None),
    ],
)
def test_sizes_are_ec2s_or_not_known(kind: str, size: Size | None) -> None:
    assert size_of(kind) == size
