"""A cluster file as `ray up` takes it: what raymat's checks ask of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from raymat.analysis.clusterfile.offers import offers
from raymat.config.yaml_text import mistake, repeated, text_of
from raymat.errors import ConfigError

PROVIDER = "raymat.cluster.ec2_provider.Ec2Provider"
"""raymat's own node provider for EC2, as `provider.module` names it."""

LARGEST = 1_000_000
"""Bytes of a cluster file, and of a mounted file that is read as a script."""


@dataclass(frozen=True)
class NodeType:
    """One of `available_node_types`."""

    name: str
    fields: Mapping[str, Any]
    """All of its entry; `node_config` is what the cloud is asked for."""
    head: bool
    offers: tuple[dict[str, Any], ...]
    """Its node_config and, after it, those of its alternatives, as they are asked for in turn."""

    @property
    def node_config(self) -> dict[str, Any]:
        """What is asked for first."""
        return self.offers[0]

    @property
    def places(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each offer, with what it is called."""
        for number, offer in enumerate(self.offers):
            yield self.name if number == 0 else f"{self.name}, alternative {number}", offer


@dataclass(frozen=True)
class ClusterFile:
    """A cluster file, and the folder that its relative paths start from: the one that `ray up` runs in."""

    config: Mapping[str, Any]
    folder: Path

    @classmethod
    def read(cls, path: str) -> ClusterFile:
        """Read a file.

        Raises:
            ConfigError: it cannot be read, is no YAML, says something twice, or is no mapping with node types.
        """
        config = _parsed(path, _text(path))
        if not _describes_cluster(config):
            raise ConfigError(f"{path} describes no cluster: available_node_types is missing")
        return cls(config, Path.cwd())

    @property
    def provider(self) -> Mapping[str, Any]:
        """Which cloud, and how it is asked."""
        return _mapping(self.config.get("provider"))

    @property
    def own_provider(self) -> bool:
        """Whether raymat's provider makes the machines."""
        return self.provider.get("type") == "external" and self.provider.get("module") == PROVIDER

    @property
    def on_ec2(self) -> bool:
        """Whether the machines are EC2's."""
        return self.own_provider or self.provider.get("type") == "aws"

    @property
    def region(self) -> str:
        """EC2's region; empty if none is named."""
        return str(self.provider.get("region") or "")

    @property
    def node_types(self) -> tuple[NodeType, ...]:
        """The types, as the file has them."""
        patches = _mapping(self.provider.get("alternatives")) if self.own_provider else {}
        head = self.config.get("head_node_type")
        return tuple(
            NodeType(
                name,
                fields,
                name == head,
                offers(_mapping(fields.get("node_config")), patches.get(name) or ()),
            )
            for name, fields in _mapping(self.config.get("available_node_types")).items()
        )

    @property
    def mounts(self) -> Iterator[tuple[str, Path]]:
        """Each mounted path: where it lies on the machines, and on this one."""
        for remote, local in _mapping(self.config.get("file_mounts")).items():
            yield str(remote), self.folder / Path(str(local)).expanduser()

    def set_up(self, node_type: NodeType) -> str:
        """Return the set-up commands of a node type, one a line: its own stand in place of the workers'."""
        own = node_type.fields.get("worker_setup_commands")
        if node_type.head or own is None:
            who = "head" if node_type.head else "worker"
            return self.commands("setup_commands", f"{who}_setup_commands")
        return "\n".join(map(str, own))

    def commands(self, *keys: str) -> str:
        """Return the commands under some keys, one a line, then the mounted scripts that they name."""
        lines = [str(command) for key in keys for command in _list(self.config.get(key))]
        named = dict.fromkeys(re.findall(r"\S+\.sh\b", "\n".join(lines)))
        return "\n".join(
            [*lines, *(_script(local) for each in named if (local := self.local(each)))]
        )

    def local(self, remote: str) -> Path | None:
        """Return what is mounted at a path of the machines, or would be, below a mounted folder; None if nothing is."""
        wanted = _from_home(remote)
        for place, here in self.mounts:
            if wanted.is_relative_to(mounted := _from_home(place)):
                return here / wanted.relative_to(mounted)
        return None


def _from_home(remote: str) -> PurePosixPath:
    return PurePosixPath(re.sub(r"^(/home/[\w.-]+|/root)(?=/|$)", "~", remote))


def _script(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")[:LARGEST]
    except (OSError, UnicodeDecodeError):
        return ""


def _text(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes, and is no cluster file")
        return text_of(data)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path} cannot be read: {why}") from error


def _parsed(path: str, text: str) -> Any:
    try:
        for key in repeated(yaml.compose(text, Loader=yaml.SafeLoader)):
            raise ConfigError(f"{path}:{key.start_mark.line + 1}: {key.value!r} is given twice")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {mistake(error)}") from error


def _describes_cluster(config: Any) -> bool:
    """Tell whether a file is a cluster's: one of given hosts has no node types."""
    if not isinstance(config, Mapping):
        return False
    given = _mapping(config.get("provider")).get("type") == "local"
    return given or isinstance(config.get("available_node_types"), Mapping)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
