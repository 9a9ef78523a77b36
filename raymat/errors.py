"""The exceptions that raymat raises.

    RaymatError
    ├── ConfigError (ValueError)      the configuration, a flag or a YAML file cannot be used
    ├── DataError                     the dataset cannot be used: unpaired, empty, unreadable
    ├── WeightsError                  a weights file cannot be read, or nothing in it matches
    ├── StorageError                  the run's storage cannot be read or written
    │   └── CheckpointError           a checkpoint is torn, damaged or foreign
    ├── TrainingError                 training itself cannot go on (non-finite loss that persists)
    ├── ExportError                   an exported network does not do what the network does
    ├── ClusterError                  Ray cannot give what the run needs
    ├── StoppedError                  the run was told to stop, and did
    └── LeaseError                    another driver has the run
        └── LeaseLostError            another driver has the run that this one had

A message says what was expected, what came instead and what to do, in one line; commands print it
without a traceback. Every exception keeps its fields when it is pickled, since it may cross from a
worker to the driver.
"""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """Return an exception's text with every run of white space made one space; its class's name if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text that is not blank; its class's name if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class RaymatError(Exception):
    """Base of every error that raymat raises on purpose."""

    exit_code = 2
    """Of a command that it ends."""

    @property
    def line(self) -> str:
        """The message as one line, for a terminal or a job log."""
        return one_line(self)


class ConfigError(RaymatError, ValueError):
    """A configuration value that cannot be used."""


class DataError(RaymatError):
    """A dataset that cannot be used."""


class WeightsError(RaymatError):
    """Weights that cannot be read or do not match the network."""


class StorageError(RaymatError):
    """Storage that cannot be read or written."""


class CheckpointError(StorageError):
    """A checkpoint that is torn, damaged or not of this run."""


class TrainingError(RaymatError):
    """Training that cannot go on."""


class ExportError(RaymatError):
    """An exported network that does not do what the network does."""

    exit_code = 1


class ClusterError(RaymatError):
    """A Ray cluster that cannot give what the run needs."""


class StoppedError(RaymatError):
    """A run that was told to stop, and did."""

    def __init__(self, message: str, *, exit_code: int = 143) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LeaseError(RaymatError):
    """A run that another driver has."""


class LeaseLostError(LeaseError):
    """A run that another driver has taken, or been given, from this one."""
