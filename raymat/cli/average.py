"""`raymat average`: one network from several, with batch-norm statistics of its own."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import tyro

from raymat.analysis.batchnorm_recalibration import recompute_statistics
from raymat.analysis.run_pictures import Pictures
from raymat.analysis.soup import Trial, WeightSum, greedy
from raymat.cli.inputs import device_of, kept_source
from raymat.config.run import RunConfig, build, to_dict
from raymat.config.sections import Device
from raymat.console import columns, count, parse_options, size
from raymat.errors import ConfigError, WeightsError
from raymat.export.weights_file import check_path, write_weights
from raymat.model.matting import MattingBase
from raymat.model.pretrained import backbone_of
from raymat.storage.urls import redact
from raymat.train.run.weights_reference import Selected, build_network, read_weights
from raymat.version import __version__

DATA = ("dataset", "backgrounds", "synthetic", "resolution", "crop", "batch_size", "valid_examples")
"""Options that stand in for the run's own."""
OnSkip = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Average the weights of several networks into one weights file.

    WHAT is a weights file or a run's checkpoint: FILE.pth, STORAGE/NAME (newest), STORAGE/NAME@1200,
    STORAGE/NAME@best, STORAGE/NAME/checkpoints/step-...; all but a file also with @ema at the end. All must be of
    one stage and backbone.

    Averaged batch-norm statistics are not those of averaged weights: they are computed anew on training pictures,
    by default the run's own. Sums are float64 and in an order of their own: the order of the arguments changes no
    bit. In memory are the sum and one checkpoint at a time. A .pth gets a .json beside it that says what it is made
    of, a .safetensors has that in its header. Exit code: 0, or 2 if nothing was written.
    """

    what: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="WHAT...")]
    """What to average."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
    """The file to write, .pth or .safetensors, in a folder of this machine that exists."""
    force: bool = False
    """Replace the file if it exists."""
    greedy: bool = False
    """Start with the best by validation and take, best first, only those with which the average is at least as good
    (the greedy soup of Wortsman et al., 2022)."""
    metric: Literal["loss", "sad", "mse", "grad", "conn"] = "loss"
    """Of --greedy: the lowest is the best."""
    examples: int = 256
    """Training examples for the statistics, rounded up to whole batches: the first of the run's order."""
    dataset: str | None = None
    """Folder (any fsspec URL) with train/ and valid/, below each fgr/ and pha/. Default: the run's."""
    backgrounds: str | None = None
    """Folder (any fsspec URL) with train/ and valid/. Default: the run's."""
    synthetic: int | None = None
    """Make N procedural pairs and backgrounds instead of the two above."""
    resolution: int | None = None
    """Side of the square that samples are warped to. Default: the run's."""
    crop: str | None = None
    """MIN:MAX of the random crop in pixels. Default: the run's."""
    batch_size: int | None = None
    """Examples of a batch. Default: the run's."""
    valid_examples: int | None = None
    """Validation examples of --greedy. Default: the run's."""
    device: Device = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        if not self.what:
            raise ConfigError("expected what to average: raymat average A B ... -o FILE")
        if self.examples < 1:
            raise ConfigError(f"--examples must be at least 1, got {self.examples}")


@dataclass(frozen=True)
class Averaged:
    """What was written."""

    path: str
    bytes: int
    sources: tuple[Selected, ...]
    """Those that count, without their weights."""
    trials: tuple[Trial, ...]
    """Of --greedy."""
    metric: str
    examples: int
    """That the statistics were computed on."""

    @property
    def text(self) -> str:
        """What was averaged, and how greedy came to it."""
        lines = [
            f"{one.what}{f' ({one.checkpoint})' if one.checkpoint else ''}" for one in self.sources
        ]
        if self.trials:
            rows = [("candidate", f"{self.metric} alone", "with it", "")]
            for t in self.trials:
                verdict = "taken" if t.taken else "refused"
                rows.append((t.name, f"{t.alone:.6g}", f"{t.together:.6g}", verdict))
            lines = [columns(rows)]
        told = f"average of {count(len(self.sources), 'network')}"
        statistics = f"statistics of {count(self.examples, 'example')}"
        return "\n".join([*lines, f"{self.path}: {size(self.bytes)}, {told}, {statistics}"])


def main(argv: Sequence[str]) -> int:
    """`raymat average A B C -o FILE`; returns the exit code. Raises RaymatError if nothing is written."""
    options = parse_options(Options, argv, "raymat average")
    print(average(options, lambda note: print(f"note: {note}", file=sys.stderr)).text)
    return 0


def average(options: Options, told: OnSkip = lambda note: None) -> Averaged:
    """Read, average, compute the statistics, write. `told` hears of checkpoints that were passed over.

    Raises:
        ConfigError: the options do not fit together. WeightsError: the networks do not. DataError: there are no pictures.
        StorageError: something cannot be read or written.
    """
    check_path(options.output, options.force)
    # Sorted: neither the order of a sum nor the choice between equals follows the command line.
    names = sorted(set(options.what))
    if len(names) < len(options.what):
        raise ConfigError("each network counts once: one of them is named twice")
    kitchen = _Kitchen(options, names, told)
    trials: list[Trial] = []
    if options.greedy:
        trials = greedy(names, kitchen.alone, kitchen.together, kitchen.take)
    else:
        for name in names:
            kitchen.take(name)
    network, examples = kitchen.serve()
    taken = tuple(kitchen.sources[name] for name in sorted(kitchen.taken))
    about = {
        "kind": "greedy" if options.greedy else "uniform",
        "raymat": __version__,
        "averaged": [_about(one) for one in taken],
        "statistics": {"examples": examples, **kitchen.about_data()},
        "stage": taken[0].stage,
        "backbone": backbone_of(network.state_dict()),
    }
    if trials:
        about["trials"] = [_json_able(asdict(trial)) for trial in trials]
        about["metric"] = options.metric
    check_path(options.output, options.force)  # that took a while
    weights = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    written = write_weights(options.output, weights, about)
    return Averaged(options.output, written, taken, tuple(trials), options.metric, examples)


class _Kitchen:
    """Reads networks one at a time; keeps a sum of those that were taken, and one network to work with."""

    def __init__(self, options: Options, names: Sequence[str], told: OnSkip) -> None:
        self._options, self._told = options, told
        self._device = device_of(options.device)
        self.sources: dict[str, Selected] = {}
        self.taken: list[str] = []
        self._sum: WeightSum | None = None
        self._last: tuple[str, Selected] | None = None
        self._network = build_network(self._read(names[0])).to(self._device)
        self.pictures = _pictures(options, [self._facts(name) for name in names])

    def alone(self, name: str) -> float:
        """The metric of one network with its own statistics."""
        self._network.load_state_dict(self._read(name).weights, strict=False)
        return self._measure()

    def together(self, name: str) -> float:
        """The metric of the average of what was taken and one more, with statistics of its own."""
        weights = self._read(name).weights
        if self._sum is None:
            WeightSum(weights, name).mean_into(self._network.state_dict())
        else:
            self._sum.mean_into(self._network.state_dict(), weights, name)
        self._recompute()
        return self._measure()

    def take(self, name: str) -> None:
        """Add one to the sum."""
        weights = self._read(name).weights
        if self._sum is None:
            self._sum = WeightSum(weights, name)
        else:
            self._sum.add(weights, name)
        self.taken.append(name)

    def serve(self) -> tuple[MattingBase, int]:
        """The average with its statistics, and the number of examples that these are of."""
        self._last = None
        assert self._sum is not None
        self._sum.mean_into(self._network.state_dict())
        return self._network, self._recompute()

    def about_data(self) -> dict[str, Any]:
        """What the statistics were computed on, without credentials."""
        flat = to_dict(self.pictures.config)
        found = {name: flat[name] for name in (*DATA, "seed") if name != "valid_examples"}
        return {
            n: redact(v) if n in ("dataset", "backgrounds") and v else v for n, v in found.items()
        }

    def _read(self, name: str) -> Selected:
        """The one that was read last is at hand."""
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        self._last = None
        found = read_weights(name, on_skip=lambda _, why: self._told(f"{name}: passed over: {why}"))
        facts = self.sources.setdefault(name, _without_weights(found))
        if facts.checkpoint != found.checkpoint:
            raise WeightsError(
                f"{facts.what} meant {facts.checkpoint} and now {found.checkpoint}: name its step, as in RUN@{facts.step}"
            )
        self._last = (name, found)
        return found

    def _facts(self, name: str) -> Selected:
        if name not in self.sources:
            self._read(name)
        return self.sources[name]

    def _recompute(self) -> int:
        batches = self.pictures.train(self._options.examples, self._device)
        done = recompute_statistics(self._network, ((b.src, b.bgr) for b in batches))
        return done * self.pictures.config.data.batch_size

    def _measure(self) -> float:
        return self.pictures.measure(self._network, self._options.metric, self._device)


def _pictures(options: Options, sources: Sequence[Selected]) -> Pictures:
    """The pictures that the options name, or the runs' own."""
    given: dict[str, Any] = {n: v for n in DATA if (v := getattr(options, n)) is not None}
    run = next((one for one in sources if one.config is not None), None)
    own = to_dict(run.config) if run is not None and run.config is not None else {}
    elsewhere = any(name in given for name in ("dataset", "backgrounds", "synthetic"))
    if not elsewhere:
        _require_one_dataset(sources)
    elif run is not None:
        own |= {"dataset": None, "backgrounds": None, "synthetic": None}
    flat = ({"name": "average", "steps": 1} | own | given) | (
        {} if options.greedy else {"valid_examples": 0}
    )
    flat.pop("stage", None)
    config: RunConfig = build(sources[0].stage, flat)
    if options.greedy and not config.log.valid_examples:
        raise ConfigError("--greedy needs validation examples: --valid-examples N")
    if elsewhere or config.data.synthetic is not None:
        return Pictures.of(config)
    assert run is not None
    source = kept_source(run)
    if source is None:
        raise ConfigError(
            f"{run.run_url} has no run.json, which knows its dataset: give --dataset and --backgrounds, or --synthetic N"
        )
    return Pictures(config, source)


def _require_one_dataset(sources: Sequence[Selected]) -> None:
    """ConfigError unless the runs among `sources` share one dataset; files have none."""
    found = {
        (one.config.data.dataset, one.config.data.backgrounds, one.config.data.synthetic)
        for one in sources
        if one.config is not None
    }
    if len(found) != 1:
        what = "are of runs with different datasets" if found else "know no dataset"
        raise ConfigError(
            f"these weights {what}: give --dataset and --backgrounds, or --synthetic N, for the batch-norm statistics"
        )


def _without_weights(one: Selected) -> Selected:
    return replace(one, weights={})


def _about(one: Selected) -> dict[str, Any]:
    checkpoint = str(one.checkpoint) if one.checkpoint else None
    return {"what": one.what, "run": one.run_url, "checkpoint": checkpoint, "ema": one.ema}


def _json_able(fields: Mapping[str, Any]) -> dict[str, Any]:
    odd = {n for n, v in fields.items() if isinstance(v, float) and not math.isfinite(v)}
    return {name: None if name in odd else value for name, value in fields.items()}
