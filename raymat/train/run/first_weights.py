"""The weights that a run begins with (`--init`): settled once, so that a start after a kill takes no others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from raymat.config.fixed_options import refuse_changes
from raymat.config.run import RunConfig
from raymat.errors import ConfigError, StorageError, WeightsError
from raymat.storage.fields import parse_fields
from raymat.storage.store import Store
from raymat.storage.urls import redact
from raymat.train.run.extension import RunChange
from raymat.train.run.weights_reference import pin

if TYPE_CHECKING:  # at run time late: a driver without --init needs no torch
    from torch import Tensor

    from raymat.train.run.selected_weights import Selected


@dataclass(frozen=True)
class FirstWeights:
    """Weights that a run begins with."""

    url: str
    """Where they lie; of a run this very checkpoint."""
    digest: str
    """Of all names, types, shapes and bits, as `digest_of` returns it."""

    def require(self, weights: Mapping[str, Tensor]) -> None:
        """Raise WeightsError if these are others."""
        found = digest_of(weights)
        if found != self.digest:
            raise WeightsError(
                f"{redact(self.url)} holds other weights than when the run was begun (SHA-256 {found[:12]}, was "
                f"{self.digest[:12]}): put the old ones back, or begin a run of another --name"
            )


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hex, of weights: the same in any kind of file."""
    import torch

    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def first_weights_of(run: Mapping[str, Any]) -> FirstWeights | None:
    """Return the weights that a run with this `run.json` begins with; None if it says nothing of them."""
    stored = run.get("init")
    return None if stored is None else parse_fields(FirstWeights, stored)


def has_moved(begun: RunConfig, asked: RunConfig, run: Mapping[str, Any]) -> bool:
    """Whether `--init` is another than the run was begun with, and it can be told whether the weights are the same."""
    was, now = begun.model.init, asked.model.init
    return None not in (was, now) and was != now and run.get("init") is not None


def settle_first_weights(
    config: RunConfig, begun: RunConfig | None, store: Store, run: dict[str, Any], untrained: bool
) -> tuple[dict[str, Any], list[RunChange]]:
    """Return the `run.json` with the weights that the run begins with, and what to say.

    They are read if training begins with them, or if `--init` has moved.

    Raises:
        ConfigError: what has moved is not the same. WeightsError: there are none, or others. StorageError.
    """
    init, known = config.model.init, first_weights_of(run)
    moved = begun is not None and has_moved(begun, config, run)
    if init is None or not (untrained or moved):
        return run, []
    from raymat.train.run.selected_weights import match_init, read_weights

    if begun is not None and moved and known is not None:
        found = _read_moved(begun, config, store, known)
        changes = [
            RunChange(f"--init has moved: it is now {redact(init)}, and the weights are the same")
        ]
    else:
        found, changes = read_weights(known.url if known else init), []
        if known:
            known.require(found.weights)
    match_init(config, found)
    place = init if moved or known is None else known.url
    weights = FirstWeights(_place(place, found), digest_of(found.weights))
    stored = run["config"] | {"init": init}
    return run | {"config": stored, "init": asdict(weights)}, changes


def _read_moved(begun: RunConfig, asked: RunConfig, store: Store, known: FirstWeights) -> Selected:
    from raymat.train.run.selected_weights import read_weights

    try:
        found = read_weights(asked.model.init or "")
        known.require(found.weights)
    except (WeightsError, StorageError) as error:
        try:
            refuse_changes(begun, asked, store.url)
        except ConfigError as refusal:
            raise ConfigError(f"{refusal.line}; {error.line}") from error
        raise
    return found


def _place(what: str, found: Selected) -> str:
    return what if found.checkpoint is None else pin(what, found.checkpoint)
