"""Reads CSR matrices in ``.npz`` files, as ``scipy.sparse.save_npz`` writes them.

An ``.npz`` file is a zip of ``.npy`` files. Arrays that are stored as they are, by
``save_npz(..., compressed=False)``, are read by range. Compressed arrays cannot be: they are loaded
at the first read, and the memory plan knows their size.
"""

from __future__ import annotations

import zipfile
import zlib
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamkm.errors import ReadError, SourceError
from streamkm.sources.layout import one_line
from streamkm.sources.rowfile import RowFile, stream_of
from streamkm.sources.sparse import CSR_MEMBERS, CsrArrays, CsrSource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamkm.sources.base import RowRange

__all__ = ["open_csr_npz"]

#: Bytes of a local header in a zip, before the name and the extra field.
_ZIP_HEADER = 30


class _Member(NamedTuple):
    """An array of one dimension in the file."""

    dtype: np.dtype[Any]
    length: int
    offset: int | None
    """Of its first element in the file; None if it is compressed."""


def open_csr_npz(path: Path, *, keep_open: bool = True) -> CsrSource:
    """Open the CSR matrix in an ``.npz`` file.

    Parameters
    ----------
    path : Path
        The file.
    keep_open : bool
        Hold the file open until `close`; see `RowFile`.

    Returns
    -------
    CsrSource

    Raises
    ------
    SourceError
        If it is no such file, or the matrix has another format, is empty, or does not fit together.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if not all(f"{name}.npy" in names for name in (*CSR_MEMBERS, "format", "shape")):
                raise SourceError(
                    f"{path}: holds {', '.join(names[:5])}, but no CSR matrix; write it by "
                    "scipy.sparse.save_npz, or one array by numpy.save"
                )
            members = [_member(archive, name, path) for name in CSR_MEMBERS]
        with np.load(path, allow_pickle=False) as arrays:
            kind = arrays["format"].item()
            shape = tuple(int(extent) for extent in arrays["shape"])
    except SourceError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path}: cannot be opened as npz: {one_line(error)}") from error
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    if kind != "csr":
        raise SourceError(
            f"{path}: the matrix is stored as {kind}; rows are read from CSR: convert it "
            "(save_npz(path, matrix.tocsr(), compressed=False))"
        )
    is_stored = all(member.offset is not None for member in members)
    held = 0 if is_stored else sum(member.dtype.itemsize * member.length for member in members)
    return CsrSource(
        _CsrInNpz(path, members, is_stored=is_stored, keep_open=keep_open),
        shape,
        "npz" if is_stored else "npz, compressed",
        library_bytes=held,
    )


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> _Member:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            header = np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        n_header = file.tell()
    if len(shape) != 1 or dtype.hasobject:
        raise SourceError(f"{path}: {name} of a CSR matrix has one dimension of numbers")
    if info.compress_type != zipfile.ZIP_STORED:
        return _Member(dtype, shape[0], None)
    # The local header may have another extra field than the directory at the end of the zip.
    with path.open("rb") as raw:
        raw.seek(info.header_offset)
        local = raw.read(_ZIP_HEADER)
    n_local = _ZIP_HEADER + sum(int.from_bytes(local[at : at + 2], "little") for at in (26, 28))
    return _Member(dtype, shape[0], info.header_offset + n_local + n_header)


class _Stored:
    """An uncompressed array, read by slices."""

    def __init__(self, file: RowFile, member: _Member, rows: RowRange) -> None:
        self.dtype, self.shape = member.dtype, (member.length,)
        self._file, self._offset, self._rows = file, member.offset or 0, rows

    def __getitem__(self, part: slice) -> np.ndarray:
        out = np.empty(part.stop - part.start, self.dtype)
        self._file.read_into(out, self._offset + part.start * self.dtype.itemsize, self._rows)
        return out


class _Shape(NamedTuple):
    """An array that is not loaded yet."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __getitem__(self, part: Any) -> Any:
        raise IndexError(part)


class _CsrInNpz:
    """The arrays of the file, by range or loaded."""

    def __init__(
        self, path: Path, members: list[_Member], *, is_stored: bool, keep_open: bool
    ) -> None:
        self.name = str(path)
        self._path = path
        self._file = RowFile(path, keep_open=keep_open)
        self._members = members
        self._is_stored = is_stored
        self._lock = Lock()
        self._loaded: CsrArrays | None = None

    @contextmanager
    def opened(self, rows: RowRange) -> Iterator[CsrArrays]:
        """The arrays; those that are compressed are loaded for the first row that is read."""
        if self._is_stored:
            yield CsrArrays(*(_Stored(self._file, member, rows) for member in self._members))
        elif not len(rows):
            yield CsrArrays(*(_Shape(member.dtype, (member.length,)) for member in self._members))
        else:
            yield self._load(rows)

    def _load(self, rows: RowRange) -> CsrArrays:
        with self._lock:
            if self._loaded is None:
                self._file.check_unchanged(rows)
                try:
                    with (
                        stream_of(self._file) as stream,
                        np.load(stream, allow_pickle=False) as arrays,
                    ):
                        self._loaded = CsrArrays(*(arrays[name] for name in CSR_MEMBERS))
                except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
                    raise ReadError(f"{self.name}: {rows} cannot be read: {one_line(e)}") from e
            return self._loaded

    def fingerprint(self, layout: str) -> str:
        """Hex digest of `layout`, and of the file's size and modification time."""
        return self._file.fingerprint(layout)

    def notes(self) -> list[str]:
        """That compressed arrays are held in memory."""
        if self._is_stored:
            return []
        advice = "save_npz(..., compressed=False) writes a file that is streamed"
        return [f"{self.name}: is compressed, its arrays are loaded as a whole; {advice}"]

    def close(self) -> None:
        """Release the file and what was loaded."""
        self._file.close()
        self._loaded = None
