"""Averages networks, uniformly or greedily, and recomputes the batch-norm statistics of the average."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from raymat.analysis.averaging.batchnorm_recalibration import recompute_statistics
from raymat.analysis.averaging.soup import Trial, WeightSum, greedy
from raymat.analysis.run_pictures import RunPictures, kept_source
from raymat.config.run import build, to_dict
from raymat.errors import ConfigError, WeightsError
from raymat.model.matting import MattingBase
from raymat.model.pretrained import backbone_of
from raymat.storage.urls import redact
from raymat.train.run.selected_weights import Selected, build_network, read_weights, whole_network
from raymat.train.validation.evaluator import finite
from raymat.version import __version__

DATA = ("dataset", "backgrounds", "synthetic", "resolution", "crop", "batch_size", "valid_examples")
"""Options of a run's data that may be given instead of the run's own."""

OnSkip = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How networks are averaged."""

    greedy: bool = False
    metric: str = "loss"
    """By which the greedy choice validates; the lowest is the best."""
    examples: int = 256
    """Training examples for the statistics, rounded up to whole batches."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Options in `DATA` that replace the run's."""


@dataclass(frozen=True, kw_only=True)
class Average:
    """An average of networks, with batch-norm statistics of its own."""

    network: MattingBase
    """In eval mode, on the device that it was computed on."""
    sources: tuple[Selected, ...]
    """The networks that were averaged, without their weights."""
    trials: tuple[Trial, ...]
    """Of the greedy choice."""
    examples: int
    """Training examples that the statistics were computed on."""
    about: dict[str, Any]
    """The same for a file's description, JSON-able and without credentials."""


def average(
    names: Sequence[str],
    recipe: Recipe,
    device: torch.device,
    on_skip: OnSkip = lambda note: None,
) -> Average:
    """Average the networks that `names` refer to. `on_skip` hears of checkpoints that were passed over.

    In memory are the sum, one network, and one checkpoint at a time. The order of `names` changes no bit.

    Raises:
        ConfigError: the networks or options do not fit together. WeightsError: a network cannot be read or is of
        another kind. DataError: there are no pictures. StorageError: storage cannot be read.
    """
    # Sorted, so that neither the order of a sum nor the choice between equals follows the caller's order.
    ordered = sorted(set(names))
    if len(ordered) < len(names):
        raise ConfigError("each network counts once: one of them is named twice")
    reader = _Reader(on_skip)
    averager = _Averager(reader, ordered, recipe, device)
    trials: list[Trial] = []
    if recipe.greedy:
        trials = greedy(ordered, averager.measure, averager.measure_with, averager.add)
    else:
        for name in ordered:
            averager.add(name)
    examples = averager.finish()
    sources = tuple(reader.facts(name) for name in sorted(averager.added))
    about = {
        "kind": "greedy" if recipe.greedy else "uniform",
        "raymat": __version__,
        "averaged": [_about_source(one) for one in sources],
        "statistics": {"examples": examples, **_about_data(averager.pictures)},
        "stage": sources[0].stage,
        "backbone": backbone_of(averager.network.state_dict()),
    }
    if trials:
        about["trials"] = [_about_trial(trial) for trial in trials]
        about["metric"] = recipe.metric
    return Average(
        network=averager.network,
        sources=sources,
        trials=tuple(trials),
        examples=examples,
        about=about,
    )


class _Reader:
    """Reads networks by reference and remembers what each is; keeps the weights of the last one."""

    def __init__(self, on_skip: OnSkip) -> None:
        self._on_skip = on_skip
        self._facts: dict[str, Selected] = {}
        self._last: tuple[str, Selected] | None = None

    def read(self, name: str) -> Selected:
        """Read a network; a WeightsError if its reference means another checkpoint than before."""
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        self.forget()  # before the next one is in memory
        on_skip = lambda _, why: self._on_skip(f"{name}: passed over: {why}")  # noqa: E731
        found = whole_network(read_weights(name, on_skip=on_skip))
        facts = self._facts.setdefault(name, replace(found, weights={}))
        if facts.checkpoint != found.checkpoint:
            raise WeightsError(
                f"{facts.what} meant {facts.checkpoint} and now {found.checkpoint}: name its step, as in RUN@{facts.step}"
            )
        self._last = (name, found)
        return found

    def facts(self, name: str) -> Selected:
        """Return what is known of a network, without its weights; reads it if that is not known yet."""
        if name not in self._facts:
            self.read(name)
        return self._facts[name]

    def forget(self) -> None:
        """Free the weights of the last network."""
        self._last = None


class _Averager:
    """A growing average: the sum of the networks added so far, and one network to load averages into."""

    def __init__(
        self, reader: _Reader, names: Sequence[str], recipe: Recipe, device: torch.device
    ) -> None:
        self.added: list[str] = []
        self._reader, self._recipe, self._device = reader, recipe, device
        self._sum: WeightSum | None = None
        self.network = build_network(reader.read(names[0])).to(device)
        self.pictures = _pictures(recipe, [reader.facts(name) for name in names])

    def measure(self, name: str) -> float:
        """Validate one network with its own statistics."""
        self.network.load_state_dict(self._reader.read(name).weights, strict=False)
        return self._validate()

    def measure_with(self, name: str) -> float:
        """Validate the average of what was added and one more network, with new statistics."""
        weights, own = self._reader.read(name).weights, self.network.state_dict()
        if self._sum is None:
            WeightSum(weights, name).mean_into(own)
        else:
            self._sum.mean_into(own, weights, name)
        self._recompute_statistics()
        return self._validate()

    def add(self, name: str) -> None:
        """Add a network to the sum."""
        weights = self._reader.read(name).weights
        if self._sum is None:
            self._sum = WeightSum(weights, name)
        else:
            self._sum.add(weights, name)
        self.added.append(name)

    def finish(self) -> int:
        """Load the average into the network with new statistics; returns the number of examples behind them."""
        self._reader.forget()
        assert self._sum is not None
        self._sum.mean_into(self.network.state_dict())
        return self._recompute_statistics()

    def _recompute_statistics(self) -> int:
        batches = self.pictures.train(self._recipe.examples, self._device)
        done = recompute_statistics(self.network, ((b.src, b.bgr) for b in batches))
        return done * self.pictures.config.data.batch_size

    def _validate(self) -> float:
        return self.pictures.measure(self.network, self._recipe.metric, self._device)


def _pictures(recipe: Recipe, sources: Sequence[Selected]) -> RunPictures:
    """Open the pictures that the recipe names, or those of the runs."""
    run = next((one for one in sources if one.config is not None), None)
    own = to_dict(run.config) if run is not None and run.config is not None else {}
    elsewhere = any(name in recipe.data for name in ("dataset", "backgrounds", "synthetic"))
    if not elsewhere:
        _require_one_dataset(sources)
    elif run is not None:
        own |= {"dataset": None, "backgrounds": None, "synthetic": None}
    flat = {"name": "average", "steps": 1} | own | dict(recipe.data)
    if not recipe.greedy:
        flat["valid_examples"] = 0
    flat.pop("stage", None)
    config = build(sources[0].stage, flat)
    if recipe.greedy and not config.log.valid_examples:
        raise ConfigError("--greedy needs validation examples: --valid-examples N")
    if elsewhere or config.data.synthetic is not None:
        return RunPictures.of(config)
    assert run is not None
    source = kept_source(run)
    if source is None:
        raise ConfigError(
            f"{run.run_url} has no run.json, which knows its dataset: give --dataset and --backgrounds, or --synthetic N"
        )
    return RunPictures(config, source)


def _require_one_dataset(sources: Sequence[Selected]) -> None:
    """Raise a ConfigError unless the runs among `sources` share one dataset; files have none."""
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


def _about_data(pictures: RunPictures) -> dict[str, Any]:
    """Describe what the statistics were computed on, without credentials."""
    flat = to_dict(pictures.config)
    found = {name: flat[name] for name in (*DATA, "seed") if name != "valid_examples"}
    for name in ("dataset", "backgrounds"):
        found[name] = found[name] and redact(found[name])
    return found


def _about_trial(trial: Trial) -> dict[str, Any]:
    return asdict(trial) | {"alone": finite(trial.alone), "together": finite(trial.together)}


def _about_source(one: Selected) -> dict[str, Any]:
    checkpoint = str(one.checkpoint) if one.checkpoint else None
    return {"what": one.what, "run": one.run_url, "checkpoint": checkpoint, "ema": one.ema}
