"""Plans which rows stay in memory after the first pass: on the device first, then on the host.

What the budgets of both leave is used for rows of a source that is read several times. The units
that stay are the windows of a pass in sequence, so that such a window is there as a whole or not at
all; they are spread evenly over the array (`sources.kept.Homes`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamkm.machine import available_memory
from streamkm.sources.kept import BESIDE_BLOCK, Homes
from streamkm.sources.memory import MemorySource
from streamkm.stream.tensor_source import TensorSource
from streamkm.text import format_bytes

if TYPE_CHECKING:
    from streamkm.config import ExecutionConfig
    from streamkm.runs.planning.device_memory import DeviceMemoryPlan
    from streamkm.runs.planning.memory import MemoryPlan
    from streamkm.sources.base import Source
    from streamkm.stream.plan import ReadingPlan

__all__ = ["ResidencyPlan", "plan_residency"]

#: Where no option sets a budget, part of the memory that is free just now that rows may take, for
#: all processes: other programs need some, too.
FREE_PART = 2


@dataclass(frozen=True, slots=True)
class ResidencyPlan:
    """Which rows stay where once they were read."""

    device: Homes
    host: Homes
    row_bytes: int

    @property
    def read_share(self) -> float:
        """The share of the rows that each pass but the first reads again."""
        return 1 - (self.device.kept_rows + self.host.kept_rows) / self.host.n_rows

    @property
    def copied_share(self) -> float:
        """The share of the rows that each pass but the first brings to the device."""
        return 1 - self.device.kept_rows / self.host.n_rows

    def __str__(self) -> str:
        n_rows = self.host.n_rows
        places = [("on the device", self.device), ("in host memory", self.host)]
        parts = [
            f"{format_bytes(homes.kept_rows * self.row_bytes)} {where} "
            f"({_share(homes.kept_rows, n_rows)})"
            for where, homes in places
            if homes.n_kept
        ]
        left = n_rows - self.device.kept_rows - self.host.kept_rows
        if not parts:
            return f"nothing; each pass reads {format_bytes(n_rows * self.row_bytes)}"
        if left:
            parts.append(f"each pass reads the other {format_bytes(left * self.row_bytes)}")
        return ", ".join(parts)


def plan_residency(
    source: Source,
    reading: ReadingPlan,
    execution: ExecutionConfig,
    memory: MemoryPlan,
    device_memory: DeviceMemoryPlan | None,
    *,
    n_passes: int,
    n_processes: int = 1,
) -> ResidencyPlan | None:
    """What stays of `source` in a run of `n_passes`; None if nothing is gained by it.

    That is so of rows that lie in memory anyway, and of a single pass. `memory` and
    `device_memory` are the plans of all else. `n_processes` share the host's memory.
    """
    if isinstance(source, MemorySource | TensorSource) or n_passes < 2:
        return None
    spec = source.spec
    unit_rows = reading.in_sequence().window_rows
    n_units = -(-spec.n_rows // unit_rows)

    def fitting(n_bytes: int) -> int:
        n_bytes -= BESIDE_BLOCK * reading.n_blocks
        is_all = n_bytes >= spec.nbytes
        return n_units if is_all else max(n_bytes, 0) // (unit_rows * spec.row_bytes)

    n_device = fitting(device_memory.free_bytes) if device_memory is not None else 0
    free = memory.budget - memory.total_bytes
    if execution.max_host_memory is None:
        free = min(free, available_memory() // FREE_PART // n_processes)
    device = Homes(spec.n_rows, unit_rows, n_device)
    host = Homes(spec.n_rows, unit_rows, min(fitting(free), n_units - n_device), device)
    return ResidencyPlan(device, host, spec.row_bytes)


def _share(n_rows: int, n_all: int) -> str:
    return f"all {n_all:,} rows" if n_rows == n_all else f"{n_rows / n_all:.0%} of the rows"
