"""The run folder: which process may write to it, its settings, and where its files lie.

::

    RUN/
      config.json            the resolved settings of the run, and its data
      checkpoints/           see runs.storage.checkpoint
      metrics.jsonl          one record per report
      centroids-level-1.npy  at the end, of a tree: its branches, as centroids.npy
      centroids.npy          at the end: K x D float32, in the space of the input
      model.safetensors      at the very end: a run that has it is complete
      outputs/               see runs.storage.output_records
      lock                   held by the process that writes
"""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamkm.config import FitConfig
from streamkm.errors import (
    InputError,
    NonFiniteError,
    Option,
    OutputExistsError,
    ResumeError,
    RunError,
    StorageError,
)
from streamkm.files import (
    FileLock,
    discard,
    is_folder,
    make_directory,
    names_in,
    read_bytes,
    remove_empty,
    write_atomically,
)
from streamkm.sealed import DAMAGE, in_words, seal, unseal

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "CONFIG",
    "MODEL",
    "SWEEP",
    "RunFolder",
    "check_run_is_free",
    "choice_of",
    "feature_names",
    "looks_like_a_run",
    "read_config",
    "reading_of",
    "run_owner",
    "setting_differences",
]

CONFIG, LOCK, CHECKPOINTS, MODEL = "config.json", "lock", "checkpoints", "model.safetensors"
#: The record of a sweep, in the folder that holds its runs.
SWEEP = "sweep.json"

#: Errors of a place that cannot be written at all: the remedy is another place.
_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG}

#: Attempts to make and lock the folder: one fails only if another process removes it meanwhile.
_ATTEMPTS = 100


class RunFolder:
    """A run folder that this process alone may write to, from `__enter__` to `__exit__`."""

    def __init__(self, path: Path, record: dict[str, Any], *, resume: bool) -> None:
        """`record` is the content for config.json; an existing file must agree with it."""
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        self.metrics = path / "metrics.jsonl"
        self.centroids = path / "centroids.npy"
        self.branches = path / "centroids-level-1.npy"
        self.model = path / MODEL
        self._record = record
        self._resume = resume
        self._lock = FileLock(path / LOCK, path, "working on this run")
        self._is_new = False

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended and its model is written."""
        return self.model.exists()

    def check(self) -> None:
        """Raise what `__enter__` would raise, and write nothing."""
        check_run_is_free(self.path, resume=self._resume)
        if (owner := self._lock.owner()) is not None:
            raise self._lock.refusal(owner)
        if (before := _config_in(self.path)) is not None:
            self._check_record(before)

    def __enter__(self) -> RunFolder:
        check_run_is_free(self.path, resume=self._resume)
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self._claim()
            self._begin()
        except BaseException as error:
            self._leave(nothing_saved=True)
            for folder in missing:
                remove_empty(folder)
            if isinstance(error, OSError):
                raise self._cannot_begin(error) from error
            raise
        return self

    def _cannot_begin(self, error: OSError) -> RunError | StorageError:
        what = f"{self.path}: the run folder cannot be written ({error}); "
        if error.errno in _REFUSALS:
            return RunError(what, "choose another ", Option("run_dir"))
        mend = "free space, or mend what keeps the disk from being written, then repeat"
        return StorageError(f"{what}{mend}; or choose another ", Option("run_dir"))

    def _claim(self) -> None:
        """Make the folder and take its lock."""
        for is_last in [False] * _ATTEMPTS + [True]:
            was_missing = not self.path.exists()
            try:
                make_directory(self.path)
                self._lock.take()
            except (FileNotFoundError, FileExistsError):
                if is_last:
                    raise
                # It was there, and then not: a run that saved nothing has removed it.
                continue
            # It is not new if another process came first and left its work there.
            self._is_new = was_missing and names_in(self.path) == [LOCK]
            return

    def _begin(self) -> None:
        """Write config.json, or compare the existing one with `record`."""
        if (self.path / CONFIG).exists():
            # Again: it may have appeared before this process held the lock.
            check_run_is_free(self.path, resume=self._resume)
            self._check_record(read_config(self.path))
        else:
            write_atomically(self.path / CONFIG, seal(self._record))
        make_directory(self.checkpoints)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Rows with NaN will be no better next time, but data that could not be read may be: after
        # other input errors checkpoints are kept.
        is_useless = isinstance(error, NonFiniteError)
        is_useless |= isinstance(error, InputError) and not self.has_checkpoints()
        self._leave(nothing_saved=is_useless)

    def _leave(self, *, nothing_saved: bool) -> None:
        """Release the lock; delete the folder if this process made it and `nothing_saved`."""
        if nothing_saved and self._is_new and self._lock.is_held:
            # The lock goes last: after it another process may begin. Settings go just before it:
            # to one that looks meanwhile the folder is a run all the time.
            with suppress(OSError):
                others = (name for name in names_in(self.path) if name not in (LOCK, CONFIG))
                discard(*(self.path / name for name in (*others, CONFIG)))
                self._lock.release(remove=True)
                remove_empty(self.path)
        # Otherwise the lock file stays: it names the process that was here last.
        self._lock.release()

    def has_checkpoints(self) -> bool:
        """Whether the run has a checkpoint, intact or not."""
        try:
            return bool(names_in(self.checkpoints))
        except OSError:
            return True  # Unknown: nothing may be deleted.

    def _check_record(self, before: dict[str, Any]) -> None:
        # The data first: settings that were not given follow from its shape.
        for key, value in self._record["data"].items():
            if before["data"].get(key) != value:
                raise self._other_data(before, key)
        changed = setting_differences(before["fit"], self._record["fit"])
        if changed:
            raise ResumeError(
                f"{self.path}: a setting that alters the result changed ({'; '.join(changed)}); "
                "resume with the original one, or start anew with another ",
                Option("run_dir"),
            )

    def _other_data(self, before: dict[str, Any], key: str) -> ResumeError:
        """The error for data that differs in `key` from what the run began with."""
        now = self._record
        again = " (modification times count: copy with cp -p or rsync -t), or start anew with "
        again += "another "
        places = {Path(str(record["source"])).absolute() for record in (before, now)}
        if len(places) > 1 and key != "weights":
            return ResumeError(
                f"{self.path}: another source was given: the run began with {_described(before)}, "
                f"this is {_described(now)}; give the former or an exact copy of it{again}",
                Option("run_dir"),
            )
        if key == "chosen":
            was, found = (record["data"].get(key) or "all rows" for record in (before, now))
            return ResumeError(
                f"{self.path}: the run began with {was}, now {found} were chosen; choose the "
                "former, or start anew with another ",
                Option("run_dir"),
            )
        what = "rows of a chunk or block" if key == "block_rows" else key
        return ResumeError(
            f"{self.path}: the data changed since the run began "
            f"({what}: {before['data'].get(key)} -> {now['data'][key]}); restore it{again}",
            Option("run_dir"),
        )


def _described(record: dict[str, Any]) -> str:
    """The source of a run in words: its name, shape and dtype."""
    rows, features = record["data"]["shape"]
    return f"{record['source']} ({rows:,} x {features:,}, {record['data']['dtype']})"


def check_run_is_free(path: Path, *, resume: bool) -> None:
    """Refuse a `path` that exists, unless it is empty or holds a run to `resume`.

    One that another process removes meanwhile is free, whichever look finds it gone.
    """
    out = Option("run_dir")
    is_one = is_folder(path)
    if is_one is False:
        raise OutputExistsError(f"{path} exists and is no folder; choose another ", out)
    names = names_in(path) if is_one else []
    if not resume and names:
        if CONFIG not in names:
            raise OutputExistsError(f"{path} exists and is no run; choose another ", out)
        raise OutputExistsError(
            f"{path} exists; add ",
            Option("resume", value=True),
            " to go on with it, or choose another ",
            out,
        )
    # A run that was killed in its first moment has only a lock.
    is_begun = bool(set(names) - {LOCK, f".{CONFIG}.tmp"})
    if is_begun and _config_in(path) is None and CONFIG not in names:
        raise _no_run(path)


def read_config(path: Path) -> dict[str, Any]:
    """The content of config.json in the run folder `path`; `RunError` if it cannot be used."""
    record = _config_in(path)
    if record is None:
        raise _no_run(path)
    return record


def _no_run(path: Path) -> RunError:
    """The error for a `path` without config.json."""
    if looks_like_a_run(path):
        return RunError(
            f"{path} looks like a run folder that has lost its {CONFIG}; restore it from a "
            "copy, or start anew with another ",
            Option("run_dir"),
        )
    if (path / SWEEP).is_file():
        names = (each for each in names_in(path) if each.startswith("k-"))
        runs = sorted(path / each / CONFIG for each in names if (path / each / CONFIG).exists())
        instead = f"one of its runs, such as {runs[-1].parent}" if runs else "a run"
        return RunError(f"{path} is a sweep, no run: name {instead}")
    if not path.exists():
        return RunError(f"{path} does not exist; name a folder that a fit has written")
    return RunError(f"{path} is no run: it has no {CONFIG}; name a folder that a fit has written")


def _config_in(path: Path) -> dict[str, Any] | None:
    """The content of config.json in the folder `path`, or None; `RunError` if it is damaged."""
    try:
        record = unseal(read_bytes(path / CONFIG))
        record["source"], record["fit"]["k"], record["data"]["dtype"]
        rows, features = record["data"]["shape"]
        whole = isinstance(record["fit"], dict) and isinstance(record["data"], dict)
        if not whole or type(rows) is not int or type(features) is not int:
            raise TypeError("its settings and shape are of other types")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunError(
            f"{path / CONFIG} cannot be read ({error.strerror}); see to its permissions and its "
            "disk, then repeat"
        ) from error
    except DAMAGE as error:
        raise RunError(
            f"{path / CONFIG} is damaged: {in_words(error)}; restore it from a copy, or start "
            "anew with another ",
            Option("run_dir"),
        ) from None
    return record


def reading_of(record: dict[str, Any]) -> dict[str, Any]:
    """How a run, by its record, read stored values: options of a source, and ``nan``."""
    data, marked = record["data"], record.get("marked", [])
    return {
        "nodata": [value for value in data.get("nodata") or () if value not in marked] or None,
        "marked": marked,
        "apply_scale": bool(data.get("scaled")),
        "nan": record["fit"].get("nan"),
    }


def choice_of(record: dict[str, Any]) -> dict[str, Any]:
    """Options of a source that choose the rows of a run, by its record."""
    return dict(record.get("choice", {}))


def feature_names(path: Path) -> tuple[str, ...]:
    """Names of the features of the run in the folder `path`; empty if it has none, or is no run."""
    record = _config_in(path) or {}
    return tuple(map(str, record.get("feature_names", ())))


def looks_like_a_run(path: Path) -> bool:
    """Whether the folder `path` holds files that only a run writes, with or without config.json."""
    has_state = (path / MODEL).is_file() or (path / CHECKPOINTS).is_dir()
    return has_state and (path / LOCK).is_file()


def run_owner(path: Path) -> str | None:
    """The process that works on the run in `path`, or None."""
    return FileLock(path / LOCK, path, "").owner()


def setting_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """``name: before -> now`` for each setting that differs between two `FitConfig.as_dict`."""
    # A setting that is newer than the run had its default, but of the rates `mean` came first, and
    # no run ended by its gain.
    defaults = {field.name: field.default for field in fields(FitConfig)}
    first = {"rate": "mean", "min_gain": 0.0}
    before = {name: value for name, value in first.items() if now.get(name) is not None} | before
    values = [
        (name, before.get(name, default), now.get(name, default))
        for name, default in defaults.items()
    ]
    return [f"{name.replace('_', '-')}: {old} -> {new}" for name, old, new in values if old != new]
