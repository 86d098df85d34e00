"""Every error that streamkm raises on purpose.

    StreamkmError                     exit status 1
    ├── InputError  (ValueError)      exit status 2: wrong arguments or unusable input
    │   ├── ConfigError               a setting is out of range, or two contradict each other
    │   │   └── ParameterError        an estimator's; a TypeError too  (TypeError)
    │   ├── SourceError               the location is no array that can be clustered
    │   │   └── ReadError             rows of it cannot be read: truncated, corrupt, missing
    │   ├── NonFiniteError            NaN or infinity in the data, and nan="error"
    │   ├── OutputExistsError         a run folder or an output would be overwritten
    │   ├── RunError                  a run folder cannot be used: locked, damaged, no run
    │   │   └── ResumeError           the data or a setting changed since the checkpoint
    │   ├── MemoryBudgetError         the host budget does not hold one window of rows
    │   └── DeviceError               the chosen device or kernel is not there
    ├── StorageError  (OSError)       exit status 1: the disk refused a write that had to be
    ├── AllocationError (MemoryError) exit status 1: the machine or the GPU refused memory
    └── Interrupted                   exit status 75: stopped by a signal, a checkpoint is saved

A message names the rule, the value received and the remedy, in one line: it is
all that a user of the command line sees. Where it names a setting, that part of it is
an `Option`: a parameter to those who wrote Python, a flag to those who typed a command.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "AllocationError",
    "ConfigError",
    "DeviceError",
    "InputError",
    "Interrupted",
    "MemoryBudgetError",
    "NonFiniteError",
    "Option",
    "OutputExistsError",
    "ParameterError",
    "ReadError",
    "ResumeError",
    "RunError",
    "SourceError",
    "StorageError",
    "StreamkmError",
]


#: Flags that are called otherwise than in Python; every other is the name with dashes.
_FLAGS = {"run_dir": "out", "n_features": "features", "columns": "column"}


@dataclass(frozen=True, slots=True)
class Option:
    """A setting in a message, with or without a value; as text it has its name in Python."""

    name: str
    """Of the parameter or the keyword in Python."""
    value: object = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value!r}"

    @property
    def flag(self) -> str:
        """What the command line calls it."""
        name = _FLAGS.get(self.name, self.name).replace("_", "-")
        if isinstance(self.value, bool):
            return f"--{name}" if self.value else f"--no-{name}"
        return f"--{name}" if self.value is None else f"--{name} {self.value}"


class StreamkmError(Exception):
    """Base of all errors of this package; `exit_status` is what the command line returns.

    Its arguments are the parts of the message, in order: texts, and an `Option` wherever
    a setting is named.
    """

    exit_status = 1

    def __str__(self) -> str:
        return "".join(map(str, self.args))

    @property
    def for_command_line(self) -> str:
        """The message with flags in the place of parameters."""
        parts = (part.flag if isinstance(part, Option) else str(part) for part in self.args)
        return "".join(parts)


class InputError(StreamkmError, ValueError):
    """Wrong arguments or unusable input."""

    exit_status = 2


class ConfigError(InputError):
    """A setting is out of range, or two settings contradict each other."""


class ParameterError(ConfigError, TypeError):
    """A parameter of an estimator has a wrong type or value.

    It is a ValueError and a TypeError, as what scikit-learn raises in this case.
    """


class SourceError(InputError):
    """A location holds no array that can be clustered."""


class ReadError(SourceError):
    """Rows of a source cannot be read: the file is truncated, corrupt or gone."""


class NonFiniteError(InputError):
    """The data holds NaN or infinity, and the run was not told to drop such rows."""


class OutputExistsError(InputError):
    """A run folder or an output exists and would be overwritten."""


class RunError(InputError):
    """A run folder cannot be used: it is locked, damaged or no run at all."""


class ResumeError(RunError):
    """The data or a setting that alters the result changed since the checkpoint."""


class MemoryBudgetError(InputError):
    """The host memory budget is too small for one window of rows."""


class DeviceError(InputError):
    """The device or the kernel that was asked for is not available."""


class StorageError(StreamkmError, OSError):
    """The disk refused a write without which a command cannot go on or end.

    What was saved before is intact: once there is space, ``--resume`` goes on from it.
    """


class AllocationError(StreamkmError, MemoryError):
    """The machine, or the GPU, refused memory that a command cannot go on without.

    What was saved before is intact: once there is memory, ``--resume`` goes on from it.
    """


class Interrupted(StreamkmError):
    """A signal stopped the run after a checkpoint was saved; resuming goes on from there."""

    exit_status = 75
