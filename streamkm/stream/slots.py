"""Host memory that windows of rows are read into: allocated once, reused, given back.

For a GPU the slots are page-locked, so that copies to the device run at the
link's speed and beside everything else. They are anonymous maps registered
with CUDA rather than torch's pinned allocations, which are rounded up to a
power of two (pytorch#150517) and would break the memory plan.
"""

from __future__ import annotations

import logging
import mmap
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from types import TracebackType

    import torch

__all__ = ["WEIGHT_BYTES", "HostSlots", "StreamMemory", "slot_bytes", "weights_offset"]

logger = logging.getLogger("streamkm")


#: Weights lie behind the rows of a slot, as float64.
WEIGHT_BYTES = 8


def weights_offset(row_bytes: int) -> int:
    """Where the weights begin in a slot whose rows take `row_bytes` in all."""
    return -(-row_bytes // WEIGHT_BYTES) * WEIGHT_BYTES


def slot_bytes(n_rows: int, row_bytes: int, *, weighted: bool) -> int:
    """Bytes of a slot for `n_rows` of `row_bytes` each, and their weights."""
    if not weighted:
        return n_rows * row_bytes
    return weights_offset(n_rows * row_bytes) + n_rows * WEIGHT_BYTES


@dataclass(frozen=True, slots=True)
class StreamMemory:
    """What a stream may allocate on the host: decided once, by the memory plan."""

    n_slots: int
    slot_rows: int
    """Rows of the largest window."""
    slot_bytes: int
    n_readers: int
    """Threads that read; 0 reads in the caller's."""
    weighted: bool = False
    """Whether the slots have room for weights behind the rows."""


class HostSlots:
    """The buffers of one run, used by one stream after the other; pinned while open for CUDA."""

    def __init__(self, memory: StreamMemory, device: torch.device) -> None:
        self.memory = memory
        self.device = device
        self._maps = [
            # Private pages are twice as fast to touch for the first time as shared ones.
            mmap.mmap(-1, memory.slot_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for _ in range(memory.n_slots)
        ]
        for map_ in self._maps:
            # Large pages: an eighth of the time to touch them first, and rows that are
            # gathered from all over a window do not each miss the processor's page table.
            with suppress(AttributeError, OSError):  # macOS; a kernel built without them
                map_.madvise(mmap.MADV_HUGEPAGE)
        self.buffers = [np.frombuffer(map_, dtype=np.uint8) for map_ in self._maps]
        self._pinned: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.buffers)

    def __enter__(self) -> HostSlots:
        if self.device.type == "cuda":
            self._pin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pinned:
            import torch

            with torch.cuda.device(self.device):
                for buffer in self._pinned:
                    torch.cuda.cudart().cudaHostUnregister(buffer.ctypes.data)
        # The maps themselves go when the last array that looks into them does.
        self._pinned, self.buffers, self._maps = [], [], []

    def _pin(self) -> None:
        import torch

        runtime = torch.cuda.cudart()
        for buffer in self.buffers:
            with torch.cuda.device(self.device):
                status = runtime.cudaHostRegister(buffer.ctypes.data, buffer.nbytes, 0)
            if int(status) != 0:
                # The failure stays behind as CUDA's last error and would be blamed on the
                # next launch. torch has no way to read it but a launch, which clears it.
                with suppress(RuntimeError):
                    torch.ones(1, device=self.device)
                logger.warning(
                    "page-locking %d bytes of host memory failed (%s): copies to the GPU "
                    "will be slower; raise the locked-memory limit (ulimit -l)",
                    buffer.nbytes,
                    status,
                )
                return
            self._pinned.append(buffer)
