"""What a cluster file says of Google Cloud's machines."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raymat.analysis.clusterfile.cluster_file import ClusterFile, NodeType
from raymat.analysis.preflight.findings import Finding

PROJECT = re.compile(r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")


def check_gcp(cluster: ClusterFile) -> Iterator[Finding]:
    """Find a project that can be none, zones of another region, a head that is taken back, notices that nobody hears."""
    provider = cluster.provider
    project = str(provider.get("project_id") or "")
    if not PROJECT.fullmatch(project):
        advice = "your own: `gcloud config get project` prints it"
        yield Finding("error", "provider.project_id is no project's", project, advice=advice)
    region, zone = str(provider.get("region") or ""), str(provider.get("availability_zone") or "")
    if not re.fullmatch(f"{re.escape(region)}-[a-z]", zone):
        what = f"a zone lies outside of provider.region {region}"
        yield Finding("error", what, f"provider.availability_zone {zone or 'is missing'}")
    for node_type in cluster.node_types:
        if node_type.head and is_spot(node_type):
            what = "the head is a spot machine: the cluster ends with it"
            yield Finding("warning", what, node_type.name)
    heard = "spot-watch" in cluster.commands("worker_start_ray_commands")
    if not heard and any(map(is_spot, cluster.node_types)):
        what = "Google's notice of half a minute is not heard: steps are lost at each reclaim"
        advice = "start `raymat spot-watch` beside Ray on every worker (deploy/node/watch.sh)"
        yield Finding("warning", what, advice=advice)


def is_spot(node_type: NodeType) -> bool:
    """Tell whether Google may take machines of a type back."""
    scheduling = node_type.node_config.get("scheduling")
    if isinstance(scheduling, list):  # as Ray's examples have it
        return any(isinstance(each, dict) and each.get("preemptible") for each in scheduling)
    if not isinstance(scheduling, dict):
        return False
    return scheduling.get("provisioningModel") == "SPOT" or bool(scheduling.get("preemptible"))
