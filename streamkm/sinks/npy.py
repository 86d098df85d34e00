"""Outputs as ``.npy`` files: the header first, then each row at its place."""

from __future__ import annotations

import io
import zlib
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy_format

from streamkm.errors import ResumeError, SourceError
from streamkm.files import OutputFile, discard, fsync_directory, pieces_of, remove_file
from streamkm.sinks.base import Sink
from streamkm.sources.npy import read_npy_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["NpySink"]

#: Bytes read to learn the shape of an unfinished output: more than a header of two dimensions has.
_HEADER_BYTES = 4096
#: Bytes of one read when an unfinished output is checked.
_READ_BYTES = 1 << 20


class NpySink(Sink):
    """An ``.npy`` file that has its final size from the start and is written by position.

    Parameters are those of `Sink`.
    """

    def __init__(
        self, target: Path, *, n_rows: int, dtype: np.dtype[Any], state: dict[str, Any] | None
    ) -> None:
        super().__init__(target, n_rows=n_rows, dtype=dtype, state=state)
        self._header = _header(n_rows, dtype)
        self._size = len(self._header) + n_rows * dtype.itemsize
        self._file = self._create() if state is None else self._open()

    @classmethod
    def stored_crc32(cls, path: Path, n_rows: int, dtype: np.dtype[Any]) -> int | None:
        """See `Sink`."""
        header = _header(n_rows, dtype)
        pieces = pieces_of(path)
        first = next(pieces, b"")
        crc, n_bytes = 0, 0
        for piece in chain((first[len(header) :],), pieces):
            crc, n_bytes = zlib.crc32(piece, crc), n_bytes + len(piece)
        is_whole = first.startswith(header) and n_bytes == n_rows * dtype.itemsize
        return crc if is_whole else None

    def _create(self) -> OutputFile:
        """Make a file of its header and reserved space."""
        file = OutputFile(self._partial, create=True)
        try:
            file.write(0, self._header)
            file.reserve(self._size)
            file.sync()
            fsync_directory(self._partial.parent)
        except OSError:
            file.close()
            discard(self._partial)
            raise
        return file

    def _open(self) -> OutputFile:
        """Open the unfinished file, if it fits this output and its durable rows are intact."""
        file = OutputFile(self._partial)
        try:
            begins_well = file.read(0, len(self._header)) == self._header
            if begins_well and file.size == self._size:
                self._check_stored(self._stored_values(file))
                return file
            if self._durable_rows:
                raise self._misfit(file)
            self._refuse_another(file)
        except BaseException:
            file.close()
            raise
        # A crash came before header and size were on disk, so there is nothing to lose.
        file.close()
        remove_file(self._partial)
        return self._create()

    def _stored_values(self, file: OutputFile) -> Iterator[np.ndarray]:
        position, left = len(self._header), self._durable_rows * self.dtype.itemsize
        while left:
            values = np.frombuffer(file.read(position, min(left, _READ_BYTES)), np.uint8)
            yield values
            position, left = position + len(values), left - len(values)

    def _refuse_another(self, file: OutputFile) -> None:
        """Raise `ResumeError` if the file has another length or dtype than this output."""
        try:
            shape, _, dtype = read_npy_header(
                io.BytesIO(file.read(0, _HEADER_BYTES)), self._partial
            )
        except SourceError:
            return
        if shape != (self.n_rows, *self.dtype.shape) or dtype != self.dtype.base:
            each = np.dtype((dtype, shape[1:]))
            raise self._mismatch(shape[0] if shape else 0, each)

    def _misfit(self, file: OutputFile) -> ResumeError:
        """The error for a file whose rows are claimed but that cannot be resumed."""
        self._refuse_another(file)
        return ResumeError(
            f"{self._partial}: its header is damaged, or it has {file.size} bytes instead of "
            f"{self._size}; start again without resuming"
        )

    def _put(self, values: np.ndarray) -> None:
        position = len(self._header) + self.next_row * self.dtype.itemsize
        self._file.write(position, values.reshape(-1).view(np.uint8).data)
        self._count(values)

    def _sync(self) -> int:
        self._file.sync()
        return self._next_row

    def _release(self) -> None:
        self._file.close()


def _header(n_rows: int, dtype: np.dtype[Any]) -> bytes:
    header = io.BytesIO()
    descr = npy_format.dtype_to_descr(dtype.base)
    about = {"descr": descr, "fortran_order": False, "shape": (n_rows, *dtype.shape)}
    npy_format.write_array_header_1_0(header, about)
    return header.getvalue()
