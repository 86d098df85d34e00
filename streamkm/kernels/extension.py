"""The compiled half of the kernels, where installing streamkm could build it.

Its functions take addresses; whoever calls them answers for dtype, shape and lifetime.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

try:
    _cpu: Any = import_module("streamkm.kernels._cpu")
    WHY_MISSING = ""
except ModuleNotFoundError:
    _cpu = None
    WHY_MISSING = (
        "was not built when streamkm was installed: that takes a C++ compiler and Python's headers"
    )
except ImportError as error:
    _cpu = None
    WHY_MISSING = f"cannot be loaded ({error})"

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "HOW_TO_BUILD",
    "WHY_MISSING",
    "InstructionSet",
    "address",
    "can_weigh",
    "cores_for_kernels",
    "instruction_sets",
    "n_threads_for",
    "stored_types",
]

#: (Without those options pip keeps what is installed, or installs again what it built before.)
HOW_TO_BUILD = (
    "with a compiler, install streamkm again (pip install --force-reinstall --no-deps "
    "--no-cache-dir)"
)
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


def address(tensor: torch.Tensor | None) -> int:
    """Where the numbers of `tensor` lie, as the extension is told; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def can_weigh(weights_S: torch.Tensor | None, n_rows: int) -> bool:
    """Whether the extension takes these as the weights of so many rows: it reads them unchecked."""
    return weights_S is None or (weights_S.dtype == torch.float64 and weights_S.shape == (n_rows,))


def n_threads_for(n_products: int) -> int:
    """Threads for so much work: one, or as many as torch has (or had, see `cores_for_kernels`)."""
    if n_products < MIN_PARALLEL_PRODUCTS:
        return 1
    return _cores.n_threads or torch.get_num_threads()


class _Cores:
    """Who holds the cores for the kernels, and how many threads torch had before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_holders = 0
        self.n_threads = 0
        """0 while nobody holds them."""

    def take(self) -> None:
        with self._lock:
            if self._n_holders == 0:
                self.n_threads = torch.get_num_threads()
            self._n_holders += 1
        torch.set_num_threads(1)

    def give_back(self) -> None:
        with self._lock:
            # A thread's own number is not restored by another's call: each sets its own.
            torch.set_num_threads(self.n_threads)
            self._n_holders -= 1
            if self._n_holders == 0:
                self.n_threads = 0


_cores = _Cores()


@contextmanager
def cores_for_kernels(kernel: str) -> Iterator[None]:
    """Within, if `kernel` is compiled, torch takes one thread and the kernels as many as it had.

    OpenMP's threads wait for more at full speed after each operation that they shared, for
    milliseconds, on the cores that the kernels' threads could have: with states of some
    100,000 numbers a batch took a fifth longer. May be held by several threads at once.
    """
    if kernel != "cpu":
        yield
        return
    _cores.take()
    try:
        yield
    finally:
        _cores.give_back()
