"""The run folder: who may write to it, what it says of itself, where things lie.

::

    RUN/
      config.json            what the run was asked to do, resolved, and on which data
      checkpoints/           see runs.checkpoint
      metrics.jsonl          one record per report
      centroids.npy          at the end: K x D float32, in the space of the input
      model.safetensors      at the very end, so that a run that has it is complete
      lock                   held by the process that writes
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from typing import TYPE_CHECKING, Any, TextIO

from streamkm.config import setting_differences
from streamkm.errors import InputError, Option, OutputExistsError, ResumeError, RunError
from streamkm.files import fsync_directory, write_atomically

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

__all__ = ["RunFolder", "check_run_is_free", "read_config"]

CONFIG, LOCK = "config.json", "lock"


class RunFolder:
    """A run folder that this process alone may write to, from `__enter__` to `__exit__`."""

    def __init__(self, path: Path, record: dict[str, Any], *, resume: bool) -> None:
        """`record` is what config.json holds; an existing one must agree with it."""
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.centroids = path / "centroids.npy"
        self.model = path / "model.safetensors"
        self._record = record
        self._resume = resume
        self._lock: TextIO | None = None
        self._is_new = False

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended and its model is written."""
        return self.model.exists()

    def check(self) -> None:
        """Refuse what `__enter__` would refuse, and write nothing."""
        check_run_is_free(self.path, resume=self._resume)
        if (self.path / CONFIG).exists():
            self._check_record(read_config(self.path))

    def __enter__(self) -> RunFolder:
        check_run_is_free(self.path, resume=self._resume)
        self._is_new = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            if (self.path / CONFIG).exists():
                # Again: it may have appeared before the lock was ours.
                check_run_is_free(self.path, resume=self._resume)
                self._check_record(read_config(self.path))
            else:
                content = json.dumps(self._record, indent=2).encode()
                write_atomically(self.path / CONFIG, content)
                fsync_directory(self.path.parent)
        except OSError as error:
            self._release_lock()
            raise RunError(f"{self.path}: the run folder cannot be written: {error}") from error
        except BaseException:
            self._release_lock()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_new and isinstance(error, InputError):
            # Nothing that could be resumed: the next try may have the same name.
            shutil.rmtree(self.path, ignore_errors=True)
        self._release_lock()

    def _check_record(self, before: dict[str, Any]) -> None:
        # The data first: settings that were left open follow from its shape.
        for key, value in self._record["data"].items():
            if before["data"].get(key) != value:
                raise ResumeError(
                    f"{self.path}: the data changed since the run began "
                    f"({key}: {before['data'].get(key)} -> {value}); restore it (modification "
                    "times count: copy with cp -p or rsync -t), or start anew with another ",
                    Option("run_dir"),
                )
        changed = setting_differences(before["fit"], self._record["fit"])
        if changed:
            raise ResumeError(
                f"{self.path}: a setting that alters the result changed ({'; '.join(changed)}); "
                "resume with the original one, or start anew with another ",
                Option("run_dir"),
            )

    def _take_lock(self) -> None:
        lock = (self.path / LOCK).open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            raise RunError(
                f"{self.path}: {owner} is working on this run; wait for it or stop it"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        lock.flush()
        self._lock = lock

    def _release_lock(self) -> None:
        # The file stays: removing it would let two processes lock two files of one name.
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def check_run_is_free(path: Path, *, resume: bool) -> None:
    """Refuse a run folder that exists, unless it is a run's and is to be resumed."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    out = Option("run_dir")
    if not path.is_dir():
        raise OutputExistsError(f"{path} exists and is no folder; choose another ", out)
    if not resume and not (path / CONFIG).exists():
        raise OutputExistsError(f"{path} exists and is no run; choose another ", out)
    if not resume:
        raise OutputExistsError(
            f"{path} exists; add ",
            Option("resume", value=True),
            " to go on with it, or choose another ",
            out,
        )
    # A run that was killed in its very first moment has only a lock.
    if any(entry.name not in (LOCK, f".{CONFIG}.tmp") for entry in path.iterdir()):
        read_config(path)


def read_config(path: Path) -> dict[str, Any]:
    """config.json of the run folder `path`."""
    try:
        record = json.loads((path / CONFIG).read_bytes())
        record["source"], record["fit"]["k"], record["data"]["shape"], record["data"]["dtype"]
    except OSError:
        raise RunError(f"{path} is no run: it has no {CONFIG}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path / CONFIG} is damaged: {error!r}") from None
    return record  # type: ignore[no-any-return]  # JSON
