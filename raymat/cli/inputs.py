"""What commands that look at networks work with: a device, and a run's own dataset."""

from __future__ import annotations

import torch

from raymat.checkpoint.layout import split_run_url
from raymat.config.sections import Device
from raymat.data.run_dataset import source_of
from raymat.data.source import Source
from raymat.errors import ConfigError
from raymat.storage.store import Store
from raymat.train.run.run_file import read_run
from raymat.train.run.weights_reference import Selected


def device_of(name: Device) -> torch.device:
    """The device of this name; auto: cuda where there is one. Raises ConfigError."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfigError("--device cuda: torch finds no CUDA device here, use --device cpu")
    return torch.device("cuda" if there and name == "auto" else "cpu" if name == "auto" else name)


def kept_source(selected: Selected) -> Source | None:
    """The dataset of a run by the listing that lies with it; None where there is no run.json any more.

    Raises:
        DataError: the listing cannot be used. StorageError: storage cannot be read.
    """
    assert selected.config is not None
    assert selected.run_url is not None
    storage, name, _ = split_run_url(selected.run_url)
    store = Store.open(storage, name)
    stored = read_run(store)
    return None if stored is None else source_of(selected.config, store, stored["listing"]).open()
