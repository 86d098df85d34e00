"""Rows that stay on the device between the passes of a run; `sources.kept` keeps those on the host.

Which rows have a home there is known beforehand (`sources.kept.Homes`). They are copied to it
behind the first window that brings them, on the same stream. From then on they are neither read nor
copied over the link: a window takes them from their home, within the device. The order of rows, and
so every bit of a result, is that of a run that reads everything in each pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.devices import is_host
from streamkm.sources.base import RowRange
from streamkm.sources.kept import Homes, Places

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from streamkm.stream.plan import Window

__all__ = ["DeviceRows"]

#: Bytes of which an address on a GPU must be a multiple if rows are used in their home: kernels are
#: compiled for aligned rows, and again for others.
ALIGNMENT = 16


class DeviceRows:
    """Rows on the device; readers ask which are there while the stream adds to them.

    Parameters
    ----------
    kept_ND : torch.Tensor
        Memory for the rows of all homes.
    homes : Homes
        Where each row stays.
    block_rows : int
        Rows of a block, which comes and stays as a whole.
    """

    def __init__(self, kept_ND: torch.Tensor, homes: Homes, block_rows: int) -> None:
        self._kept_ND, self._places = kept_ND, Places(homes, block_rows)

    @classmethod
    def of_all(cls, x_ND: torch.Tensor) -> DeviceRows:
        """All rows of a tensor, which are there and must not be changed."""
        n_rows = len(x_ND)
        rows = cls(x_ND, Homes(n_rows, n_rows, 1), n_rows)
        rows._places.note(RowRange(0, n_rows))
        return rows

    def has(self, rows: RowRange) -> bool:
        """Whether `rows` are there, or will be before whatever is queued next."""
        return self._places.find(rows) is not None

    def of(self, rows: RowRange) -> torch.Tensor:
        """`rows`, which are there."""
        place = self._places.find(rows)
        assert place is not None
        return self._kept_ND[place : place + len(rows)]

    def in_place(self, window: Window, on_device: Iterable[bool]) -> torch.Tensor | None:
        """The rows of `window` as they can be used in their home; None if they must be copied."""
        rows = window.one_read
        if rows is None or not all(on_device) or not self.has(rows):
            return None
        x_ND = self.of(rows)
        is_aligned = is_host(x_ND.device) or x_ND.data_ptr() % ALIGNMENT == 0
        return x_ND if x_ND.is_contiguous() and is_aligned else None

    def keep_(self, rows: RowRange, x_RD: torch.Tensor) -> None:
        """Queue copies of the blocks in `rows` to their homes, of those that have one."""
        for part, place in self._places.missing(rows):
            if self._places.is_block(part):
                within = x_RD[part.start - rows.start : part.stop - rows.start]
                self._kept_ND[place : place + len(part)].copy_(within)
                self._places.note(part)
