"""The `ray start` commands of a cluster file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from raymat.analysis.clusterfile.cluster_file import ClusterFile
from raymat.analysis.clusterfile.machine_sizes import size_of
from raymat.analysis.preflight.findings import Finding

HEAD, WORKER = STARTS = ("head_start_ray_commands", "worker_start_ray_commands")
PORT = 6379
"""Ray's own, where none is named."""
MOST = 0.8
"""The share of a machine's memory that an object store leaves to processes."""
VARIABLE = re.compile(r"\$(?:\w+|\{[^}]*\}|\([^)]*\))")

UNKNOWN = 100_000_000
"""Stands for what a machine's shell will put there; a size, as an object store it is neither too small nor too large."""

Parse = Callable[[list[str]], dict[str, Any]]
"""Reads the words after `ray start` as Ray does, or raises ValueError."""


def check_starts(cluster: ClusterFile, parse: Parse) -> Iterator[Finding]:
    """Find options that `ray start` refuses, and heads and workers that do not find each other."""
    ports = [PORT]
    for key in STARTS:
        for words in _starts(cluster, key):
            try:
                options = parse(words)
            except ValueError as error:
                yield Finding("error", "`ray start` refuses it", key, str(error))
                continue
            if options.get("block"):
                yield Finding("error", "with --block `ray up` waits for ever", key)
            if key == HEAD:
                ports.append(options.get("port") or PORT)
                yield from _head(options)
            else:
                yield from _worker(options, ports[-1])
            yield from _store(cluster, key, options.get("object_store_memory"))


def _starts(cluster: ClusterFile, key: str) -> Iterator[list[str]]:
    for command in cluster.config.get(key) or ():
        words: list[str] | None = None
        for word in (*words_of(VARIABLE.sub(str(UNKNOWN), str(command))), ";"):
            if re.fullmatch(r"[;&|()<>\n]+", word):
                if words and words[:2] == ["ray", "start"]:
                    yield words[2:]
                words = []
            else:
                words = [*(words or ()), word]


def words_of(command: str) -> list[str]:
    """Return a command's words, with what stands between commands; none where quotes do not end."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        return list(lexer)
    except ValueError:
        return []


def _head(options: dict[str, Any]) -> Iterator[Finding]:
    if not options.get("head"):
        yield Finding("error", "the head starts without --head: there is no cluster", HEAD)
    elif not options.get("autoscaling_config"):
        what = "without --autoscaling-config no worker is ever launched"
        yield Finding(
            "error", what, HEAD, advice="--autoscaling-config=~/ray_bootstrap_config.yaml"
        )


def _worker(options: dict[str, Any], port: int) -> Iterator[Finding]:
    address = str(options.get("address") or "")
    if options.get("head") or not address:
        what = "workers start without --address: each is a cluster of its own, paid and not used"
        yield Finding("error", what, WORKER, advice=f"--address=$RAY_HEAD_IP:{port}")
    elif (
        port != UNKNOWN
        and (named := address.rpartition(":")[2]).isdigit()
        and int(named) not in (port, UNKNOWN)
    ):
        yield Finding(
            "error", "workers look for the head at another port", WORKER, f"{named}, {port}"
        )


def _store(cluster: ClusterFile, key: str, store: int | None) -> Iterator[Finding]:
    if store is None or not cluster.on_ec2:
        return
    for node_type in cluster.node_types:
        for place, offer in node_type.places if node_type.head == (key == HEAD) else ():
            kind = str(offer.get("InstanceType", ""))
            size = size_of(kind)
            if size and size.gib and store > MOST * size.gib * 2**30:
                detail = f"{store / 1e9:g} GB, {kind} has {size.gib} GiB"
                what = "an object store that leaves no memory to training"
                yield Finding("error", what, place, detail, f"--object-store-memory in {key}")
