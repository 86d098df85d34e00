"""The plan of a GPU's memory: two windows, the arithmetic, and what is left for rows that stay.

A run is refused before it reads a row if the card has too little free memory for it. On the CPU
there is no such plan: all memory is the host's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamkm.devices import memory_of
from streamkm.errors import MemoryBudgetError, Option
from streamkm.stream.slots import slot_bytes
from streamkm.stream.transfer import N_DEVICE_SLOTS, ORDER_BYTES
from streamkm.text import format_bytes

if TYPE_CHECKING:
    import torch

    from streamkm.config import ExecutionConfig
    from streamkm.sources.base import ArraySpec
    from streamkm.stream.plan import ReadingPlan

__all__ = ["DeviceMemoryPlan", "plan_device_memory"]

#: Bytes that the matrix library and compiled kernels take on first use.
RUNTIME_BYTES = 128 << 20
#: Part of the free memory that is left: allocators round up, and leave gaps.
LEFT_PART = 16


@dataclass(frozen=True, slots=True)
class DeviceMemoryPlan:
    """Memory of one device that a run takes, beside rows that stay there."""

    window_bytes: int
    """Bytes of one of the windows on the device, with its order and weights."""
    fixed_bytes: int
    """Bytes of everything else."""
    budget: int
    """Bytes that the run may take."""

    @property
    def total_bytes(self) -> int:
        """Bytes that the run takes, at most."""
        return N_DEVICE_SLOTS * self.window_bytes + self.fixed_bytes

    @property
    def working_bytes(self) -> int:
        """Bytes of the arithmetic, without libraries."""
        return self.fixed_bytes - RUNTIME_BYTES

    @property
    def free_bytes(self) -> int:
        """What the budget leaves."""
        return self.budget - self.total_bytes

    def __str__(self) -> str:
        return (
            f"{format_bytes(self.total_bytes)} of {format_bytes(self.budget)} device memory: "
            f"windows {N_DEVICE_SLOTS} x {format_bytes(self.window_bytes)}, "
            f"arithmetic and libraries {format_bytes(self.fixed_bytes)}"
        )


def plan_device_memory(
    spec: ArraySpec,
    reading: ReadingPlan,
    execution: ExecutionConfig,
    device: torch.device,
    *,
    fixed_bytes: int,
    weighted: bool = False,
    n_processes: int = 1,
    lower: str = "",
) -> DeviceMemoryPlan | None:
    """The plan of the memory of `device`; None if it is the host.

    Parameters
    ----------
    spec, reading, execution : ArraySpec, ReadingPlan, ExecutionConfig
        The array, the order in which it is read, and the budget.
    fixed_bytes : int
        Bytes of the arithmetic.
    weighted : bool
        Whether rows have weights.
    n_processes : int
        Processes of the run that share the device.
    lower : str
        The setting that would take less memory if it were lower; empty if there is none.

    Raises
    ------
    MemoryBudgetError
        If the free memory of the device, or the budget, does not hold the run.
    DeviceError
        If the device does not answer.
    """
    found = memory_of(device)
    if found is None:
        return None
    free, total = found
    usable = (free - free // LEFT_PART) // n_processes
    given = execution.max_device_memory
    window_bytes = slot_bytes(reading.window_rows, spec.row_bytes, weighted=weighted)
    window_bytes += reading.window_rows * ORDER_BYTES
    plan = DeviceMemoryPlan(window_bytes, RUNTIME_BYTES + fixed_bytes, min(usable, given or usable))
    if plan.free_bytes >= 0:
        return plan
    remedy: list[str | Option] = ["lower ", Option(lower), ", "] if lower else []
    if given is not None and given < usable:
        raise MemoryBudgetError(
            Option("max_device_memory", format_bytes(given)),
            f" is too small: the run takes {plan}; ",
            *remedy,
            "or give at least " if lower else "give at least ",
            Option("max_device_memory", f"{-(-plan.total_bytes // (1 << 20))}MiB"),
        )
    shared = f" for each of {n_processes} processes" if n_processes > 1 else ""
    raise MemoryBudgetError(
        Option("device", str(device)),
        f" has {format_bytes(free)} of {format_bytes(total)} free, which leaves "
        f"{format_bytes(usable)}{shared}, and the run takes {plan}; ",
        *remedy,
        "free the GPU's memory (nvidia-smi tells who holds it), or use ",
        Option("device", "cpu"),
    )
