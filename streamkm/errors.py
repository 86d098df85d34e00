"""Every error that streamkm raises on purpose.

    StreamkmError                     exit status 1
    ├── InputError (ValueError)       exit status 2: wrong arguments or unusable input
    │   ├── ConfigError               a setting is out of range, or two contradict each other
    │   │   └── ParameterError        the same of an estimator's parameter (also a TypeError)
    │   ├── SourceError               the location holds no array that can be clustered
    │   │   ├── NoRowsError           the array there is empty; among shards it is passed over
    │   │   └── ReadError             rows cannot be read: truncated, corrupt, missing
    │   ├── NonFiniteError            NaN or infinity in the data, and nan="error"
    │   ├── OutputExistsError         a run folder or an output would be overwritten
    │   ├── RunError                  a run folder is locked, damaged or no run
    │   │   └── ResumeError           the data or a setting changed since the checkpoint
    │   ├── MemoryBudgetError         the host memory does not hold one window of rows
    │   └── DeviceError               the chosen device or kernel is not available
    ├── StorageError (OSError)        exit status 1: the disk refused a write
    ├── AllocationError (MemoryError) exit status 1: the machine or the GPU refused memory
    ├── DeviceLostError               exit status 1: the GPU failed while it worked
    ├── ProcessLostError              exit status 1: another process died, hangs or lost its link
    ├── ElsewhereError                that of another process, which has told why it failed
    └── Interrupted (SystemExit)      exit status 75: stopped by a signal, a checkpoint is saved

A message is one line that names the rule, the value received and the remedy, because a user of
the command line sees nothing else. A setting in a message has its name in Python when the error is
raised there, and is a flag on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "AllocationError",
    "ConfigError",
    "DeviceError",
    "DeviceLostError",
    "ElsewhereError",
    "InputError",
    "Interrupted",
    "MemoryBudgetError",
    "NoRowsError",
    "NonFiniteError",
    "Option",
    "OutputExistsError",
    "ParameterError",
    "ProcessLostError",
    "ReadError",
    "ResumeError",
    "RunError",
    "SourceError",
    "StorageError",
    "StreamkmError",
]


#: Flags whose name differs from that in Python; every other flag is the name with dashes.
_FLAGS = {
    "run_dir": "out",
    "n_clusters": "k",
    "n_features": "features",
    "columns": "column",
    "row_range": "rows",
    "from_run": "from",
    "sample_weight": "weights",
}


@dataclass(frozen=True, slots=True)
class Option:
    """A setting in a message, with or without a value; as a string it has its name in Python."""

    name: str
    """Name of the parameter or keyword in Python."""
    value: object = None
    """The value that the message names; None if it names none."""

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value!r}"

    @property
    def flag(self) -> str:
        """Its name on the command line, with the value."""
        name = _FLAGS.get(self.name, self.name).replace("_", "-")
        if isinstance(self.value, bool):
            return f"--{name}" if self.value else f"--no-{name}"
        return f"--{name}" if self.value is None else f"--{name} {self.value}"


class StreamkmError(Exception):
    """Base class of the errors of this package.

    Its arguments are the parts of the message, in order: an `Option` where the message names a
    setting, else text.

    Attributes
    ----------
    exit_status : int
        What the command line returns: 1, unless a subclass says otherwise.
    """

    exit_status = 1

    def __str__(self) -> str:
        return "".join(map(str, self.args))

    @property
    def for_command_line(self) -> str:
        """The message with flags in place of parameters."""
        parts = (part.flag if isinstance(part, Option) else str(part) for part in self.args)
        return "".join(parts)


class InputError(StreamkmError, ValueError):
    """Wrong arguments or unusable input."""

    exit_status = 2


class ConfigError(InputError):
    """A setting is out of range, or two settings contradict each other."""


class ParameterError(ConfigError, TypeError):
    """A parameter of an estimator has a wrong type or value.

    It is a ValueError and a TypeError, as scikit-learn's own error for this case is.
    """


class SourceError(InputError):
    """A location holds no array that can be clustered."""


class NoRowsError(SourceError):
    """The array at a location has no rows. Among other shards such an array is passed over."""


class ReadError(SourceError):
    """Rows of a source cannot be read: the file is truncated, corrupt or gone."""


class NonFiniteError(InputError):
    """The data holds NaN or infinity, and the run was not told to drop such rows."""


class OutputExistsError(InputError):
    """A run folder or an output exists and would be overwritten."""


class RunError(InputError):
    """A run folder cannot be used: it is locked, damaged or not a run."""


class ResumeError(RunError):
    """The data, or a setting that decides the result, changed since the checkpoint."""


class MemoryBudgetError(InputError):
    """``max_host_memory`` is too small for one window of rows."""

    least_bytes = 0
    """Bytes that would be enough; 0 where the job cannot have more."""


class DeviceError(InputError):
    """The chosen device or kernel is not available."""


class StorageError(StreamkmError, OSError):
    """The disk refused a write that a command needs to continue or to end.

    Earlier checkpoints and results are intact: once there is space, ``--resume`` continues.
    """


class AllocationError(StreamkmError, MemoryError):
    """The machine or the GPU refused memory that a command needs.

    Earlier checkpoints and results are intact: once there is memory, ``--resume`` continues.
    """


class DeviceLostError(StreamkmError):
    """The GPU failed while it worked: it is gone, or says that an earlier kernel went wrong.

    Earlier checkpoints and results are intact: ``--resume`` continues, in a new process.
    """


class ProcessLostError(StreamkmError):
    """Another process of the run died, hangs or cannot be reached; the message names it.

    Earlier checkpoints are intact: ``--resume`` continues, on any number of processes.
    """


class ElsewhereError(StreamkmError):
    """Another process of the run failed and has told why, so this one has to end as well.

    The command line ends in silence with the status of the other process: an error is told once.

    Parameters
    ----------
    *parts : str
        The message, for Python: it names the other process and repeats what it said.
    exit_status : int
        The status of the process that failed.
    """

    def __init__(self, *parts: object, exit_status: int = 1) -> None:
        super().__init__(*parts)
        self.exit_status = exit_status


class Interrupted(StreamkmError, SystemExit):
    """A signal stopped the run; the message names the checkpoint that it can resume from.

    It is a SystemExit: where nobody catches it the process ends with status 75, by which a batch
    system knows that the job goes on if it is started again.
    """

    exit_status = 75
    code = exit_status
