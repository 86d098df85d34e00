"""An output file as a library wants it that writes from the first byte to the last."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamkm.files import OutputFile

__all__ = ["GrowingFile"]


class GrowingFile(io.RawIOBase):
    """An `OutputFile` as a file that a library writes from the first byte to the last."""

    def __init__(self, file: OutputFile) -> None:
        super().__init__()
        self._file, self._end = file, 0

    def writable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._end

    def write(self, data: Any) -> int:
        """See `io.RawIOBase`."""
        view = memoryview(data)
        self._file.write(self._end, view)
        self._end += view.nbytes
        return view.nbytes
