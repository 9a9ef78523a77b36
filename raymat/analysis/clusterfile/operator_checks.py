"""What an operator looks for in a cluster file: open doors, machines that bill for ever, runs that wait for ever."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from raymat.analysis.clusterfile.cluster_file import PROVIDER, ClusterFile, NodeType
from raymat.analysis.clusterfile.offers import on_demand
from raymat.analysis.clusterfile.ssh_networks import network
from raymat.analysis.clusterfile.start_commands import HEAD, STARTS, WORKER
from raymat.analysis.preflight.findings import Finding

EVERYWHERE = {"0.0.0.0/0", "::/0"}
WIDEST = {4: 8, 6: 20}
"""By version: a network of fewer bits is more than any one owner has."""
PRIVATE = ("10.", "192.168.", *(f"172.{n}." for n in range(16, 32)))
WITH_NVME = re.compile(r"(g4dn|g5|g6|g6e|gr6|p3dn|p4d|p4de|p5|p5e|p5en|\w+\d\w*d)\.")
"""EC2's types that bring disks of their own."""
WITH_GPU = re.compile(r"(g|p)\d\w*\.")


def check_doors(cluster: ClusterFile) -> Iterator[Finding]:
    """Find ways into the cluster that are open to everybody."""
    if cluster.on_ec2:
        yield from _ssh(cluster)
        yield from _open_rules(cluster)
    starts = cluster.commands(*STARTS)
    for key in STARTS:
        if "RAY_AUTH_MODE=token" in cluster.commands(key):
            continue
        yield Finding(
            "error",
            "Ray asks for no token: whoever reaches the head runs code on every machine",
            key,
            advice="export RAY_AUTH_MODE=token before each `ray start`, and mount ~/.ray/auth_token",
        )
    if re.search(r"--dashboard-host[= ](0\.0\.0\.0|::)(\s|$)", starts):
        yield Finding(
            "error",
            "the dashboard answers on every network of the head",
            advice="--dashboard-host=127.0.0.1; `ray dashboard cluster.yaml` tunnels to it",
        )


def _ssh(cluster: ClusterFile) -> Iterator[Finding]:
    own_groups = all(
        "SecurityGroupIds" in n.node_config or "NetworkInterfaces" in n.node_config
        for n in cluster.node_types
    )
    if own_groups:
        return
    if not cluster.own_provider:
        yield Finding(
            "error",
            "SSH would be open to the world: Ray's default group lets 0.0.0.0/0 in at port 22",
            advice=f"provider.module {PROVIDER} with ssh_from, or SecurityGroupIds in every node_config",
        )
        return
    allowed = cluster.provider.get("ssh_from")
    if not isinstance(allowed, list) or not allowed:
        yield Finding(
            "error",
            "provider.ssh_from names no address: `ray up` could not reach the head",
            advice="your own, such as [203.0.113.7/32]; `curl https://checkip.amazonaws.com` prints it",
        )
        return
    for each in allowed:
        yield from _network(each, bool(cluster.provider.get("use_internal_ips")))


def _network(text: str, internal: bool) -> Iterator[Finding]:
    try:
        found = network(text)
    except ValueError:
        yield Finding("error", "provider.ssh_from has what is no network", text)
        return
    if found.prefixlen < WIDEST[found.version]:
        what = "provider.ssh_from opens SSH to the world"
        yield Finding("error", what, text, f"{found.num_addresses:,} addresses")
    elif not internal and text.startswith(PRIVATE):
        what = "a private address, which EC2 never sees: `ray up` could not reach the head"
        advice = "what `curl https://checkip.amazonaws.com` prints; or use_internal_ips: true"
        yield Finding("warning", what, f"provider.ssh_from {text}", advice=advice)


def _open_rules(cluster: ClusterFile) -> Iterator[Finding]:
    group = cluster.provider.get("security_group")
    rules = group.get("IpPermissions") if isinstance(group, dict) else None
    for rule in rules or ():
        ranges = [*(rule.get("IpRanges") or ()), *(rule.get("Ipv6Ranges") or ())]
        open_to = {r.get("CidrIp") or r.get("CidrIpv6") for r in ranges}
        if open_to & EVERYWHERE:
            port = rule.get("FromPort", "every")
            yield Finding("error", "a rule of the security group lets the world in", f"port {port}")


def check_costs(cluster: ClusterFile) -> Iterator[Finding]:
    """Find what would be paid for without use."""
    for node_type in cluster.node_types:
        if int(node_type.fields.get("min_workers") or 0) > 0:
            least = node_type.fields["min_workers"]
            yield Finding(
                "warning",
                "machines that stay, and are paid, after the last job's end",
                node_type.name,
                f"min_workers: {least}",
                "min_workers: 0; a job's demand brings them",
            )
    stopping = cluster.on_ec2 or cluster.provider.get("type") in ("gcp", "azure")
    if stopping and cluster.provider.get("cache_stopped_nodes", True):
        yield Finding(
            "warning",
            "machines are stopped, not ended, and their disks paid",
            advice="provider.cache_stopped_nodes: false",
        )
    if cluster.own_provider and not cluster.provider.get("launches_per_hour"):
        yield Finding(
            "warning",
            "a machine whose set-up fails is launched and ended again and again",
            advice="provider.launches_per_hour: 20",
        )
    yield from _idle(cluster)


def _idle(cluster: ClusterFile) -> Iterator[Finding]:
    times = {"idle_timeout_minutes": cluster.config.get("idle_timeout_minutes", 5)}
    for node_type in cluster.node_types:
        if (seconds := node_type.fields.get("idle_timeout_s")) is not None:
            times[f"{node_type.name}.idle_timeout_s"] = seconds / 60
    for where, minutes in times.items():
        if not minutes <= 60:  # nor what is no number
            yield Finding("warning", "idle machines are paid for long", where, f"{minutes:g} min")
        elif minutes < 1:
            what = "machines end before a job has come to them, and are launched again"
            yield Finding("warning", what, where, f"{minutes:g} min", "some minutes")


def check_capacity(cluster: ClusterFile) -> Iterator[Finding]:
    """Find types for which a run would wait without end, and heads that a cloud takes back."""
    if not cluster.on_ec2:
        return
    for node_type in cluster.node_types:
        if node_type.head:
            yield from _head(node_type)
        elif needed(cluster, node_type) and not any(map(on_demand, node_type.offers)):
            # Another node type on demand is no way out: Ray 2.60 forgets on EC2 that a launch failed, and asks again.
            yield Finding(
                "warning",
                "spot alone: without capacity a run waits for ever",
                node_type.name,
                advice=f"provider.module {PROVIDER}, with {{InstanceMarketOptions: null}} last in alternatives",
            )


def needed(cluster: ClusterFile, node_type: NodeType) -> bool:
    """Tell whether training needs machines of this type: those with a GPU, where there are any."""
    with_gpu = [n for n in cluster.node_types if _has_gpu(n)]
    return not with_gpu or node_type in with_gpu


def _has_gpu(node_type: NodeType) -> bool:
    """Where `resources` names no GPU, Ray takes over what the instance type has."""
    kind = str(node_type.node_config.get("InstanceType", ""))
    gpus = (node_type.fields.get("resources") or {}).get("GPU")
    return bool(WITH_GPU.match(kind)) if gpus is None else gpus > 0


def _head(head: NodeType) -> Iterator[Finding]:
    if not on_demand(head.node_config):
        yield Finding("warning", "the head is a spot machine: the cluster ends with it", head.name)
    if WITH_GPU.match(str(head.node_config.get("InstanceType", ""))):
        yield Finding("warning", "the head has a GPU, and computes nothing", head.name)


def check_machines(cluster: ClusterFile) -> Iterator[Finding]:
    """Find what a machine lacks: image, rights, keys, protection of its credentials."""
    if not cluster.on_ec2:
        return
    for node_type in cluster.node_types:
        request, name = node_type.node_config, node_type.name
        if not request.get("ImageId"):
            yield Finding("error", "no ImageId: Ray would take Ubuntu 18.04 with CUDA 11.2", name)
        if not request.get("IamInstanceProfile"):
            what = (
                "no instance profile: Ray would make one that may do all of EC2 and S3"
                if node_type.head
                else "no instance profile: the machine cannot reach the bucket"
            )
            yield Finding("error", what, name, advice="IamInstanceProfile: {Name: ...}")
        if (request.get("MetadataOptions") or {}).get("HttpTokens") != "required":
            yield Finding(
                "warning",
                "any program that fetches a URL for others may read the machine's rights",
                name,
                advice="MetadataOptions: {HttpTokens: required, HttpPutResponseHopLimit: 1}",
            )
    yield from _keys(cluster)
    profiles = {
        profile.get("Name") or profile.get("Arn", "")
        for node_type in cluster.node_types
        if (profile := node_type.node_config.get("IamInstanceProfile"))
    }
    if profiles:
        yield Finding("note", f"instance profiles, made once: {', '.join(sorted(profiles))}")


def _keys(cluster: ClusterFile) -> Iterator[Finding]:
    names = {n.node_config["KeyName"] for n in cluster.node_types if "KeyName" in n.node_config}
    if len(names) > 1:
        what = "node types with different keys, of which auth.ssh_private_key opens one"
        yield Finding("error", what, ", ".join(sorted(names)))
    private = (cluster.config.get("auth") or {}).get("ssh_private_key")
    for node_type in cluster.node_types:
        named = node_type.node_config.get("KeyName")
        if private and not named and "UserData" not in node_type.node_config:
            yield Finding("error", "auth has a key, and the node_config no KeyName", node_type.name)
        elif named and not private:
            yield Finding(
                "error", "KeyName without auth.ssh_private_key", node_type.name, str(named)
            )


def check_running(cluster: ClusterFile) -> Iterator[Finding]:
    """Find what makes training slow or late on machines that come and go."""
    for key in STARTS:
        if not cluster.config.get(key):
            yield Finding("error", "Ray's defaults would start it, with a nightly version", key)
    if "health_check_period_ms" not in cluster.commands(HEAD):
        yield Finding(
            "warning",
            "a machine that vanishes is noticed after 15 s to a minute",
            advice="RAY_health_check_* before the head's `ray start` (deploy/node/env.sh)",
        )
    if cluster.on_ec2:
        if "unset OMP_NUM_THREADS" not in cluster.commands(*STARTS):
            yield Finding(
                "warning",
                "`ray up` exports OMP_NUM_THREADS=1: each task computes on one core",
                advice="unset OMP_NUM_THREADS before `ray start`",
            )
        if "spot-watch" not in cluster.commands(WORKER) and _has_spot(cluster):
            yield Finding(
                "warning",
                "EC2's two-minute notice is not heard: steps are lost at each reclaim",
                advice="start `raymat spot-watch` beside Ray on every worker (deploy/node/watch.sh)",
            )
        yield from _disks(cluster, cluster.commands(WORKER))
        yield from _images(cluster)


def _has_spot(cluster: ClusterFile) -> bool:
    return any(not on_demand(offer) for n in cluster.node_types for offer in n.offers)


def _disks(cluster: ClusterFile, start: str) -> Iterator[Finding]:
    if "--object-spilling-directory" in start:
        return
    for node_type in cluster.node_types:
        kind = str(node_type.node_config.get("InstanceType", ""))
        if WITH_NVME.match(kind) and not node_type.head:
            yield Finding(
                "warning",
                "disks that are paid and not used",
                node_type.name,
                f"{kind} has NVMe",
                "mount it (deploy/node/install.sh) and name it with --object-spilling-directory",
            )


def _images(cluster: ClusterFile) -> Iterator[Finding]:
    workers = [n for n in cluster.node_types if not n.head]
    public = [n.name for n in workers if "/aws/service/" in str(n.node_config.get("ImageId"))]
    if public:
        names = ", ".join(public)
        yield Finding("note", f"{names}: each new machine installs for minutes, from AWS's image")
    if all(map(_has_gpu, workers)):
        yield Finding("note", "no machines that only decode")


def check_this_machine(cluster: ClusterFile) -> Iterator[Finding]:
    """Find what `ray up` would look for on this machine in vain."""
    for remote, local in cluster.mounts:
        if local.name == "auth_token":
            yield from _token(local)
        elif not local.exists():
            yield Finding("error", "a mounted file is not there", str(local), f"for {remote}")
    key = (cluster.config.get("auth") or {}).get("ssh_private_key")
    if key and not (cluster.folder / Path(str(key)).expanduser()).exists():
        yield Finding("error", "the private key is not there", str(key))


def _token(path: Path) -> Iterator[Finding]:
    if not path.exists():
        yield Finding(
            "error",
            "there is no token yet",
            str(path),
            advice="`ray get-auth-token --generate > /dev/null`",
        )
    elif path.stat().st_mode & 0o077:
        yield Finding("error", "others may read the token", str(path), advice=f"chmod 600 {path}")
