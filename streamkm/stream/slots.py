"""Host slots: memory that windows are read into, allocated once and used again.

For a GPU the slots are page-locked, so that copies to the device run at the
link's speed and beside the arithmetic. They are anonymous maps registered with
CUDA. torch's pinned allocations were rejected: torch rounds them up to a power
of two (pytorch#150517), which would break the memory plan.
"""

from __future__ import annotations

import logging
import math
import mmap
import resource
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streamkm.devices import queues_of

if TYPE_CHECKING:
    from types import TracebackType

    import torch

    from streamkm.devices import Queues
    from streamkm.sources.kept import KeptRows
    from streamkm.stream.residency import DeviceRows

__all__ = [
    "WEIGHT_BYTES",
    "HostSlots",
    "StreamMemory",
    "locked_limit",
    "pinned",
    "slot_bytes",
    "weights_offset",
]

logger = logging.getLogger("streamkm")


#: Bytes of a cache line of the processor: rows must not lie across more of them than need be.
_CACHE_LINE = 64
#: Bytes of a weight, a float64; weights lie behind the rows of a slot.
WEIGHT_BYTES = 8


def weights_offset(row_bytes: int) -> int:
    """Where the weights begin in a slot whose rows together take `row_bytes`."""
    return -(-row_bytes // WEIGHT_BYTES) * WEIGHT_BYTES


def slot_bytes(n_rows: int, row_bytes: int, *, weighted: bool) -> int:
    """Bytes of a slot for `n_rows` of `row_bytes` each and, if `weighted`, their weights."""
    if not weighted:
        return n_rows * row_bytes
    return weights_offset(n_rows * row_bytes) + n_rows * WEIGHT_BYTES


def locked_limit() -> str:
    """What the limit of locked memory is, for a message; empty if there is none."""
    n_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return "" if n_bytes == resource.RLIM_INFINITY else f", which is {n_bytes} bytes"


@dataclass(frozen=True, slots=True)
class StreamMemory:
    """Slots and readers of a stream, as the memory plan decides them."""

    n_slots: int
    slot_rows: int
    """Rows of the largest window."""
    slot_bytes: int
    n_readers: int
    """Reader threads; with 0 the calling thread reads."""
    weighted: bool = False
    """Whether the slots have room for weights behind the rows."""


def pinned(queues: Queues, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Host memory for copies of a device: page-locked, or other memory if that is refused."""
    import torch

    try:
        return queues.pinned(shape, dtype)
    except RuntimeError as error:
        logger.warning(
            "page-locking %d bytes of host memory failed (%s): the host waits for their copies; "
            "raise the locked-memory limit (ulimit -l)%s",
            math.prod(shape) * dtype.itemsize,
            str(error).partition("\n")[0],
            locked_limit(),
        )
        return torch.empty(shape, dtype=dtype)


class HostSlots:
    """The slots of one run, used by one stream after the other; page-locked on CUDA while open.

    Slots begin `first_byte` into a page, as the rows do in their file (`ArraySpec.first_byte`), if
    that is a whole number of cache lines.

    With `locked` false they are not, which is for rows that lie on the device: then no row is read
    into the slots, and their pages are never touched.
    """

    def __init__(
        self,
        memory: StreamMemory,
        device: torch.device,
        *,
        locked: bool = True,
        first_byte: int = 0,
    ) -> None:
        self.memory = memory
        self.device = device
        self.kept: KeptRows | None = None
        """The source that windows are read from, if rows of it stay in host memory."""
        self.on_device: DeviceRows | None = None
        """Rows that stay on the device, if any do."""
        self._locked = locked
        skip = 0 if first_byte % _CACHE_LINE else first_byte % mmap.PAGESIZE
        # One map for all slots: of small ones, to make a map is most of the cost. Each slot has
        # pages of its own. Private pages are twice as fast to touch first as shared ones.
        stride = -(-(skip + memory.slot_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        map_ = mmap.mmap(-1, memory.n_slots * stride, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # Huge pages take an eighth of the time to be touched first, and rows gathered from
        # all over a window do not each miss in the processor's cache of page addresses.
        with suppress(AttributeError, OSError):  # macOS; a Linux built without huge pages
            map_.madvise(mmap.MADV_HUGEPAGE)
        # From the beginning of a page on, as pages are locked.
        self._wholes = [
            np.frombuffer(map_, np.uint8, skip + memory.slot_bytes, slot * stride)
            for slot in range(memory.n_slots)
        ]
        self.buffers = [whole[skip:] for whole in self._wholes]
        self._pinned: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.buffers)

    def __enter__(self) -> HostSlots:
        if self._locked:
            self._pin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        queues = queues_of(self.device)
        if queues is not None:
            for whole in self._pinned:
                queues.unlock(whole)
        # The map is freed with the last array that views it.
        self._pinned, self._wholes, self.buffers = [], [], []
        if self.kept is not None:
            self.kept.close()
        self.kept = self.on_device = None

    def _pin(self) -> None:
        queues = queues_of(self.device)
        if queues is None:
            return
        for whole in self._wholes:
            refused = queues.lock(whole)
            if refused:
                logger.warning(
                    "page-locking %d bytes of host memory failed (%s): copies to the GPU "
                    "will be slower; raise the locked-memory limit (ulimit -l)%s",
                    whole.nbytes,
                    refused,
                    locked_limit(),
                )
                return
            self._pinned.append(whole)
