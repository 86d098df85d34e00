"""The compiled half of the kernels, where installing streamkm could build it.

Its functions take addresses; whoever calls them answers for dtype, shape and lifetime.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

try:
    _cpu: Any = import_module("streamkm.kernels._cpu")
    WHY_MISSING = ""
except ModuleNotFoundError:
    _cpu = None
    WHY_MISSING = "was not built when streamkm was installed, for want of a C++ compiler"
except ImportError as error:
    _cpu = None
    WHY_MISSING = f"cannot be loaded ({error})"

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["WHY_MISSING", "InstructionSet", "instruction_sets", "n_threads_for", "stored_types"]

#: Below this many products a second thread costs more than it brings.
MIN_PARALLEL_PRODUCTS = 1 << 20


class InstructionSet(NamedTuple):
    """One of those that the extension was compiled for."""

    name: str
    number: int
    float32_panel: int
    """Centroids that are scored at once."""
    float64_panel: int

    @property
    def functions(self) -> Any:
        """The extension."""
        return _cpu


@cache
def instruction_sets() -> Sequence[InstructionSet]:
    """Those that this processor has, best first; none where the extension was not built."""
    return () if _cpu is None else tuple(InstructionSet(*each) for each in _cpu.instruction_sets())


@cache
def stored_types() -> dict[torch.dtype, int]:
    """Number of every dtype that rows may be stored in."""
    assert _cpu is not None
    return {getattr(torch, name): number for number, name in enumerate(_cpu.stored_types())}


def n_threads_for(n_products: int) -> int:
    """Threads for so much work: one, or as many as torch has."""
    return torch.get_num_threads() if n_products >= MIN_PARALLEL_PRODUCTS else 1
