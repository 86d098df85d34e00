"""Where labels and distances go: ``open_sink``, and outputs that are ``.npy`` files."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy_format

from streamkm.errors import ConfigError, ResumeError, SourceError
from streamkm.files import fsync_directory
from streamkm.sources.layout import one_line
from streamkm.sources.npy import read_npy_header
from streamkm.sources.sink import (
    PublishedSink,
    Sink,
    discard_partial,
    lock_partial,
    refuse_existing,
)

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "CHUNK_ROWS",
    "NpySink",
    "check_target",
    "open_sink",
    "unfinished_cursor",
    "unfinished_rows",
]

#: Rows of one chunk of a ``.zarr`` output, which is also what a crash costs at most.
CHUNK_ROWS = 1 << 18

#: What file systems answer that cannot reserve space.
_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}


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
    OSError
        If the disk is full or refuses.
    """
    target = check_target(path, resume=resume)
    stored = _check_arguments(target, n_rows, dtype, chunk_rows)
    partial, cursor = _beside(target)
    if target.exists():
        return PublishedSink(target, n_rows=n_rows, dtype=stored, state=_state(cursor, n_rows))
    held = lock_partial(partial)
    try:
        state = _state(cursor, n_rows) if resume and partial.exists() else None
        if state is None:
            discard_partial(partial, cursor)
    finally:
        if held is not None:
            os.close(held)
    sink = _make_sink(target, n_rows, stored, state, chunk_rows)
    sink.lock()
    return sink


def _make_sink(
    target: Path,
    n_rows: int,
    dtype: np.dtype[Any],
    state: dict[str, Any] | None,
    chunk_rows: int,
) -> Sink:
    if target.suffix.lower() == ".npy":
        return NpySink(target, n_rows=n_rows, dtype=dtype, state=state)
    from streamkm.sources.zarr_sink import ZarrSink

    return ZarrSink(target, n_rows=n_rows, dtype=dtype, state=state, chunk_rows=chunk_rows)


def unfinished_rows(target: Path) -> int:
    """Rows that an unfinished output of that name holds for good; 0 if there is none."""
    partial, cursor = _beside(target)
    try:
        return int(json.loads(cursor.read_bytes())["durable_rows"]) if partial.exists() else 0
    except (OSError, KeyError, TypeError, ValueError):
        return 0


def check_target(path: str | os.PathLike[str], *, resume: bool = False) -> Path:
    """The path, if an output of that name can be begun; raises as `open_sink` does."""
    target = Path(path).expanduser()
    if target.suffix.lower() not in (".npy", ".zarr"):
        raise ConfigError(f"{target}: an output ends in .npy or .zarr, not '{target.suffix}'")
    if not target.parent.is_dir():
        raise ConfigError(f"{target}: the folder {target.parent} does not exist; create it first")
    partial, cursor = _beside(target)
    # Only a commit of several outputs that was interrupted leaves the cursor of a complete one.
    if not (resume and cursor.exists() and not partial.exists()):
        refuse_existing(target)
    return target


def unfinished_cursor(target: Path) -> Path:
    """Where the cursor of an output lies for as long as there is something left to do."""
    return _beside(target)[1]


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
        state = json.loads(cursor.read_bytes())
        if type(state["durable_rows"]) is not int or not 0 <= state["durable_rows"] <= n_rows:
            raise ValueError(f"durable_rows is {state['durable_rows']}, the output has {n_rows}")
        return {"durable_rows": state["durable_rows"], "cursor": state["cursor"]}
    except FileNotFoundError:
        # Without a cursor no row was ever claimed, but another output's must not be taken over.
        return {"durable_rows": 0, "cursor": None}
    except (KeyError, TypeError, ValueError) as error:
        raise ResumeError(
            f"{cursor}: does not fit this output: {one_line(error)}; start again without resuming"
        ) from error


class NpySink(Sink):
    """An ``.npy`` file of its final size from the start, filled by positional writes.

    Parameters are those of `Sink`.
    """

    def __init__(
        self, target: Path, *, n_rows: int, dtype: np.dtype[Any], state: dict[str, Any] | None
    ) -> None:
        super().__init__(target, n_rows=n_rows, dtype=dtype, state=state)
        self._offset = self._create() if state is None else self._check()
        self._fd = os.open(self._partial, os.O_WRONLY | os.O_CLOEXEC)

    def _create(self) -> int:
        """Header and reserved space; the offset of the first value."""
        header = {
            "descr": npy_format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.n_rows,),
        }
        with self._partial.open("xb") as stream:
            npy_format.write_array_header_1_0(stream, header)
            stream.flush()
            offset = stream.tell()
            try:
                _reserve(stream.fileno(), offset + self.n_rows * self.dtype.itemsize, self._partial)
                os.fsync(stream.fileno())
            except OSError:
                self._partial.unlink()
                raise
        fsync_directory(self._partial.parent)
        return offset

    def _check(self) -> int:
        """Offset of the first value in an unfinished file that fits."""
        try:
            with self._partial.open("rb") as stream:
                shape, _, dtype = read_npy_header(stream, self._partial)
                offset = stream.tell()
        except SourceError as error:
            if self._durable_rows == 0:
                # A crash came before the header was on disk, so there is nothing to lose.
                self._partial.unlink()
                return self._create()
            raise ResumeError(f"{error}; start again without resuming") from error
        if shape != (self.n_rows,) or dtype != self.dtype:
            raise self._mismatch(shape[0] if shape else 0, dtype)
        size = self._partial.stat().st_size
        expected = offset + self.n_rows * self.dtype.itemsize
        if size != expected:
            if self._durable_rows == 0:
                self._partial.unlink()
                return self._create()
            raise ResumeError(
                f"{self._partial}: has {size} bytes instead of {expected}; "
                "start again without resuming"
            )
        return offset

    def _put(self, values: np.ndarray) -> None:
        view = values.view(np.uint8).data
        position = self._offset + self.next_row * self.dtype.itemsize
        while view:
            count = os.pwrite(self._fd, view, position)
            view = view[count:]
            position += count

    def _sync(self) -> int:
        os.fsync(self._fd)
        return self._next_row

    def _release(self) -> None:
        os.close(self._fd)


def _reserve(fd: int, size: int, path: Path) -> None:
    """Give a file its final size, and the disk's space where the file system can."""
    os.ftruncate(fd, size)
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno in _NO_FALLOCATE:
            return
        reason = f"{error.strerror}: {size} bytes are needed; free space or choose another folder"
        raise OSError(error.errno, reason, str(path)) from error
