"""Weights as a reference (`raymat.train.run.weights_reference`) asks for them, with what is known of their origin.

Only what verifies is used: a damaged checkpoint is passed over where the reference leaves a choice, and an error where it
does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from raymat.checkpoint.catalog import require_committed
from raymat.checkpoint.layout import split_run_url
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.reader import read_checkpoint
from raymat.checkpoint.snapshot import Snapshot
from raymat.checkpoint.state_dict import EMA, MODEL
from raymat.config.run import RunConfig, from_dict
from raymat.config.sections import ModelConfig, Stage
from raymat.errors import CheckpointError, ConfigError, NewerFormatError, WeightsError
from raymat.model.matting import MattingBase, build, construct
from raymat.model.pretrained import InitReport, backbone_of, load_matching, match
from raymat.model.weights_content import tensors_in
from raymat.model.weights_reader import read_file
from raymat.storage.store import Store
from raymat.storage.urls import redact
from raymat.train.run.checkpoint_choice import OnSkip, candidates
from raymat.train.run.run_url import is_file
from raymat.train.run.weights_reference import WEIGHT_FILES, parse_reference


@dataclass(frozen=True)
class Selected:
    """Weights, and what is known of their origin."""

    what: str
    """The reference that asked for them, without credentials."""
    run_url: str | None
    """None for a file, like `checkpoint`, `step` and `config`."""
    checkpoint: CheckpointId | None
    step: int | None
    stage: Stage
    config: RunConfig | None
    """The run's, as it was when the checkpoint was written."""
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
    """Read the weights that the reference `what` means.

    For a moment, a whole checkpoint and its network once more are in memory.

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
    """Read the whole checkpoint that the reference `what`, not one to a file, means. Raises what `read_weights` does."""
    request = parse_reference(what)
    storage, name, checkpoint = split_run_url(request.url)
    store = Store.open(storage, name)
    if is_file(store):
        raise WeightsError(
            f"{store.url} is a file, but no weights file ({', '.join(WEIGHT_FILES)}): give such a file, or a run's URL, "
            "--storage and --name joined by a slash"
        )
    reasons: list[str] = []

    def skipped(passed_over: CheckpointId, reason: str) -> None:
        reasons.append(reason)
        on_skip(passed_over, reason)

    for status in candidates(store, request, checkpoint, skipped):
        try:
            require_committed(store, status)
            snapshot = read_checkpoint(store, status.id, files=status.files)
        except NewerFormatError:
            raise
        except CheckpointError as error:
            skipped(status.id, error.line)
            continue
        return State(redact(what), store.url, status.id, snapshot)
    raise WeightsError(f"no checkpoint that verifies for {redact(what)}: {reasons[0]}")


def build_network(selected: Selected) -> MattingBase:
    """Build the network with these weights, on the CPU, in eval mode, float32.

    For a file, names of tensors tell backbone and stage; all else is the default.

    Raises:
        WeightsError: the weights are not those of a whole network.
    """
    network = build(selected.stage, _model_of(selected), 0)
    _require_whole(selected, load_matching(network, selected.weights, _source(selected)))
    return network.eval()


def match_init(config: RunConfig, found: Selected | None = None) -> InitReport:
    """Compare the weights of `--init`, read now unless they were `found`, with the run's network.

    Raises:
        WeightsError: they cannot be used. StorageError: storage cannot be read.
    """
    assert config.model.init is not None
    with torch.device("meta"):
        own = construct(config.stage, config.model).state_dict()
    found = found or read_weights(config.model.init)
    return match(own, found.weights, redact(config.model.init))


def whole_network(selected: Selected) -> Selected:
    """Return the selected weights without tensors that are none of the network's.

    Raises:
        WeightsError: as `build_network`.
    """
    with torch.device("meta"):
        own = construct(selected.stage, _model_of(selected)).state_dict()
    report = match(own, selected.weights, _source(selected))
    _require_whole(selected, report)
    return replace(selected, weights={name: selected.weights[name] for name in report.matched})


def named_source(what: str, checkpoint: CheckpointId | None) -> str:
    """Return what weights were asked for as, and the checkpoint that this meant if it does not say so."""
    return what if checkpoint is None or str(checkpoint) in what else f"{what} ({checkpoint})"


def _source(selected: Selected) -> str:
    return named_source(selected.what, selected.checkpoint)


def _require_whole(selected: Selected, report: InitReport) -> None:
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


def _from_file(url: str) -> Selected:
    weights = tensors_in(read_file(url), redact(url))
    return Selected(redact(url), None, None, None, _stage_of(weights), None, False, weights)


def _selected(state: State, ema: bool) -> Selected:
    what, checkpoint, snapshot = state.what, state.checkpoint, state.snapshot
    prefix = EMA if ema else MODEL
    # Copies: views of whole shards would keep the optimiser's moments alive.
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


def _model_of(selected: Selected) -> ModelConfig:
    if selected.config is not None:
        return selected.config.model
    backbone: Any = backbone_of(selected.weights)
    if backbone is None:
        raise WeightsError(
            f"{selected.what} is no matting network: its {len(selected.weights)} tensors have no backbone that is known"
        )
    kernel = selected.weights.get("refiner.conv1.weight")
    size: Any = 3 if kernel is None else int(kernel.shape[-1])
    return ModelConfig(backbone=backbone, refine_kernel_size=size)
