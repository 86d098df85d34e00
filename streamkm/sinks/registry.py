"""From the name of an output to a sink: the one place that knows which kind is written by what."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import ConfigError, ResumeError
from streamkm.files import FileLock, read_bytes, remove_file
from streamkm.sealed import unseal
from streamkm.sinks.base import PublishedSink, Sink, discard_partial, refuse_existing
from streamkm.sources.layout import one_line
from streamkm.tables import load_class

if TYPE_CHECKING:
    import os

    import numpy.typing as npt

__all__ = [
    "CHUNK_ROWS",
    "SINKS",
    "check_target",
    "open_sink",
    "stored_crc32",
    "tidy",
    "unfinished_bytes",
    "unfinished_rows",
]

#: Rows of one chunk of a ``.zarr`` output, which is also what a crash costs at most.
CHUNK_ROWS = 1 << 18

#: By the suffix of an output, as ``module:Class``. They are imported when they are used: zarr takes
#: long.
SINKS = {
    ".npy": "streamkm.sinks.npy:NpySink",
    ".zarr": "streamkm.sinks.zarr:ZarrSink",
}


def open_sink(
    path: str | os.PathLike[str],
    *,
    n_rows: int,
    dtype: npt.DTypeLike,
    chunk_rows: int = CHUNK_ROWS,
    resume: bool = False,
) -> Sink:
    """Begin, or go on with, an output of one value a row.

    Parameters
    ----------
    path : path
        The target, ending in ``.npy`` or ``.zarr``. It does not exist before
        `Sink.commit`.
    n_rows : int
        Length of the array, at least 1.
    dtype : dtype
        An integer or floating type; stored in native byte order.
    chunk_rows : int
        Rows of a chunk of a ``.zarr`` output.
    resume : bool
        Go on with an unfinished output, if there is one; otherwise one that
        was left over is deleted.

    Returns
    -------
    Sink
        At row `Sink.next_row`, which is 0 unless an unfinished output is resumed.

    Raises
    ------
    ConfigError
        If the suffix is another, the folder is missing, or a number is out of range.
    OutputExistsError
        If the target exists.
    ResumeError
        If the unfinished output has another length or dtype, or is damaged.
    RunError
        If another process is writing this output.
    OSError
        If the disk is full or refuses.
    """
    target = check_target(path, resume=resume)
    stored = _check_arguments(target, n_rows, dtype, chunk_rows)
    partial, cursor = _beside(target)
    lock = _take_lock(target)
    try:
        check_target(target, resume=resume)  # Again: it may have appeared before the lock was ours.
        if target.exists():
            sink: Sink = PublishedSink(
                target, n_rows=n_rows, dtype=stored, state=_state(cursor, n_rows)
            )
        else:
            state = _state(cursor, n_rows) if resume and partial.exists() else None
            if state is None:
                discard_partial(partial, cursor)
            options = {"chunk_rows": chunk_rows} if _class_of(target).is_chunked else {}
            sink = _class_of(target)(target, n_rows=n_rows, dtype=stored, state=state, **options)
    except BaseException:
        lock.release(remove=True)
        raise
    sink.hold(lock)
    return sink


def unfinished_rows(target: Path) -> int:
    """Rows that an unfinished output of that name holds for good; 0 if there is none."""
    partial, cursor = _beside(target)
    try:
        return int(unseal(read_bytes(cursor))["durable_rows"]) if partial.exists() else 0
    except (OSError, KeyError, TypeError, ValueError):
        return 0


def check_target(path: str | os.PathLike[str], *, resume: bool = False) -> Path:
    """The path, if an output of that name can be begun; raises as `open_sink` does."""
    target = Path(path).expanduser()
    if target.suffix.lower() not in SINKS:
        known = " or ".join(SINKS)
        raise ConfigError(f"{target}: an output ends in {known}, not '{target.suffix}'")
    if not target.parent.is_dir():
        raise ConfigError(f"{target}: the folder {target.parent} does not exist; create it first")
    partial, cursor = _beside(target)
    # Only a commit of several outputs that was interrupted leaves the cursor of a complete one.
    if not (resume and cursor.exists() and not partial.exists()):
        refuse_existing(target)
    return target


def unfinished_bytes(target: Path) -> int:
    """Space that an unfinished output of that name takes already."""
    partial, _ = _beside(target)
    if partial.is_dir():
        return sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    return partial.stat().st_size if partial.exists() else 0


def tidy(target: Path) -> None:
    """Remove what a crash left beside an output that is finished: its cursor and its lock."""
    cursor = _beside(target)[1]
    if cursor.exists() or _lock_path(target).exists():
        with suppress(OSError):  # They do no harm where they cannot be removed.
            lock = _take_lock(target)
            try:
                remove_file(cursor)
            finally:
                lock.release(remove=True)


def _lock_path(target: Path) -> Path:
    return target.with_name(target.name + ".partial.lock")


def _take_lock(target: Path) -> FileLock:
    lock = FileLock(_lock_path(target), target, "writing this output")
    lock.take()
    return lock


def stored_crc32(target: Path, *, n_rows: int, dtype: np.dtype[Any]) -> int | None:
    """Checksum of the values of an output under its name; None if it is no such array."""
    found: int | None = _class_of(target).stored_crc32(target, n_rows, dtype)
    return found


def _class_of(target: Path) -> type[Sink]:
    sink: type[Sink] = load_class(SINKS[target.suffix.lower()])
    return sink


def _beside(target: Path) -> tuple[Path, Path]:
    """Where an output grows, and where its cursor lies."""
    partial = target.with_name(target.name + ".partial")
    return partial, partial.with_name(partial.name + ".json")


def _check_arguments(
    target: Path, n_rows: int, dtype: npt.DTypeLike, chunk_rows: int
) -> np.dtype[Any]:
    """The dtype as it is stored, if the other arguments are sound."""
    if n_rows < 1 or chunk_rows < 1:
        raise ConfigError(
            f"{target}: n_rows and chunk_rows must be at least 1, got {n_rows} and {chunk_rows}"
        )
    stored = np.dtype(dtype).newbyteorder("=")
    if stored.kind not in "iuf":
        raise ConfigError(f"{target}: an output holds integers or floats, not {stored}")
    return stored


def _state(cursor: Path, n_rows: int) -> dict[str, Any]:
    """What the cursor's file says of an output of `n_rows`."""
    try:
        state = unseal(read_bytes(cursor))
        if type(state["durable_rows"]) is not int or not 0 <= state["durable_rows"] <= n_rows:
            raise ValueError(f"durable_rows is {state['durable_rows']}, the output has {n_rows}")
        if not isinstance(state["cursor"], dict | None) or type(state["crc32"]) is not int:
            raise ValueError(f"cursor is {state['cursor']!r}, crc32 {state['crc32']!r}")
        return {name: state[name] for name in ("durable_rows", "crc32", "cursor")}
    except FileNotFoundError:
        # Without a cursor no row was ever claimed, but another output's must not be taken over.
        return {"durable_rows": 0, "crc32": 0, "cursor": None}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ResumeError(
            f"{cursor}: does not fit this output: {one_line(error)}; start again without resuming"
        ) from error
