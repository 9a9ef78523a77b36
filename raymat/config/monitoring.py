"""A section of a run's configuration: what others are told of the run while it trains."""

# No `from __future__ import annotations`: the checks in the annotations use names of this module.
from dataclasses import dataclass
from typing import Annotated, Literal

from raymat.config.options import FREE, Check, OptionGroup, at_least
from raymat.config.values import Duration

LogFormat = Literal["text", "json"]


@dataclass(frozen=True, kw_only=True)
class MonitoringConfig(OptionGroup):
    """What others are told of the run: by log lines and webhooks."""

    log_format: Annotated[LogFormat, FREE] = "text"
    """Form of the lines that the driver and the workers print: text, or json, one object a line."""
    notify_file: Annotated[str | None, FREE] = None
    """File of URLs, one a line, to which news of the run is posted as JSON: its end, its failure, and what the next two options
    say. RAYMAT_NOTIFY in the environment may hold URLs too. They may be secrets: none is stored or shown, and no option takes
    one."""
    notify_deaths: Annotated[int, FREE, at_least(1)] = 5
    """Failures of workers that are no news: more are told, then each time that their number has doubled."""
    notify_no_commit: Annotated[Duration, FREE] = Duration(3600.0)
    """Time without a commit (90s, 30m, 1.5h) after which that is told, once until there is one."""
    metrics_port: Annotated[
        int | None, FREE, Check(lambda n: 0 < n < 65536, "must be a port, 1 to 65535")
    ] = None
    """Port for Prometheus where this run starts a Ray of its own. Default: any free one, which is said. On a cluster it is the
    cluster's."""
