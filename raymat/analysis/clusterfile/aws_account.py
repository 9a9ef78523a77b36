"""What the account says to a cluster file: rights, quotas, sizes, and where the bucket lies. Nothing is made or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from raymat.analysis.clusterfile.cluster_file import ClusterFile, NodeType
from raymat.analysis.clusterfile.ec2_requests import RAYS_OWN, aws_session
from raymat.analysis.clusterfile.offers import on_demand, spot_options
from raymat.analysis.preflight.findings import Finding
from raymat.errors import one_line

QUOTAS = {
    # By the first letters of an instance type: spot, on demand. As Service Quotas numbers them for EC2.
    "g": ("L-3819A6DF", "L-DB2E81BA"),
    "p": ("L-7212CCBC", "L-417A185B"),
    "": ("L-34B43A08", "L-1216C47A"),
}
"""Quotas of vCPUs; "" stands for the standard families."""

Client = Callable[[str], Any]
Check = Callable[[Client, ClusterFile, str | None], Iterator[Finding]]


def check_account(cluster: ClusterFile, storage: str | None) -> Iterator[Finding]:
    """Ask AWS what the file alone cannot tell.

    Args:
        storage: URL of the storage that the jobs will have; only s3:// is looked at.
    """
    if not cluster.on_ec2:
        yield Finding("skipped", "the machines are not EC2's")
        return
    session = aws_session()
    if session.get_credentials() is None:
        yield Finding("skipped", "no credentials of AWS here")
        return
    if not cluster.region:
        yield Finding("error", "provider.region is missing")
        return
    # Few tries: a check that hangs is none.
    config = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 2})

    def client(service: str) -> Any:
        return session.create_client(service, region_name=cluster.region, config=config)

    for check in CHECKS:
        try:
            yield from check(client, cluster, storage)
        except ClientError as error:
            yield Finding("unseen", f"AWS does not say: {one_line(error)}")
        except BotoCoreError as error:
            yield Finding("unseen", f"AWS cannot be asked: {one_line(error)}")
            return


def _identity(client: Client, cluster: ClusterFile, storage: str | None) -> Iterator[Finding]:
    who = client("sts").get_caller_identity()
    yield Finding("note", f"asked as {who['Arn']} in {cluster.region}")


def _launches(client: Client, cluster: ClusterFile, storage: str | None) -> Iterator[Finding]:
    """Ask EC2 whether it would launch each machine; a dry run launches none."""
    ec2 = client("ec2")
    for node_type in cluster.node_types:
        for request in node_type.offers:
            fields = {k: v for k, v in request.items() if k not in RAYS_OWN}
            try:
                ec2.run_instances(**fields, MinCount=1, MaxCount=1, DryRun=True)
            except ClientError as error:
                said = error.response["Error"]
                if said["Code"] != "DryRunOperation":
                    where = f"{node_type.name} ({request.get('InstanceType')}, {_market(request)})"
                    detail = f"{said['Code']}: {said['Message']}"
                    yield Finding("error", "EC2 would not launch it", where, detail)


def _prices(client: Client, cluster: ClusterFile, storage: str | None) -> Iterator[Finding]:
    """Compare the most that spot machines may cost with what the cheapest zone asks for now."""
    for node_type in cluster.node_types:
        for place, offer in node_type.places:
            options = spot_options(offer)
            if (most := options.get("MaxPrice")) is None or on_demand(offer):
                continue
            answer = client("ec2").describe_spot_price_history(
                InstanceTypes=[offer["InstanceType"]],
                ProductDescriptions=["Linux/UNIX"],
                StartTime=datetime.now(timezone.utc),
            )
            prices = [float(each["SpotPrice"]) for each in answer["SpotPriceHistory"]]
            if prices and float(most) < min(prices):
                detail = f"{most}, and {offer['InstanceType']} costs {min(prices):g} or more"
                advice = "leave MaxPrice out: spot costs at most the price on demand"
                what = "MaxPrice is below the market: a run would wait for it"
                yield Finding("warning", what, place, detail, advice)


def _profiles(client: Client, cluster: ClusterFile, storage: str | None) -> Iterator[Finding]:
    iam = client("iam")
    profiles = (each.node_config.get("IamInstanceProfile") or {} for each in cluster.node_types)
    for name in sorted({p["Name"] for p in profiles if "Name" in p}):
        try:
            profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchEntity":
                raise
            advice = "docs/aws.md makes it"
            yield Finding("error", "an instance profile is not there", name, advice=advice)
        else:
            if not profile["Roles"]:
                yield Finding("error", "an instance profile has no role", name)


def _sizes(client: Client, cluster: ClusterFile, storage: str | None) -> Iterator[Finding]:
    """Compare the sizes of machines with what the file tells Ray, and the most that may run with the quotas."""
    kinds = {kind for n in cluster.node_types for o in n.offers if (kind := o.get("InstanceType"))}
    answer = client("ec2").describe_instance_types(InstanceTypes=sorted(kinds))
    sizes = {each["InstanceType"]: each for each in answer["InstanceTypes"]}
    for node_type in cluster.node_types:
        for offer in node_type.offers:
            if size := sizes.get(str(offer.get("InstanceType"))):
                yield from _compare(node_type, size)
    cpus = {name: int(each["VCpuInfo"]["DefaultVCpus"]) for name, each in sizes.items()}
    quotas = client("service-quotas")
    for (code, family), needed in sorted(_needed(cluster, cpus).items()):
        has = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]
        if has["Value"] < needed:
            yield Finding(
                "error",
                "a quota is too small",
                f"{has['QuotaName']}, {code}",
                f"{has['Value']:.0f} vCPUs, {needed} needed for {family}",
                "`aws service-quotas request-service-quota-increase`, days ahead (docs/aws.md)",
            )


def _compare(node_type: NodeType, size: Mapping[str, Any]) -> Iterator[Finding]:
    told = node_type.fields.get("resources") or {}
    cpus = int(size["VCpuInfo"]["DefaultVCpus"])
    gpus = sum(g["Count"] for g in size.get("GpuInfo", {}).get("Gpus", ()))
    for name, there in (("CPU", cpus), ("GPU", gpus)):
        if int(told.get(name) or 0) > there:
            detail = f"resources has {name}: {told[name]}, {size['InstanceType']} {there}"
            yield Finding("error", "Ray is promised more than there is", node_type.name, detail)


def _needed(cluster: ClusterFile, cpus: Mapping[str, int]) -> dict[tuple[str, str], int]:
    """Return the vCPUs that may run at once, by quota and what it is for: of each node type its largest offer there."""
    needed: dict[tuple[str, str], int] = {}
    for node_type in cluster.node_types:
        most = 1 if node_type.head else int(node_type.fields.get("max_workers") or 0)
        largest: dict[tuple[str, str], int] = {}
        for offer in node_type.offers:
            kind = str(offer.get("InstanceType"))
            if kind not in cpus:  # a launch template's, or one that EC2 does not know
                continue
            key = (_quota(offer), f"{_family(kind) or 'standard'} {_market(offer)}")
            largest[key] = max(largest.get(key, 0), most * cpus[kind])
        for key, count in largest.items():
            needed[key] = needed.get(key, 0) + count
    return needed


def _quota(request: Mapping[str, Any]) -> str:
    spot, demand = QUOTAS[_family(str(request["InstanceType"]))]
    return demand if on_demand(request) else spot


def _family(kind: str) -> str:
    return kind[0] if kind[0] in QUOTAS else ""


def _market(request: Mapping[str, Any]) -> str:
    return "on demand" if on_demand(request) else "spot"


def _group(client: Client, cluster: ClusterFile, storage: str | None) -> Iterator[Finding]:
    """Look at the security group that Ray would find and leave as it is."""
    group = cluster.provider.get("security_group") or {}
    name = group.get("GroupName") or f"ray-autoscaler-{cluster.config.get('cluster_name')}"
    filters = [{"Name": "group-name", "Values": [name]}]
    for found in client("ec2").describe_security_groups(Filters=filters)["SecurityGroups"]:
        for rule in found["IpPermissions"]:
            if any(each["CidrIp"] == "0.0.0.0/0" for each in rule.get("IpRanges", ())):
                advice = f"`aws ec2 delete-security-group --group-id {found['GroupId']}`: `ray up` makes it anew"
                what = "a security group of an earlier `ray up` lets the world in"
                yield Finding("error", what, f"{name}, {found['GroupId']}", advice=advice)
                break


def _bucket(client: Client, cluster: ClusterFile, storage: str | None) -> Iterator[Finding]:
    if storage is None or not storage.startswith("s3://"):
        yield Finding("note", "no bucket was named (--storage s3://BUCKET/...): not looked at")
        return
    bucket = storage.removeprefix("s3://").partition("/")[0]
    s3 = client("s3")
    try:
        head = s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        yield Finding(
            "error", "the bucket cannot be reached", bucket, error.response["Error"]["Code"]
        )
        return
    region = head["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
    if region and region != cluster.region:
        detail = f"it is in {region}, the machines in {cluster.region}"
        yield Finding("warning", "each checkpoint crosses regions, and is paid", bucket, detail)
    if not _aborts_uploads(s3, bucket):
        advice = "deploy/aws/lifecycle.json"
        yield Finding(
            "warning", "what killed uploads leave is kept and paid", bucket, advice=advice
        )


def _aborts_uploads(s3: Any, bucket: str) -> bool:
    try:
        rules = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchLifecycleConfiguration":
            return False
        raise
    return any("AbortIncompleteMultipartUpload" in rule for rule in rules)


CHECKS: tuple[Check, ...] = (_identity, _launches, _prices, _profiles, _sizes, _group, _bucket)
"""All questions, in their order."""
