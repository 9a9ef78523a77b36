"""`raymat cluster check`: what a cluster file lacks, before a machine is paid for."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from raymat.analysis.clusterfile.aws_account import check_account
from raymat.analysis.clusterfile.cluster_file import ClusterFile
from raymat.analysis.clusterfile.cluster_form import form_mistakes
from raymat.analysis.clusterfile.command_checks import check_commands, check_versions
from raymat.analysis.clusterfile.ec2_checks import check_ec2
from raymat.analysis.clusterfile.ec2_requests import check_requests
from raymat.analysis.clusterfile.gcp_checks import check_gcp
from raymat.analysis.clusterfile.operator_checks import (
    check_capacity,
    check_costs,
    check_doors,
    check_machines,
    check_running,
    check_this_machine,
)
from raymat.analysis.clusterfile.start_commands import check_starts
from raymat.analysis.preflight.findings import Finding, Report, Section
from raymat.config.command_line import parse_options
from raymat.config.options import Spelling
from raymat.errors import ConfigError

USAGE = "raymat cluster check FILE"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Look for what a Ray cluster file lacks, before a machine is paid for; nothing is launched or changed.

    By the file alone: Ray's schema, EC2's model of its requests, open doors, machines that bill for ever, runs that
    would wait for ever. Where credentials of AWS are: rights (by dry runs), instance profiles, sizes, quotas, and with
    --storage the bucket. Exit code: 0 if all is fine, 1 if something was found, 2 if something could not be looked at.
    """

    file: Annotated[str, Spelling("FILE", positional=True)]
    """The cluster file, such as cluster.yaml."""
    storage: Annotated[str | None, Spelling("URL")] = None
    """Where the jobs' runs will lie, to look at its bucket."""
    offline: bool = False
    """Ask AWS nothing."""
    json: bool = False
    """Print the findings as JSON."""


def main(argv: Sequence[str]) -> int:
    """Run `raymat cluster check FILE` and return the exit code. Raises ConfigError for a file that describes no cluster."""
    if argv and argv[0] == "check":
        argv = argv[1:]
    elif not argv or argv[0] not in ("-h", "--help"):
        raise ConfigError(f"what to do with a cluster is missing: {USAGE}")
    options = parse_options(Options, argv, "raymat cluster check")
    report = examine(ClusterFile.read(options.file), options)
    print(json.dumps(report.to_dict(), indent=2) if options.json else "\n".join(report.text()))
    return report.code


def examine(cluster: ClusterFile, options: Options) -> Report:
    """Run every check of a cluster file."""
    wrong = list(form_mistakes(cluster))

    def account(cluster: ClusterFile) -> Iterator[Finding]:
        if options.offline:
            return iter([Finding("skipped", "--offline")])
        return check_account(cluster, options.storage)

    checks: tuple[tuple[str, Callable[[ClusterFile], Iterator[Finding]], str], ...] = (
        ("Ray's schema", functools.partial(_schema, wrong), "Ray accepts the file"),
        ("EC2's requests", _requests, "EC2's model accepts each machine and each alternative"),
        ("doors", check_doors, "a token, and no port that is open to the world"),
        ("costs", check_costs, "nothing is paid for without use"),
        ("capacity", check_capacity, "no run waits for one market, and the head stays"),
        ("machines", _machines, "nothing of EC2's"),
        ("commands", _commands, "shells read each, and Ray each start"),
        ("running", check_running, "vanished machines are noticed, notices heard, disks used"),
        ("this machine", check_this_machine, "what is mounted is here"),
        ("the account", account, ""),
    )
    sections = list[Section]()
    for title, check, fine in checks:
        section = Section(title)
        if wrong and sections:
            section.add([Finding("skipped", "first correct what is said of the schema")])
        else:
            section.add(check(cluster))
        if not section.found:
            section.add([Finding("note", fine)])
        sections.append(section)
    return Report(tuple(sections))


def _schema(wrong: Sequence[str], cluster: ClusterFile) -> Iterator[Finding]:
    """Tell what is wrong with the file's form, or else what Ray says."""
    from raymat.cluster.ray_autoscaler_internals import schema_mistake  # Ray, which takes a second

    if not wrong and (mistake := schema_mistake(cluster.config)):
        wrong = [mistake]
    yield from (Finding("error", each) for each in wrong)


def _commands(cluster: ClusterFile) -> Iterator[Finding]:
    from raymat.cluster.ray_autoscaler_internals import VERSION, start_options

    yield from check_commands(cluster)
    yield from check_versions(cluster, VERSION)
    yield from check_starts(cluster, start_options)


def _machines(cluster: ClusterFile) -> Iterator[Finding]:
    yield from check_machines(cluster)
    yield from check_ec2(cluster)
    if cluster.provider.get("type") == "gcp":
        yield from check_gcp(cluster)


def _requests(cluster: ClusterFile) -> Iterator[Finding]:
    if not cluster.on_ec2:
        return iter([Finding("skipped", "the machines are not EC2's")])
    return check_requests(cluster)
