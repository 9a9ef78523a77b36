"""The form of a cluster file: which kind of value each field has, and which fields raymat's own provider knows."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError

from raymat.analysis.clusterfile.cluster_file import PROVIDER, ClusterFile
from raymat.config.hints import closest

COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "array", "items": {"type": "string"}}
MAPPINGS = {"type": "array", "items": {"type": "object"}}
RULES = {
    "type": "array",
    "items": {"type": "object", "properties": {"IpRanges": MAPPINGS, "Ipv6Ranges": MAPPINGS}},
}
REQUEST = {
    "type": "object",
    "properties": {
        "InstanceType": {"type": "string"},
        "ImageId": {"type": "string"},
        "KeyName": {"type": "string"},
        "SubnetIds": TEXTS,
        "SecurityGroupIds": TEXTS,
        "MetadataOptions": {"type": "object"},
        "IamInstanceProfile": {"type": "object", "additionalProperties": {"type": "string"}},
        "InstanceMarketOptions": {
            "type": "object",
            "properties": {"SpotOptions": {"type": "object"}},
        },
        "BlockDeviceMappings": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"DeviceName": {"type": "string"}, "Ebs": {"type": "object"}},
            },
        },
    },
}
"""What is asked of a request to EC2 by more than EC2's own model, which sees to the rest."""
NODE_TYPE = {
    "type": "object",
    "properties": {
        "node_config": {"type": "object"},
        "resources": {"type": "object", "additionalProperties": COUNT},
        "min_workers": COUNT,
        "max_workers": COUNT,
        "idle_timeout_s": {"type": ["number", "null"]},
        "worker_setup_commands": TEXTS,
    },
}
FORM = {
    "type": "object",
    "required": ["cluster_name", "provider"],
    "properties": {
        "cluster_name": {"type": "string", "minLength": 1},
        "head_node_type": {"type": "string"},
        "max_workers": COUNT,
        "idle_timeout_minutes": {"type": "number", "minimum": 0},
        "provider": {
            "type": "object",
            "required": ["type"],
            "properties": {
                "security_group": {"type": "object", "properties": {"IpPermissions": RULES}}
            },
        },
        "auth": {"type": "object"},
        "docker": {"type": "object"},
        "available_node_types": {"type": "object", "additionalProperties": NODE_TYPE},
        "file_mounts": {"type": "object", "additionalProperties": {"type": "string"}},
        **{
            f"{who}{what}_commands": TEXTS
            for who in ("", "head_", "worker_")
            for what in ("initialization", "setup", "start_ray")
        },
    },
}
OWN_PROVIDER = {
    "type": "object",
    "required": ["region"],
    "additionalProperties": False,
    "properties": {
        "type": {},
        "module": {},
        "region": {"type": "string"},
        "availability_zone": {"type": "string"},
        "cache_stopped_nodes": {"type": "boolean"},
        "use_internal_ips": {"type": "boolean"},
        "security_group": {"type": "object"},
        "key_pair": {"type": "object"},
        "cloudwatch": {"type": "object"},
        "aws_credentials": {"type": "object"},
        "disable_node_updaters": {"type": "boolean"},
        "alternatives": {
            "type": "object",
            "additionalProperties": {"type": "array", "items": {"type": "object"}},
        },
        "ssh_from": {"type": "array", "items": {"type": "string"}},
        "launches_per_hour": {"type": "integer", "minimum": 1},
    },
}
"""What Ray's provider for EC2 reads, and raymat's beside it. Ray's own schema lets anything pass below `provider`."""


NAMES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "nothing",
    "number": "a number",
    "object": "a mapping",
    "string": "text",
}
"""YAML's words for the schema's."""


def form_mistakes(cluster: ClusterFile) -> Iterator[str]:
    """Yield where a field has a value of another kind than it must have, one line each; Ray's schema stops at the first."""
    wrong = [*_mistakes(FORM, cluster.config, "")]
    types = cluster.config.get("available_node_types") or {}
    if not wrong and types and cluster.config.get("head_node_type") not in types:
        wrong.append(f"head_node_type is none of available_node_types: {', '.join(types)}")
    module = str(cluster.provider.get("module") or "")
    if cluster.provider.get("type") == "external" and not _exists(module):
        wrong.append(
            f"provider.module: there is no {module}{closest(module, [PROVIDER], 'a class')}"
        )
    if cluster.own_provider:
        wrong += _mistakes(OWN_PROVIDER, cluster.provider, "provider")
    if cluster.on_ec2 and not wrong:
        for node_type in cluster.node_types:
            wrong += _mistakes(REQUEST, node_type.node_config, f"{node_type.name}.node_config")
        for name, changes in (cluster.provider.get("alternatives") or {}).items():
            for number, change in enumerate(changes):
                some = {k: v for k, v in change.items() if v is not None}
                wrong += _mistakes(REQUEST, some, f"provider.alternatives.{name}.{number}")
    yield from wrong


def _exists(module: str) -> bool:
    """Tell whether a provider's class can be there: of raymat's own there is one, and the module of others is found."""
    if module.startswith("raymat."):
        return module == PROVIDER
    try:
        return importlib.util.find_spec(module.rpartition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def _mistakes(schema: dict[str, Any], value: Any, root: str) -> Iterator[str]:
    errors = Draft7Validator(schema).iter_errors(value)
    for error in sorted(errors, key=lambda e: [str(part) for part in e.absolute_path]):
        yield from _lines(error, root)


def _lines(error: ValidationError, root: str) -> Iterator[str]:
    place = ".".join(filter(None, (root, *map(str, error.absolute_path))))
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        for name in sorted(set(error.instance) - set(known)):
            otherwise = f"known are {', '.join(known)}"
            yield f"{place}: unknown key {name!r}{closest(name, known, otherwise)}"
        return
    if error.validator == "type":
        kinds = error.validator_value
        names = [NAMES[k] for k in ([kinds] if isinstance(kinds, str) else kinds)]
        message = f"expected {' or '.join(names)}, got {error.instance!r}"
    elif error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        message = f"{', '.join(missing)} is missing"
    else:
        message = error.message
    yield f"{place}: {message}" if place else message
