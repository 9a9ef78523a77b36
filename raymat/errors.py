"""Exceptions that raymat raises.

    RaymatError
    ├── ConfigError (ValueError)      the configuration, a flag or a YAML file cannot be used
    ├── DataError                     the dataset cannot be used: unpaired, empty, unreadable
    ├── WeightsError                  a weights file cannot be read, or nothing in it matches
    ├── StorageError                  the run's storage cannot be read or written
    │   ├── RunGoneError              the run's folder was removed or unmounted while it was driven
    │   └── CheckpointError           a checkpoint is torn, damaged or foreign
    │       └── NewerFormatError      a newer raymat wrote it
    ├── TrainingError                 training itself cannot go on (non-finite loss that persists)
    ├── ExportError                   an exported network does not do what the network does
    ├── ClusterError                  Ray cannot give what the run needs
    │   └── RayLostError              Ray died under the run
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
    """Exit code of a command that this error ends."""

    @property
    def line(self) -> str:
        """The message as one line, for a terminal or a job log."""
        return one_line(self)


class ConfigError(RaymatError, ValueError):
    """Error in a configuration value."""


class DataError(RaymatError):
    """Error in a dataset: unpaired, empty or unreadable."""


class WeightsError(RaymatError):
    """Error in weights: unreadable, or not of this network."""


class StorageError(RaymatError):
    """Error while reading or writing storage."""


class RunGoneError(StorageError):
    """Loss of a run's folder while the run was driven: nothing is written there until it is back."""


class CheckpointError(StorageError):
    """Error in a checkpoint: torn, damaged or of another run."""


class NewerFormatError(CheckpointError):
    """Refusal of a file in a format newer than this raymat reads: it is neither read, passed over nor deleted."""


class TrainingError(RaymatError):
    """Error that ends training."""


class ExportError(RaymatError):
    """Error in an export: it does not compute what the network computes."""

    exit_code = 1


class ClusterError(RaymatError):
    """Error of a Ray cluster that lacks what the run needs."""


class RayLostError(ClusterError):
    """Loss of the Ray that a run stood on. The process should end soon: Ray's client in it ends it within a minute."""


class StoppedError(RaymatError):
    """End of a run that was told to stop."""

    def __init__(self, message: str, *, exit_code: int = 143) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LeaseError(RaymatError):
    """Refusal of a run that another driver holds."""


class LeaseLostError(LeaseError):
    """Loss of a run to another driver, which took it or was given it."""
