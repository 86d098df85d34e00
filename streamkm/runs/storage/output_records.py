"""Records the finished outputs of predict in the folder of the run that made them.

An ``.npy`` file has no room to say which model its labels are of, and a file beside every
output would litter the place where people keep their data. The run folder belongs to streamkm.
A record counts only for the values that it was written for: it holds their checksum.
"""

from __future__ import annotations

import os
from ast import literal_eval
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import Option, OutputExistsError
from streamkm.files import make_directory, read_bytes, write_atomically
from streamkm.sealed import DAMAGE, seal, unseal
from streamkm.sinks import check_target, stored_crc32

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from streamkm.sinks import Sink

__all__ = ["are_finished", "check_free", "may_be_finished", "record_of", "record_outputs"]

OUTPUTS = "outputs"


def record_outputs(run_dir: Path, job: dict[str, str], sinks: Iterable[Sink]) -> OSError | None:
    """Record in `run_dir` the complete outputs of `sinks`; the error if the disk refuses.

    Call it before the outputs get their names, so that no crash leaves a finished output
    without a record.
    """
    try:
        make_directory(run_dir / OUTPUTS)
        for sink in sinks:
            record = _record(sink.path, sink.n_rows, sink.dtype, sink.crc32, job)
            write_atomically(_place(run_dir, sink.path), seal(record))
    except OSError as error:
        return error
    return None


def may_be_finished(run_dir: Path, targets: list[Path]) -> bool:
    """Whether every target exists and has a record in `run_dir`; reads neither."""
    return all(path.exists() and _place(run_dir, path).exists() for path in targets)


def are_finished(
    run_dir: Path, job: dict[str, str], outputs: list[tuple[Path, np.dtype[Any]]], n_rows: int
) -> bool:
    """Whether every output is whole, has `n_rows` and is recorded in `run_dir` for this `job`."""
    if not may_be_finished(run_dir, [path for path, _ in outputs]):
        return False
    for path, dtype in outputs:
        try:
            found = unseal(read_bytes(_place(run_dir, path)))
        except (OSError, *DAMAGE):
            return False
        crc32 = found.get("crc32")
        if found != _record(path, n_rows, dtype, crc32, job):
            return False
        if stored_crc32(path, n_rows=n_rows, dtype=dtype) != crc32:
            return False
    return True


def record_of(run_dir: Path, target: Path) -> dict[str, Any] | None:
    """The record in `run_dir` of the output at `target`, if it holds the values it was made for."""
    try:
        found = unseal(read_bytes(_place(run_dir, target)))
        dtype, n_rows = np.dtype(literal_eval(_quoted(found["dtype"]))), int(found["rows"])
        is_same = stored_crc32(target, n_rows=n_rows, dtype=dtype) == found["crc32"]
    except (OSError, SyntaxError, *DAMAGE):
        return None
    return found if is_same else None


def _quoted(dtype: str) -> str:
    """The name of a dtype as a literal of Python, which that of several numbers is already."""
    return dtype if dtype.startswith(("[", "(")) else repr(dtype)


def check_free(
    run_dir: Path, targets: list[Path], *, resume: bool, data: str | None = None
) -> None:
    """Refuse a target that can neither be begun nor resumed, as `open_sink` does.

    `data` is the fingerprint of the source, if it is known.
    """
    for target in targets:
        try:
            check_target(target, resume=resume)
        except OutputExistsError:
            if not resume:
                raise
            record = None if data is None else record_of(run_dir, target)
            why = "has no record that this model has finished every output asked for, from this "
            why += "source"
            if record is not None and record.get("data") != data:
                why = "has a record that it is of another source, or of this one before it changed"
            raise OutputExistsError(
                f"{target}: exists already, and is nothing that ",
                Option("resume", value=True),
                f" can go on with: {run_dir} {why}; remove it or choose another name",
            ) from None


def _place(run_dir: Path, target: Path) -> Path:
    """Path of the record of `target`, from its whole path: file names may be the same."""
    return run_dir / OUTPUTS / f"{sha256(os.fsencode(target.resolve())).hexdigest()[:16]}.json"


def _record(
    target: Path, n_rows: int, dtype: np.dtype[Any], crc32: object, job: dict[str, str]
) -> dict[str, object]:
    output = {"output": str(target.resolve()), "rows": n_rows, "dtype": str(dtype)}
    return {**output, "crc32": crc32, **job}
