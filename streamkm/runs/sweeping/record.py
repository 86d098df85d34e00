"""The folder of a sweep, and its record.

::

    DIR/
      sweep.json        settings, data, runs; at the end figures and recommendation
      k-0016/           a run folder for each K (see runs.storage.run_folder)
      k-0016-seed-1/    and for each further seed
      k-0016-zscore/    of several scales or metrics, for each of them
      lock              held by the process that sweeps
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamkm.errors import InputError, Option, OutputExistsError, ResumeError, RunError
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
from streamkm.runs.storage.run_folder import SWEEP, setting_differences
from streamkm.sealed import DAMAGE, in_words, seal, unseal

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

__all__ = ["SWEEP", "SweepFolder", "check_sweep_is_free", "read_sweep"]

LOCK = "lock"


def read_sweep(path: Path) -> dict[str, Any]:
    """The content of sweep.json in the folder `path`; `RunError` if it cannot be used."""
    try:
        record = unseal(read_bytes(path / SWEEP))
        record["fit"], record["data"]["shape"], record["first_seed"]
        [(run["name"], run["k"], run["seed"]) for run in record["runs"]]
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{path} is no sweep: it has no {SWEEP}; name a folder that a sweep has written"
        ) from None
    except DAMAGE as error:
        raise RunError(
            f"{path / SWEEP} is damaged: {in_words(error)}; restore it from a copy, or sweep anew "
            "into another ",
            Option("run_dir"),
        ) from None
    return record


def check_sweep_is_free(path: Path, *, resume: bool) -> dict[str, Any] | None:
    """The record of the sweep to `resume` in `path`; None if one can begin there.

    Raises
    ------
    InputError
        If `path` is in use, or holds something else.
    """
    out = Option("run_dir")
    if is_folder(path) is False:
        raise OutputExistsError(f"{path} exists and is no folder; choose another ", out)
    names = names_in(path)
    if SWEEP in names:
        if resume:
            return read_sweep(path)
        raise OutputExistsError(
            f"{path} exists; add ", Option("resume", value=True),
            " to go on with it, or choose another ", out,
        )  # fmt: skip
    if set(names) - {LOCK, f".{SWEEP}.tmp"}:
        raise OutputExistsError(f"{path} exists and is no sweep; choose another ", out)
    return None


class SweepFolder:
    """The folder of a sweep that this process alone may write to, within its ``with`` block."""

    def __init__(self, path: Path, record: dict[str, Any], before: dict[str, Any] | None) -> None:
        """`before` is the record of the sweep that goes on; `record` must agree with it."""
        self.path, self.record, self._before = path, record, before
        self._lock = FileLock(path / LOCK, path, "working on this sweep")
        if before is not None:
            self._check(before)

    def _check(self, before: dict[str, Any]) -> None:
        for key, value in self.record["data"].items():
            if before["data"].get(key) != value:
                raise ResumeError(
                    f"{self.path}: holds a sweep of other data: {before['source']} "
                    f"({key}: {before['data'].get(key)} -> {value}); give that, or choose "
                    "another ",
                    Option("run_dir"),
                )
        if changed := setting_differences(before["fit"], self.record["fit"]):
            raise ResumeError(
                f"{self.path}: holds a sweep with other settings ({'; '.join(changed)}); resume "
                "with the original ones, or choose another ",
                Option("run_dir"),
            )

    def __enter__(self) -> SweepFolder:
        make_directory(self.path)
        self._lock.take()
        try:
            if self._before is None or self._before["runs"] != self.record["runs"]:
                self.write()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Runs that cannot begin leave no folder, and such a sweep leaves none either.
        left = set(names_in(self.path)) - {SWEEP, LOCK}
        if isinstance(error, InputError) and self._before is None and not left:
            discard(self.path / SWEEP)
            self._lock.release(remove=True)
            remove_empty(self.path)
        self._lock.release()

    def write(self, **more: Any) -> None:
        """Write sweep.json, with `more` of it."""
        self.record |= more
        write_atomically(self.path / SWEEP, seal(self.record))
