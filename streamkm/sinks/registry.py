"""The table of output formats, and functions that take an output's name: open, check, tidy."""

from __future__ import annotations

import json
import stat
from contextlib import suppress
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import ConfigError, ResumeError, RunError
from streamkm.files import FileLock, expanded, is_folder, names_in, read_bytes, remove_file
from streamkm.sealed import unseal
from streamkm.sinks.base import (
    PartedSink,
    PublishedSink,
    Sink,
    discard_partial,
    refuse_existing,
)
from streamkm.sinks.places import COLUMN_BYTES, IN_STORE, beside, kind_of, store_of
from streamkm.sources.formats import folder_format
from streamkm.sources.layout import one_line
from streamkm.tables import load_class

if TYPE_CHECKING:
    import os
    from pathlib import Path

    import numpy.typing as npt

    from streamkm.sinks.part import Part
    from streamkm.sources import Grid, IdColumn

__all__ = [
    "CHUNK_ROWS",
    "SINKS",
    "check_origin",
    "check_target",
    "chunk_rows_of",
    "copied_bytes",
    "has_parts",
    "is_copy",
    "is_table",
    "open_part",
    "open_sink",
    "stored_crc32",
    "tidy",
    "unfinished_bytes",
    "unfinished_rows",
]

#: Rows of one chunk of a ``.zarr`` or ``.parquet`` output; a crash costs at most those of one.
CHUNK_ROWS = 1 << 18

#: ``module:Class`` of the sink for each suffix, and for arrays in a Zarr store, imported when it is
#: used: importing zarr is slow.
SINKS = {
    ".npy": "streamkm.sinks.npy:NpySink",
    ".zarr": "streamkm.sinks.zarr:ZarrSink",
    ".parquet": "streamkm.sinks.parquet:ParquetSink",
    ".h5ad": "streamkm.sinks.h5ad:H5adSink",
    IN_STORE: "streamkm.sinks.zarr_map:ZarrMapSink",
}

#: Kinds of outputs that have columns.
_TABLES = {".parquet"}

#: Kinds of outputs that are copies of the source, with its labels.
_COPIES = {".h5ad"}

#: The package that a kind of output needs beside streamkm, and the extra that installs it.
_NEEDS = {".parquet": ("pyarrow", "parquet"), ".h5ad": ("h5py", "hdf5")}


def open_sink(
    path: str | os.PathLike[str],
    *,
    n_rows: int,
    dtype: npt.DTypeLike,
    chunk_rows: int | None = None,
    resume: bool = False,
    ids: IdColumn | None = None,
    grid: Grid | None = None,
    origin: Path | None = None,
) -> Sink:
    """Begin or resume an output of one value a row, or of several, or of columns of a table.

    Parameters
    ----------
    path : path
        The target, ending in ``.npy``, ``.zarr``, ``.parquet`` or ``.h5ad``, or an array in a
        Zarr store, such as ``store.zarr/cluster``. It appears at `Sink.commit`.
    n_rows : int
        Rows of the output, at least 1.
    dtype : dtype
        An integer or floating type, stored in native byte order, or a subarray type of one, such
        as ``(int32, (3,))`` for rows of three values; of a ``.parquet`` output a structured type
        of those, whose fields are columns.
    chunk_rows : int, optional
        Rows of a chunk of a ``.zarr`` output, or of a row group of a ``.parquet`` output; by
        default `chunk_rows_of` the dtype.
    resume : bool
        Go on with an unfinished output, if there is one; if false, it is deleted.
    ids : IdColumn, optional
        Ids of the rows, the first column of a ``.parquet`` output; others go without.
    grid : Grid, optional
        The axes of the rows, for an array in a Zarr store; others have one axis.
    origin : Path, optional
        The local file that the rows lie in, of which an ``.h5ad`` output is a copy, or the folder
        of their Zarr array. A column of obs in a Zarr store must be of the same cells.

    Returns
    -------
    Sink
        Its `Sink.next_row` is 0 unless an unfinished output is resumed.

    Raises
    ------
    ConfigError
        If the suffix is unknown, the folder is missing, a number is out of range, the dtype
        holds no integers or floats, or the source does not fit an ``.h5ad`` output.
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
    chunk_rows = chunk_rows_of(np.dtype(dtype)) if chunk_rows is None else chunk_rows
    stored = _check_arguments(target, n_rows, dtype, chunk_rows)
    partial, cursor = _beside(target)
    lock = _take_lock(target)
    try:
        check_target(target, resume=resume)  # Again: it may have appeared before the lock was ours.
        if target.exists():
            sink: Sink = PublishedSink(
                target,
                n_rows=n_rows,
                dtype=stored,
                state=_state(cursor, n_rows),
                kind=_class_of(target),
            )
        else:
            state = _state(cursor, n_rows) if resume and partial.exists() else None
            if state is None:
                discard_partial(partial, cursor)
            kind = _class_of(target)
            options: dict[str, Any] = {"chunk_rows": chunk_rows} if kind.is_chunked else {}
            options |= {"ids": ids} if is_table(target) else {}
            options |= {"origin": origin} if is_copy(target) else {}
            options |= {"grid": grid, "origin": origin} if kind_of(target) == IN_STORE else {}
            sink = kind(target, n_rows=n_rows, dtype=stored, state=state, **options)
    except BaseException:
        lock.release(remove=True)
        raise
    sink.hold(lock)
    return sink


def chunk_rows_of(dtype: np.dtype[Any]) -> int:
    """Rows of a chunk: fewer than `CHUNK_ROWS` if rows have several values."""
    columns = [dtype[name] for name in dtype.names or ()] or [dtype]
    return max(CHUNK_ROWS // max(prod(column.shape) for column in columns), 1)


def open_part(target: Path, *, n_rows: int, dtype: npt.DTypeLike, start_row: int) -> Part:
    """What this process writes of an output whose sink another process has.

    Parameters
    ----------
    target : Path
        The target; `has_parts` is true of it.
    n_rows, dtype
        As in `open_sink`.
    start_row : int
        The `Sink.next_row` of the sink, which has let others in (`Sink.admit_others`).

    Raises
    ------
    RunError
        If a process of another run has taken the output meanwhile.
    OSError
        If this process cannot open the unfinished output.
    """
    sink = _class_of(target)
    assert issubclass(sink, PartedSink)
    lock = _lock_of(target)
    lock.join()
    try:
        stored = np.dtype(dtype).newbyteorder("=")
        part = sink.open_part(_beside(target)[0], n_rows, stored, start_row)
    except BaseException:
        lock.release()
        raise
    part.hold(lock)
    return part


def has_parts(target: Path) -> bool:
    """Whether several processes can write the output at `target` together."""
    return _class_of(target).has_parts


def is_table(target: Path) -> bool:
    """Whether the output at `target` has columns, and room for ids."""
    return kind_of(target) in _TABLES


def is_copy(target: Path) -> bool:
    """Whether the output at `target` is a copy of the source, with its labels."""
    return kind_of(target) in _COPIES


def check_origin(target: Path, origin: Path | None, n_rows: int, dtype: np.dtype[Any]) -> None:
    """Raise `ConfigError` if the output at `target` cannot be a copy of `origin`, as it must be."""
    if is_copy(target):
        load_class(SINKS[kind_of(target)]).check_origin(target, origin, n_rows, dtype)


def copied_bytes(target: Path, origin: Path | None) -> int:
    """Bytes that the output at `target` takes for being a copy of `origin`, beside its values."""
    if origin is None or not is_copy(target):
        return 0
    return origin.stat().st_size + COLUMN_BYTES


def unfinished_rows(target: Path) -> int:
    """Durable rows of the unfinished output for `target`; 0 if there is none."""
    partial, cursor = _beside(target)
    try:
        return int(unseal(read_bytes(cursor))["durable_rows"]) if partial.exists() else 0
    except (OSError, KeyError, TypeError, ValueError):
        return 0


def check_target(path: str | os.PathLike[str], *, resume: bool = False) -> Path:
    """`path`, if an output can be begun or resumed there; otherwise raise as `open_sink` does."""
    target = expanded(path)
    if kind_of(target) not in SINKS:
        known = " or ".join(kind for kind in SINKS if kind != IN_STORE)
        raise ConfigError(
            f"{target}: an output ends in {known}, not '{target.suffix}', or lies in a store, such "
            "as labels.zarr/cluster"
        )
    package, extra = _NEEDS.get(kind_of(target), (None, None))
    if package is not None and find_spec(package) is None:
        raise ConfigError(
            f"{target}: writing it needs {package}, which is not installed; "
            f"install streamkm[{extra}]"
        )
    folder = beside(target, "").parent
    if not folder.is_dir():
        raise ConfigError(f"{target}: the folder {folder} does not exist; create it first")
    _check_store(target)
    partial, cursor = _beside(target)
    # An interrupted commit leaves the cursor of an output that has its name already.
    if not (resume and cursor.exists() and not partial.exists()):
        refuse_existing(target)
    return target


def _check_store(target: Path) -> None:
    """Refuse an array in something that is no Zarr group, and cannot become one."""
    store = store_of(target)
    for folder in target.parents if store is not None else ():
        is_one = is_folder(folder)
        # Of a group that another process makes right now there is only what Zarr will rename.
        is_empty = all(name.endswith(".partial") for name in names_in(folder)) if is_one else False
        if is_one is not None and not (is_empty or _is_group(folder)):
            raise ConfigError(
                f"{target}: {folder} is no Zarr group, so no array can be added to it; choose "
                "another store"
            )
        if folder == store:
            return


def _is_group(folder: Path) -> bool:
    """Whether arrays can be added to what is in `folder`."""
    entry = folder_format(folder)
    return entry is not None and entry.members is not None and not _is_array(folder)


def _is_array(folder: Path) -> bool:
    """Whether a folder with the metadata of Zarr is an array."""
    try:
        node = json.loads(read_bytes(folder / "zarr.json"))
    except FileNotFoundError:
        return (folder / ".zarray").exists()
    except ValueError:
        return True
    return not isinstance(node, dict) or node.get("node_type") != "group"


def unfinished_bytes(target: Path) -> int:
    """Bytes that the unfinished output for `target` takes on disk; 0 if there is none."""
    partial, _ = _beside(target)
    files = partial.rglob("*") if is_folder(partial) else [partial]
    return sum(map(_file_bytes, files))


def _file_bytes(path: Path) -> int:
    """Bytes of a file; 0 if it is none, or gone: another process may be writing this output."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def tidy(target: Path) -> None:
    """Delete what a crash left beside a finished output: its cursor and its lock."""
    cursor = _beside(target)[1]
    if cursor.exists() or _lock_path(target).exists():
        # Left where they are, they do no harm: to another process that tidies, too.
        with suppress(OSError, RunError):
            lock = _take_lock(target)
            try:
                remove_file(cursor)
            finally:
                lock.release(remove=True)


def _lock_path(target: Path) -> Path:
    return beside(target, ".partial.lock")


def _lock_of(target: Path) -> FileLock:
    return FileLock(_lock_path(target), target, "writing this output")


def _take_lock(target: Path) -> FileLock:
    lock = _lock_of(target)
    lock.take()
    return lock


def stored_crc32(target: Path, *, n_rows: int, dtype: np.dtype[Any]) -> int | None:
    """Checksum of the values of the finished output at `target`; None if it is no such array."""
    found: int | None = _class_of(target).stored_crc32(target, n_rows, dtype)
    return found


def _class_of(target: Path) -> type[Sink]:
    sink: type[Sink] = load_class(SINKS[kind_of(target)])
    return sink


def _beside(target: Path) -> tuple[Path, Path]:
    """Paths of the unfinished output for `target` and of its cursor."""
    partial = beside(target, ".partial")
    return partial, partial.with_name(partial.name + ".json")


def _check_arguments(
    target: Path, n_rows: int, dtype: npt.DTypeLike, chunk_rows: int
) -> np.dtype[Any]:
    """The dtype in native byte order; `ConfigError` if an argument of `open_sink` is wrong."""
    if n_rows < 1 or chunk_rows < 1:
        raise ConfigError(
            f"{target}: n_rows and chunk_rows must be at least 1, got {n_rows} and {chunk_rows}"
        )
    stored = np.dtype(dtype).newbyteorder("=")
    kinds = [stored[name].base.kind for name in stored.names or ()] or [stored.base.kind]
    fits = stored.names is None or is_table(target)
    if not fits or any(kind not in "iuf" for kind in kinds):
        raise ConfigError(f"{target}: an output holds integers or floats, not {stored}")
    return stored


def _state(cursor: Path, n_rows: int) -> dict[str, Any]:
    """The state that `cursor` holds for an output of `n_rows`."""
    try:
        state = unseal(read_bytes(cursor))
        if type(state["durable_rows"]) is not int or not 0 <= state["durable_rows"] <= n_rows:
            raise ValueError(f"durable_rows is {state['durable_rows']}, the output has {n_rows}")
        if not isinstance(state["cursor"], dict | None) or type(state["crc32"]) is not int:
            raise ValueError(f"cursor is {state['cursor']!r}, crc32 {state['crc32']!r}")
        return {name: state[name] for name in ("durable_rows", "crc32", "cursor")}
    except FileNotFoundError:
        # No row was claimed. The sink still compares: the unfinished output may be another's.
        return {"durable_rows": 0, "crc32": 0, "cursor": None}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ResumeError(
            f"{cursor}: does not fit this output: {one_line(error)}; start again without resuming"
        ) from error
