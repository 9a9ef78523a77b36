"""What EC2 would refuse, or give otherwise than a cluster file means it: places, sizes, images, spot options, disks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from raymat.analysis.clusterfile.cluster_file import ClusterFile, NodeType
from raymat.analysis.clusterfile.ec2_requests import aws_session
from raymat.analysis.clusterfile.machine_sizes import size_of
from raymat.analysis.clusterfile.offers import on_demand, spot_options
from raymat.analysis.clusterfile.operator_checks import needed
from raymat.analysis.preflight.findings import Finding
from raymat.config.hints import closest

IMAGE = re.compile(r"ami-([0-9a-f]{8}|[0-9a-f]{17})|resolve:ssm:.+")
PRICE = re.compile(r"\d+(\.\d+)?|\.\d+")
ROOT_DISK = "/dev/sda1"
"""Of Ubuntu's images."""
OWN_NAME, OWN_HEAD = "raymat", "raymat-head"
"""As the policies of deploy/aws name the cluster, and its head's role."""
SMALLEST = {True: 40, False: 16}
"""GB of a root disk, with and without CUDA's packages beside the system's."""


def check_place(cluster: ClusterFile) -> Iterator[Finding]:
    """Find a region that is none, and zones of another one."""
    region = cluster.region
    session = aws_session()
    known = [
        each
        for partition in session.get_available_partitions()
        for each in session.get_available_regions("ec2", partition)
    ]
    if region and region not in known:
        zone = region[:-1] if region[:-1] in known else ""
        hint = (
            f": the region is {zone}" if zone else closest(region, known, "AWS lists its regions")
        )
        yield Finding("error", f"provider.region is no region of EC2{hint}", region)
    for zone in str(cluster.provider.get("availability_zone") or "").split(","):
        if zone.strip() and not re.fullmatch(f"{re.escape(region)}(-.+)?[a-z]", zone.strip()):
            yield Finding(
                "error",
                f"a zone lies outside of provider.region {region}: no subnet would be found",
                f"provider.availability_zone {zone.strip()}",
            )


def check_sizes(cluster: ClusterFile) -> Iterator[Finding]:
    """Find what Ray is promised and a machine has not, in each offer, and images that do not fit it."""
    for node_type in cluster.node_types:
        told = node_type.fields.get("resources") or {}
        for place, offer in node_type.places:
            kind = str(offer.get("InstanceType", ""))
            size = size_of(kind)
            if size is None:
                continue
            for name, there in (("CPU", size.cpus), ("GPU", size.gpus)):
                if told.get(name, 0) > there:
                    detail = f"resources has {name}: {told[name]}, {kind} {there}"
                    what = (
                        "Ray is promised more than there is: what it starts there would never run"
                    )
                    yield Finding("error", what, place, detail, f"resources: {{{name}: {there}}}")
            if 0 < told.get("GPU", size.gpus) < size.gpus:
                detail = f"resources has GPU: {told['GPU']}, {kind} {size.gpus}"
                yield Finding("warning", "GPUs that are paid and not used", place, detail)
            yield from _image(place, str(offer.get("ImageId", "")), kind, size.arm)
        yield from _driver(cluster, node_type)


def _image(place: str, image: str, kind: str, arm: bool) -> Iterator[Finding]:
    if image and not IMAGE.fullmatch(image):
        yield Finding("error", "ImageId is neither ami-... nor resolve:ssm:...", place, image)
    built = re.search(r"arm64|amd64|x86_64", image)
    if built and (built[0] == "arm64") != arm:
        detail = f"{kind} is {'arm64' if arm else 'x86_64'}, the image {built[0]}"
        yield Finding("error", "EC2 refuses an image of another processor", place, detail)


def _driver(cluster: ClusterFile, node_type: NodeType) -> Iterator[Finding]:
    size = size_of(str(node_type.node_config.get("InstanceType", "")))
    plain = "/aws/service/canonical/" in str(node_type.node_config.get("ImageId"))
    own_driver = "nvidia" in cluster.set_up(node_type)
    if size and size.gpus and plain and not own_driver and not node_type.head:
        what = "the image has no driver of NVIDIA: its machines would be launched again and again"
        yield Finding("error", what, node_type.name, advice="an image of AWS's deep learning")


def check_bounds(cluster: ClusterFile) -> Iterator[Finding]:
    """Find numbers of machines that contradict each other, and alternatives of what is no node type."""
    names = [node_type.name for node_type in cluster.node_types]
    for node_type in cluster.node_types:
        least = node_type.fields.get("min_workers", 0)
        most = node_type.fields.get("max_workers", cluster.config.get("max_workers", least))
        if least > most and not node_type.head:
            detail = f"{least} > {most}"
            yield Finding("error", "min_workers is above max_workers", node_type.name, detail)
    workers = [n for n in cluster.node_types if not n.head and needed(cluster, n)]
    none = not any(n.fields.get("max_workers", 1) for n in workers)
    if workers and (none or cluster.config.get("max_workers") == 0):
        names_ = ", ".join(n.name for n in workers) if none else "of the cluster"
        yield Finding("error", "max_workers: 0: no worker would ever come", names_)
    if cluster.own_provider:
        for name in cluster.provider.get("alternatives") or {}:
            if name not in names:
                what = f"provider.alternatives has what is no node type{closest(name, names)}"
                yield Finding("error", what, name)


def check_spot(cluster: ClusterFile) -> Iterator[Finding]:
    """Find spot requests that EC2 refuses, that outlive the cluster, or that wait for a price."""
    for node_type in cluster.node_types:
        offer = node_type.node_config
        options = spot_options(offer)
        if on_demand(offer):
            continue
        if options.get("SpotInstanceType") == "persistent":
            what = (
                "a persistent spot request launches machines again after `ray down`, paid for ever"
            )
            yield Finding("error", what, node_type.name, advice="SpotInstanceType: one-time")
        elif options.get("InstanceInterruptionBehavior", "terminate") != "terminate":
            what = "EC2 refuses it for one-time spot requests"
            detail = f"InstanceInterruptionBehavior: {options['InstanceInterruptionBehavior']}"
            yield Finding("error", what, node_type.name, detail, "terminate")
        price = options.get("MaxPrice")
        if price is not None and not PRICE.fullmatch(str(price)):
            what = "MaxPrice is no number of dollars an hour"
            yield Finding("error", what, node_type.name, str(price), 'MaxPrice: "0.70"')
        elif price is not None:
            what = f"MaxPrice {price}: above it a run waits; without it EC2 takes at most the price on demand"
            yield Finding("note", what, node_type.name)


def check_disks(cluster: ClusterFile) -> Iterator[Finding]:
    """Find root disks that are too small, stay after their machine, or are beside the root instead of it."""
    for node_type in cluster.node_types:
        config = node_type.node_config
        disks = config.get("BlockDeviceMappings") or ()
        size = size_of(str(config.get("InstanceType", "")))
        for disk in disks:
            yield from _disk(node_type.name, disk, bool(size and size.gpus))
        devices = {disk.get("DeviceName") for disk in disks}
        if devices and "ubuntu" in str(config.get("ImageId")) and ROOT_DISK not in devices:
            what = f"a disk beside the root, which nothing mounts: the root is {ROOT_DISK}"
            yield Finding("warning", what, node_type.name, ", ".join(map(str, devices)))


def _disk(name: str, disk: Mapping[str, Any], cuda: bool) -> Iterator[Finding]:
    ebs = disk.get("Ebs") or {}
    if ebs.get("DeleteOnTermination") is False:
        what = "a disk that stays after its machine, and is paid"
        yield Finding("warning", what, name, advice="DeleteOnTermination: true")
    if ebs.get("VolumeType") in ("io1", "io2") and not ebs.get("Iops"):
        yield Finding("error", "EC2 refuses such a disk without Iops", name, ebs["VolumeType"])
    least, gb = SMALLEST[cuda], ebs.get("VolumeSize")
    if disk.get("DeviceName") == ROOT_DISK and isinstance(gb, int) and gb < least:
        what = f"a root disk that {'CUDA and torch' if cuda else 'torch and Ray'} would fill"
        yield Finding("warning", what, name, f"{gb} GB", f"VolumeSize: {least} or more")


def check_network(cluster: ClusterFile) -> Iterator[Finding]:
    """Find fields that Ray writes over or cannot use together, and roles in place of profiles."""
    for node_type in cluster.node_types:
        config, name = node_type.node_config, node_type.name
        if "SubnetId" in config:
            what = "Ray writes over SubnetId: it would take the default network"
            yield Finding("error", what, name, advice="SubnetIds: [subnet-...]")
        if "SecurityGroups" in config:
            what = "Ray names a group by SecurityGroupIds: EC2 refuses both"
            yield Finding("error", what, name, advice="SecurityGroupIds: [sg-...]")
        if (config.get("MetadataOptions") or {}).get("HttpEndpoint") == "disabled":
            what = "without the metadata service a machine has no rights, and hears no notice"
            yield Finding("error", what, name, advice="HttpEndpoint: enabled")
        arn = (config.get("IamInstanceProfile") or {}).get("Arn", ":instance-profile/")
        if ":instance-profile/" not in arn:
            yield Finding("error", "the Arn is no instance profile's", name, arn)


def check_ends(cluster: ClusterFile) -> Iterator[Finding]:
    """Find machines that power off and stay, and a name that the policies of deploy/aws do not know."""
    guarded = "shutdown" in cluster.commands("worker_start_ray_commands")
    for node_type in cluster.node_types:
        behaviour = node_type.node_config.get("InstanceInitiatedShutdownBehavior", "stop")
        lasting = any(map(on_demand, node_type.offers))
        if guarded and lasting and behaviour != "terminate":
            what = "a machine that powers off is stopped, not ended, and its disk paid"
            advice = "InstanceInitiatedShutdownBehavior: terminate"
            yield Finding("warning", what, node_type.name, advice=advice)
        profile = (node_type.node_config.get("IamInstanceProfile") or {}).get("Name")
        name = cluster.config["cluster_name"]
        if profile == OWN_HEAD and name != OWN_NAME:
            what = f"{OWN_HEAD} may launch machines of a cluster called {OWN_NAME} alone"
            advice = "the name in the policies of deploy/aws, too"
            yield Finding("warning", what, f"cluster_name {name}", advice=advice)


CHECKS = (
    check_place,
    check_sizes,
    check_bounds,
    check_spot,
    check_disks,
    check_network,
    check_ends,
)


def check_ec2(cluster: ClusterFile) -> Iterator[Finding]:
    """Find all that EC2 would refuse or do otherwise, as far as the file alone tells."""
    if cluster.on_ec2:
        for check in CHECKS:
            yield from check(cluster)
    else:
        yield from check_bounds(cluster)
