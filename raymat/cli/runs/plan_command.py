"""`raymat plan`: what a run will take on spot machines, before they are paid for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from raymat.analysis.planning.advice import Plan, Spread, make_plan
from raymat.analysis.planning.costs import RunCosts, measure
from raymat.analysis.planning.market import Market, Rates, Trace
from raymat.analysis.planning.plan_plot import draw_plans
from raymat.config.command_line import parse_options
from raymat.config.options import MORE_THAN_0, NOT_NEGATIVE, Check, OptionGroup, Spelling, at_least
from raymat.config.prices import Prices
from raymat.config.values import Numbers
from raymat.console import columns
from raymat.errors import ConfigError
from raymat.storage.output_files import check_output, write_output
from raymat.train.run.commit_interval import PRIOR_SECONDS
from raymat.train.run.run_url import open_run_url, read_run_events

_SHARE = Check(lambda value: 0 <= value <= 1, "must be in [0, 1]")
_COUNTS = Check(
    lambda numbers: all(n >= 1 and n == int(n) and n <= 4096 for n in numbers.values),
    "must be whole numbers from 1 to 4096",
)
_DEFAULT_WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """Say what a run is likely to take on spot machines: for each number of workers its hours, goodput and cost, how many
    workers it should have at least, how many of them on demand, and how often it should commit.

    Costs of steps, saves and restarts are those that a run's events tell; flags take their place. Each row is the best of
    several settings (cheapest with --price, else fastest), replayed on many draws of the market: the median, and between
    what nine of ten draws lie. Steps are taken to share their work evenly. Exit code: 0, or 2 for what cannot be used.
    """

    urls: Annotated[tuple[str, ...], Spelling("URL", positional=True)] = ()
    """A run like the planned one: STORAGE/NAME, any fsspec URL. Without it: --step-seconds and --steps."""
    steps: Annotated[int | None, at_least(1)] = None
    """Steps of the planned run. Default: the run's."""
    step_seconds: Annotated[float | None, MORE_THAN_0] = None
    """Seconds of a step on --measured-workers."""
    measured_workers: Annotated[int | None, at_least(1)] = None
    """Workers on which --step-seconds was measured. Default: 1."""
    stall_seconds: Annotated[float | None, NOT_NEGATIVE] = None
    """Seconds for which training stands still for a checkpoint."""
    save_seconds: Annotated[float | None, NOT_NEGATIVE] = None
    """Seconds until a checkpoint is committed."""
    detect_seconds: Annotated[float | None, NOT_NEGATIVE] = None
    """Seconds until a lost worker is noticed."""
    restart_seconds: Annotated[float | None, NOT_NEGATIVE] = None
    """Seconds from then to the next step."""
    join_seconds: Annotated[float | None, NOT_NEGATIVE] = None
    """Seconds from when a machine is there until the workers leave to take it in."""
    grow_seconds: Annotated[float | None, NOT_NEGATIVE] = None
    """Seconds from then to the next step."""
    workers: Annotated[Numbers | None, _COUNTS] = None
    """Numbers of workers to plan for. Default: 1,2,4,...,512, with a run up to its batch size."""
    losses: Annotated[float, NOT_NEGATIVE] = 3600 / PRIOR_SECONDS
    """Losses of one machine in an hour."""
    back: Annotated[float, MORE_THAN_0] = 120.0
    """Seconds until a lost machine is replaced."""
    trace: str | None = None
    """A recording in place of --losses and --back: JSON with metadata.gap_seconds, and data: machines at each gap. Its most
    machines stand for all workers."""
    noticed: Annotated[float, _SHARE] = 0.0
    """Share of losses that the cloud announces in time (raymat spot-watch): they lose no step."""
    price: Prices | None = None
    """What a worker costs in an hour, in any currency, as spot=0.52,ondemand=1.62 or a .yaml file of both."""
    draws: Annotated[int, at_least(10)] = 200
    """Draws of the market for each row."""
    output: Annotated[str | None, Spelling("FILE.png", short="-o")] = None
    """Also draw the plan."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.urls) > 1:
            raise ConfigError("expected one run: raymat plan STORAGE/NAME")


def main(argv: Sequence[str]) -> int:
    """Run `raymat plan` and return the exit code. Raises RaymatError for what the user can mend."""
    options = parse_options(Options, argv, "raymat plan")
    if options.output is not None:
        check_output("--output", options.output, ".png")
    events = _events(options)
    costs, steps, told = _costs(options, events)
    market = _market(options)
    plans = [
        make_plan(costs, steps, workers, market, options.price, options.draws)
        for workers in _workers(options, events)
    ]
    if options.json:
        print(json.dumps({"costs": asdict(costs), "plans": [asdict(p) for p in plans]}, indent=2))
    else:
        print(f"{told}\n\n{table(plans)}")
    if options.output is not None:
        write_output("--output", options.output, draw_plans(plans, f"{steps} steps, {_of(market)}"))
    return 0


def table(plans: Sequence[Plan]) -> str:
    """Format plans, a line each."""
    priced = any(plan.cost for plan in plans)
    head = ("workers", "on demand", "commit every", "hours", "goodput", "no machine")
    rows = [(*head, *(["cost"] if priced else []))]
    for plan in plans:
        setting = plan.setting
        workers = (
            f"{setting.low}:{setting.high}" if setting.low < setting.high else f"{setting.high}"
        )
        cells = (
            workers,
            str(setting.ondemand),
            f"{setting.interval} steps",
            _spread(plan.hours, "{:.2f}") + ("" if plan.ends == 1 else f", {plan.ends:.0%} end"),
            _spread(plan.goodput, "{:.1%}"),
            f"{plan.capacity:.0%}",
        )
        rows.append((*cells, *([_spread(plan.cost, "{:.2f}")] if plan.cost else [])))
    return columns(rows)


def _spread(found: Spread, form: str) -> str:
    return f"{form.format(found.median)} ({form.format(found.low)} to {form.format(found.high)})"


def _events(options: Options) -> list[dict[str, Any]]:
    if not options.urls:
        return []
    return read_run_events(open_run_url(options.urls[0]))


def _costs(options: Options, events: Sequence[dict[str, Any]]) -> tuple[RunCosts, int, str]:
    """Return what parts of the run take, how many steps it has, and a sentence that says where that comes from."""
    measured = measure(events)
    given = {
        "step": options.step_seconds,
        "world": options.measured_workers or (1 if options.step_seconds else None),
        "stall": options.stall_seconds,
        "save": options.save_seconds,
        "detect": options.detect_seconds,
        "restart": options.restart_seconds,
        "join": options.join_seconds,
        "grow": options.grow_seconds,
    }
    named = {name: value for name, value in given.items() if value is not None}
    if "step" in named:
        measured.pop("paces", None)  # of other steps
    values = {**measured, **named}
    if "step" not in values:
        raise ConfigError(
            "what a step takes is not known: name a run that has committed twice, or --step-seconds"
        )
    world = int(values.pop("world", 1))
    costs = RunCosts(**values, world=world)
    starts = [e for e in events if e.get("kind") == "start"]
    steps = options.steps or (int(starts[-1]["total_steps"]) if starts else None)
    if steps is None:
        raise ConfigError("how long the run is to be is not known: name a run, or --steps")
    parts = []
    for name, value in asdict(costs).items():
        if name not in ("world", "paces"):
            source = "given" if name in named else "measured" if name in measured else "assumed"
            on = f" on {costs.world}" if name == "step" else ""
            parts.append(f"{name} {value:.3g} s{on} ({source})")
    return costs, steps, f"{steps} steps; {', '.join(parts)}"


def _market(options: Options) -> Market:
    if options.trace is not None:
        return Trace.read(options.trace, options.noticed)
    return Rates(options.losses, options.back, options.noticed)


def _of(market: Market) -> str:
    if isinstance(market, Rates):
        return f"{market.losses:.3g} losses an hour and machine, {market.noticed:.0%} announced"
    return "machines as recorded"


def _workers(options: Options, events: Sequence[dict[str, Any]]) -> list[int]:
    if options.workers is not None:
        return [int(number) for number in options.workers.values]
    launches = [e for e in events if e.get("kind") == "launch"]
    batch = launches[-1].get("config", {}).get("batch_size") if launches else None
    most = batch if isinstance(batch, int) and batch >= 1 else _DEFAULT_WORKERS[-1]
    return [number for number in _DEFAULT_WORKERS if number <= most]
