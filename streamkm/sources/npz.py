"""Reads ``.npz`` files, as `numpy.savez` writes them: one array, in place.

A file of the members of a sparse matrix, as scipy writes it, is one of `streamkm.sources.npz_csr`.

The file is a zip of ``.npy`` files that are stored as they are, so that an array is read by
position like any ``.npy``. A compressed one (`numpy.savez_compressed`) would have to be unpacked
from its first byte for every read: it is refused.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from streamkm.errors import SourceError
from streamkm.sources.layout import one_line
from streamkm.sources.members import chosen_member
from streamkm.sources.npy import npy_source, read_npy_header
from streamkm.sources.npz_csr import open_csr_npz
from streamkm.sources.rowfile import row_file, stream_of

if TYPE_CHECKING:
    from streamkm.sources.base import Source
    from streamkm.sources.rowfile import ByteFile, Stored

__all__ = ["open_npz"]

#: The arrays of a sparse matrix, as `scipy.sparse.save_npz` names them.
SPARSE_MEMBERS = frozenset({"data.npy", "format.npy", "shape.npy"})
#: The header before each member's bytes, and where it gives the length of name and extra field.
_LOCAL = struct.Struct("<4s22xHH")


def open_npz(path: Path | Stored, *, dataset: str | None = None, keep_open: bool = True) -> Source:
    """Open an array of an ``.npz`` file.

    Parameters
    ----------
    path : Path or Stored
        The file.
    dataset : str, optional
        Name of the array, such as ``arr_0``; by default the only one of two or more dimensions.
    keep_open : bool
        See `RowFile`.

    Returns
    -------
    Source

    Raises
    ------
    SourceError
        If it is no such file, or holds no such array, or holds it compressed.
    """
    file = row_file(path, keep_open=keep_open)
    try:
        try:
            with stream_of(file) as stream, zipfile.ZipFile(stream) as archive:
                if dataset is None and set(archive.namelist()) >= SPARSE_MEMBERS:
                    file.close()
                    return _open_sparse(path, keep_open=keep_open)
                member = _chosen(archive, path, dataset)
            start = _first_byte(file, member)
        except (
            zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, NotImplementedError,
            RuntimeError, ValueError, LookupError,
        ) as error:  # fmt: skip
            if isinstance(error, SourceError):
                raise
            raise SourceError(
                f"{path}: cannot be opened as .npz: {one_line(error)}; copy or write it again"
            ) from error
        name = member.filename.removesuffix(".npy")
        stop = start + member.file_size
        return npy_source(file, f"{path}: {name}", start, stop, kind=f"npz {name}")
    except SourceError:
        file.close()
        raise


def _open_sparse(path: Path | Stored, *, keep_open: bool) -> Source:
    """Open the CSR matrix in the file."""
    if not isinstance(path, Path):
        raise SourceError(
            f"{path}: holds a sparse matrix, which is read from a local disk alone; copy the file"
        )
    return open_csr_npz(path, keep_open=keep_open)


def _chosen(archive: zipfile.ZipFile, path: Path | Stored, dataset: str | None) -> zipfile.ZipInfo:
    """The member that holds the array, stored as it is."""
    members = {each.filename: each for each in archive.infolist()}
    shapes: dict[str, tuple[int, ...]] = {}
    for filename, member in members.items():
        name = filename.removesuffix(".npy")
        if name == filename:
            continue
        with archive.open(member) as content:
            shape, _, dtype = read_npy_header(content, f"{path}: {name}")
        if dtype.kind in "fiu":
            shapes[name] = shape
    name = chosen_member(path, shapes, dataset)
    member = members[f"{name}.npy"]
    if member.compress_type != zipfile.ZIP_STORED:
        raise SourceError(
            f"{path}: {name} is compressed, so its rows cannot be read by position; save it by "
            "numpy.savez instead of numpy.savez_compressed, or as .npy"
        )
    return member


def _first_byte(file: ByteFile, member: zipfile.ZipInfo) -> int:
    """Offset of the first byte of `member`, which only the header before it gives."""
    with stream_of(file) as stream:
        stream.seek(member.header_offset)
        magic, name_bytes, extra_bytes = _LOCAL.unpack(stream.read(_LOCAL.size))
    if magic != b"PK\3\4":
        raise ValueError(f"there is no member at byte {member.header_offset}")
    start: int = member.header_offset + _LOCAL.size + name_bytes + extra_bytes
    if start + member.file_size > file.size:
        raise EOFError(f"{member.filename} ends after the file")
    return start
