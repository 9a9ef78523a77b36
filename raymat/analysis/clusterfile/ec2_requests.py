"""EC2's own model of a request, from botocore's files: what EC2 would refuse, without asking it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import botocore.session
from botocore.loaders import Loader, create_loader
from botocore.model import Shape
from botocore.validate import ParamValidator

from raymat.analysis.clusterfile.cluster_file import ClusterFile
from raymat.analysis.preflight.findings import Finding

RAYS_OWN = {"SubnetIds"}
"""Fields of a node_config that Ray turns into others before it asks EC2."""


def check_requests(cluster: ClusterFile) -> Iterator[Finding]:
    """Find fields and values that EC2 does not know, in every node type and each of its alternatives."""
    for node_type in cluster.node_types:
        for where, request in node_type.places:
            for mistake in mistakes(request):
                yield Finding("error", "EC2 would refuse a machine", where, mistake)


def mistakes(node_config: Mapping[str, Any]) -> list[str]:
    """Return what EC2's model says against a node_config: unknown or missing fields, wrong types, values outside of lists."""
    request = {k: v for k, v in node_config.items() if k not in RAYS_OWN}
    request |= {"MinCount": 1, "MaxCount": 1}
    report = ParamValidator().validate(request, _run_instances())
    lines = report.generate_report().splitlines() if report.has_errors() else []
    return [*lines, *_unlisted(request, _run_instances())]


def aws_session() -> botocore.session.Session:
    """Return a session of AWS; all have one loader, since to read EC2's model takes half a second."""
    session = botocore.session.Session()
    session.register_component("data_loader", _loader())
    return session


@functools.cache
def _loader() -> Loader:
    return create_loader()


@functools.cache
def _run_instances() -> Shape:
    ec2 = aws_session().get_service_model("ec2")
    return ec2.operation_model("RunInstances").input_shape


def _unlisted(value: Any, shape: Any) -> Iterator[str]:
    """Yield values that are not among those that the model lists for their field; botocore itself does not look."""
    if shape.type_name == "structure" and isinstance(value, dict):
        for name in value.keys() & shape.members.keys():
            yield from _unlisted(value[name], shape.members[name])
    elif shape.type_name == "list" and isinstance(value, list):
        for item in value:
            yield from _unlisted(item, shape.member)
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{value!r} is no {shape.name}"
