"""Which weights a text such as `s3://bucket/runs/night@best@ema` means, and reading them.

    FILE.pth                                 a weights file (WEIGHT_FILES), any fsspec URL
    STORAGE/NAME                             a run: its newest checkpoint that verifies
    STORAGE/NAME@1200                        its checkpoint of step 1200
    STORAGE/NAME@best                        its checkpoint of the best validation, by the run's own metric
    STORAGE/NAME/checkpoints/step-...        this one
    ...@ema                                  of any of the last four the averaged weights

Nothing is believed that does not verify: a damaged checkpoint is passed over where the text leaves a choice, and an
error where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from raymat.checkpoint.catalog import Status, newest_extra, scan
from raymat.checkpoint.layout import CHECKPOINTS, split_run_url
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.reader import read_checkpoint
from raymat.checkpoint.snapshot import Snapshot
from raymat.checkpoint.state_dict import EMA, MODEL
from raymat.config.run import RunConfig, from_dict
from raymat.config.sections import ModelConfig, Stage
from raymat.errors import CheckpointError, ConfigError, WeightsError
from raymat.model.matting import MattingBase, build
from raymat.model.pretrained import backbone_of, load_matching, tensors_in
from raymat.model.weights_reader import read_file
from raymat.storage.store import Store
from raymat.storage.urls import redact
from raymat.train.run.run_file import RUN_FILE
from raymat.train.validation.criteria import metric_of, ranked, validated

WEIGHT_FILES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
"""Endings by which a weights file is told from a run's folder."""

OnSkip = Callable[[CheckpointId, str], None]


@dataclass(frozen=True)
class Request:
    """A text taken apart."""

    url: str
    """Of a file, a run or a checkpoint, without what follows an @."""
    is_file: bool = False
    step: int | None = None
    best: bool = False
    ema: bool = False


@dataclass(frozen=True)
class Selected:
    """Weights, and what is known of where they come from."""

    what: str
    """The text that asked for them, without credentials."""
    run_url: str | None
    """None for a file, as are `checkpoint`, `step` and `config`."""
    checkpoint: CheckpointId | None
    step: int | None
    stage: Stage
    config: RunConfig | None
    """Of the run, as it was when the checkpoint was written."""
    ema: bool
    weights: dict[str, Tensor]
    """Published names to CPU tensors, with memory of their own."""


@dataclass(frozen=True)
class State:
    """A whole checkpoint, verified; `what` asked for it, without credentials."""

    what: str
    run_url: str
    checkpoint: CheckpointId
    snapshot: Snapshot


def read_weights(
    what: str,
    *,
    on_skip: OnSkip = lambda checkpoint, reason: None,
) -> Selected:
    """The weights that `what` means; see the module's text.

    `on_skip` is told of each better choice that was passed over (torn, damaged, no longer there) and why; a checkpoint
    that is not there has attempt 0. In memory are, for a moment, a whole checkpoint
    and its network once more.

    Raises:
        WeightsError: there is nothing that `what` could mean. StorageError: storage cannot be read.
    """
    request = parse_reference(what)
    if request.is_file:
        return _from_file(request.url)
    return _selected(read_state(what, on_skip=on_skip), request.ema)


def read_state(
    what: str,
    *,
    on_skip: OnSkip = lambda checkpoint, reason: None,
) -> State:
    """All of the checkpoint that `what` means; arguments and errors are `read_weights`'s, which also takes files."""
    request = parse_reference(what)
    storage, name, checkpoint = split_run_url(request.url)
    store = Store.open(storage, name)
    reasons: list[str] = []

    def skipped(passed_over: CheckpointId, reason: str) -> None:
        reasons.append(reason)
        on_skip(passed_over, reason)

    for status in _candidates(store, request, checkpoint, skipped):
        try:
            if status.state == "torn":
                raise CheckpointError(status.reason)
            snapshot = read_checkpoint(store, status.id, files=status.files)
        except CheckpointError as error:
            skipped(status.id, error.line)
            continue
        return State(redact(what), store.url, status.id, snapshot)
    raise WeightsError(f"no checkpoint that verifies for {redact(what)}: {reasons[0]}")


def parse_reference(what: str) -> Request:
    """Take the text apart; whether there is such a thing is not asked.

    Raises:
        WeightsError: what follows an @ means nothing, or not there.
    """
    if what.endswith(WEIGHT_FILES):
        return Request(what, is_file=True)
    folder, slash, last = what.rstrip("/").rpartition("/")
    base, *asked = last.split("@")
    url = folder + slash + base
    ema = asked[-1:] == ["ema"]
    places = asked[:-1] if ema else asked
    if (places and base.endswith(WEIGHT_FILES)) or (ema and base.endswith(WEIGHT_FILES)):
        raise WeightsError(
            f"{redact(what)}: a weights file holds one set of weights: leave out the @"
        )
    if not places:
        return Request(url if ema else what, ema=ema)
    place = places[0]
    known = place == "best" or (place.isascii() and place.isdigit())
    if len(places) > 1 or not known:
        raise WeightsError(
            f"{redact(what)}: after a run's URL expected @STEP, @best or @ema (last), got @{'@'.join(asked)}"
        )
    if CheckpointId.try_parse(base) is not None and folder.endswith(CHECKPOINTS):
        raise WeightsError(
            f"{redact(what)}: after a checkpoint's URL expected @ema only, got @{place}"
        )
    if place == "best":
        return Request(url, best=True, ema=ema)
    return Request(url, step=int(place), ema=ema)


def pin(what: str, checkpoint: CheckpointId) -> str:
    """The text that means this checkpoint of the run in `what`, whatever is newest or best when it is read."""
    request = parse_reference(what)
    storage, name, _ = split_run_url(request.url)
    return f"{storage.rstrip('/')}/{name}/{CHECKPOINTS}/{checkpoint}{'@ema' if request.ema else ''}"


def build_network(selected: Selected) -> MattingBase:
    """The network with these weights, on the CPU, in eval mode, float32.

    Of a file, backbone and stage are told from the names, all else is the default.

    Raises:
        WeightsError: the weights are not those of a whole network.
    """
    if selected.config is not None:
        model = selected.config.model
    else:
        model = _told_from(selected)
    network = build(selected.stage, model, 0)
    report = load_matching(network, selected.weights, selected.what)
    lacking = [
        name
        for name in (*report.missing, *report.mismatched)
        # Counters only; files older than PyTorch 0.4.1 lack them.
        if not name.endswith("num_batches_tracked")
    ]
    if lacking:
        raise WeightsError(
            f"{selected.what} is no whole {selected.stage} network: {len(lacking)} tensors are missing or of another "
            f"shape, the first {lacking[0]}"
        )
    return network.eval()


def _from_file(url: str) -> Selected:
    weights = tensors_in(read_file(url), redact(url))
    return Selected(redact(url), None, None, None, _stage_of(weights), None, False, weights)


def _selected(state: State, ema: bool) -> Selected:
    what, checkpoint, snapshot = state.what, state.checkpoint, state.snapshot
    prefix = EMA if ema else MODEL
    # Views of whole shards, which would keep the optimiser's moments alive.
    weights = {
        name.removeprefix(prefix): tensor.clone()
        for name, tensor in snapshot.tensors.items()
        if name.startswith(prefix)
    }
    if not weights and ema:
        raise WeightsError(
            f"{what}: {checkpoint} holds no averaged weights, the run was trained without: leave out @ema"
        )
    if not weights:
        raise WeightsError(f"{what}: {checkpoint} holds no network (no tensor {MODEL}...)")
    config = _config(what, snapshot.extra)
    stage = config.stage if config else _stage_of(weights)
    return Selected(what, state.run_url, checkpoint, checkpoint.step, stage, config, ema, weights)


def _config(what: str, extra: Mapping[str, Any]) -> RunConfig | None:
    flat = extra.get("config")
    if not isinstance(flat, dict) or "stage" not in flat:
        return None
    try:
        return from_dict(flat)
    except ConfigError as error:
        raise WeightsError(
            f"{what}: its configuration is of another raymat ({error.line}): use the raymat that wrote it"
        ) from error


def _stage_of(weights: Mapping[str, Tensor]) -> Stage:
    return "refine" if any(name.startswith("refiner.") for name in weights) else "base"


def _told_from(selected: Selected) -> ModelConfig:
    backbone: Any = backbone_of(selected.weights)
    if backbone is None:
        raise WeightsError(
            f"{selected.what} is no matting network: its {len(selected.weights)} tensors have no backbone that is known"
        )
    kernel = selected.weights.get("refiner.conv1.weight")
    size: Any = 3 if kernel is None else int(kernel.shape[-1])
    return ModelConfig(backbone=backbone, refine_kernel_size=size)


# Which checkpoints come into question.


def _candidates(
    store: Store, request: Request, checkpoint: CheckpointId | None, on_skip: OnSkip
) -> Iterator[Status]:
    """What the request may mean, the best choice first; a WeightsError where there is nothing."""
    statuses = scan(store)
    if not statuses:
        raise _no_run(store, request)
    if request.best:
        yield from _by_validation(store, request, statuses, on_skip)
        return
    found = [
        s
        for s in statuses
        if (checkpoint is None or s.id == checkpoint)
        and (request.step is None or s.id.step == request.step)
    ]
    if not found:
        wanted = str(checkpoint) if checkpoint else f"checkpoint of step {request.step}"
        step = checkpoint.step if checkpoint else request.step
        assert step is not None
        raise WeightsError(f"there is no {wanted} in {store.url}{_nearest(statuses, step)}")
    yield from found


def _no_run(store: Store, request: Request) -> WeightsError:
    if store.try_read(RUN_FILE) is not None:
        return WeightsError(f"{store.url} has no checkpoint yet")
    return WeightsError(
        f"{redact(request.url)} is neither a weights file ({', '.join(WEIGHT_FILES)}) nor a run with a checkpoint"
    )


def _nearest(statuses: list[Status], step: int) -> str:
    """Where else to look, as the end of a message."""
    steps = [s.id.step for s in statuses if s.state == "committed"]
    if not steps:
        return ", nor any other that is committed"
    near = min(steps, key=lambda other: (abs(other - step), other))
    return f": the nearest that is committed is @{near}"


def _by_validation(
    store: Store, request: Request, statuses: list[Status], on_skip: OnSkip
) -> Iterator[Status]:
    """The checkpoints of the run's validations, best first."""
    extra = newest_extra(store, statuses)
    if not extra:
        raise WeightsError(
            f"{store.url} has no checkpoint that verifies, so that nobody knows its best"
        )
    metric, mode = metric_of(extra)
    values = validated(extra, metric)
    if not values:
        raise WeightsError(
            f"{store.url} has no validation with a finite {metric} yet: use its newest checkpoint, {redact(request.url)}"
        )
    there = False
    for step in ranked(values, mode):
        found = [s for s in statuses if s.id.step == step]
        there = there or bool(found)
        if not found:
            told = f"the checkpoint of step {step} ({metric} {values[step]:.6g}) is no longer there"
            on_skip(CheckpointId(step, 0), told)
        yield from found
    if not there:
        best = ranked(values, mode)[0]
        raise WeightsError(
            f"{store.url} has no checkpoint of any step that was validated{_nearest(statuses, best)} (to the best, {best})"
        )
