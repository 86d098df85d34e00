"""The compiled extension, if installing streamkm could build it.

Its functions take addresses, and only ``kernels.ops`` and ``kernels.exact`` call them. Whoever
hands tensors to them must check dtype and shape and keep the tensors alive.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, nullcontext
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
    "torch_alone_after_fork",
]

#: Without these options pip keeps what is installed, or reinstalls the wheel it built before.
HOW_TO_BUILD = (
    "with a compiler, install streamkm again (pip install --force-reinstall --no-deps "
    "--no-cache-dir)"
)
#: Products from which on more than one thread is used: of fewer, waking a second costs more
#: than it saves.
MIN_PARALLEL_PRODUCTS = 1 << 20


class InstructionSet(NamedTuple):
    """One of the instruction sets that the extension was compiled for."""

    name: str
    number: int
    float32_panel: int
    """Centroids that are scored at once, in float32."""
    float64_panel: int
    """Centroids that are scored at once, in float64."""
    bytes_panel: int
    """Centroids that are screened in whole numbers at once; 0 if that would not be faster."""
    bits: int
    """Bits of these numbers, 8 or 16."""

    @property
    def functions(self) -> Any:
        """The extension."""
        return _cpu


@cache
def instruction_sets() -> Sequence[InstructionSet]:
    """The instruction sets that this processor has, best first; none without the extension."""
    return () if _cpu is None else tuple(InstructionSet(*each) for each in _cpu.instruction_sets())


@cache
def stored_types() -> dict[torch.dtype, int]:
    """The extension's number of each dtype that rows may be stored in."""
    assert _cpu is not None
    return {getattr(torch, name): number for number, name in enumerate(_cpu.stored_types())}


def address(tensor: torch.Tensor | None) -> int:
    """Address of the data of `tensor`, for the extension; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def can_weigh(weights_S: torch.Tensor | None, n_rows: int) -> bool:
    """Whether these may go to the extension, which checks nothing, as weights of `n_rows` rows."""
    return weights_S is None or (weights_S.dtype == torch.float64 and weights_S.shape == (n_rows,))


def n_threads_for(n_products: int) -> int:
    """Threads for this work: one, or as many as torch has (or had, see `cores_for_kernels`)."""
    if n_products < MIN_PARALLEL_PRODUCTS:
        return 1
    return _cores.n_threads or torch.get_num_threads()


class _Cores:
    """Counts who holds the cores for kernels, and remembers torch's number of threads."""

    def __init__(self, *, is_forked: bool = False) -> None:
        self.is_forked = is_forked
        """Whether this process was forked from one that had imported the package."""
        self._lock = threading.Lock()
        self._n_holders = 0
        self._of_thread = threading.local()
        self.n_threads = 0
        """Torch's threads before the first holder; 0 while nobody holds the cores."""

    def take(self) -> None:
        with self._lock:
            if self._n_holders == 0:
                self.n_threads = torch.get_num_threads()
            self._n_holders += 1
        self._of_thread.depth = getattr(self._of_thread, "depth", 0) + 1
        torch.set_num_threads(1)

    def give_back(self) -> None:
        self._of_thread.depth -= 1
        with self._lock:
            # torch keeps a number for each thread of the program: each restores its own.
            if self._of_thread.depth == 0:
                torch.set_num_threads(self.n_threads)
            self._n_holders -= 1
            if self._n_holders == 0:
                self.n_threads = 0


_cores = _Cores()


def _begin_anew() -> None:
    """In a forked child: its parent's lock may be locked, and its holders are not here."""
    global _cores
    _cores = _Cores(is_forked=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


@contextmanager
def cores_for_kernels(kernel: str) -> Iterator[None]:
    """Give torch's threads to the kernels: torch keeps one, if `kernel` is the compiled one.

    After each shared operation the threads of OpenMP spin for milliseconds, on cores that the
    threads of the kernels could use: with states of 100,000 numbers a batch took a fifth
    longer. Several threads may enter at once.
    """
    with _held(_cores) if kernel == "cpu" else nullcontext():
        yield


@contextmanager
def torch_alone_after_fork() -> Iterator[None]:
    """In a forked child keep torch to one thread; in any other process do nothing.

    A child has none of its parent's threads, and OpenMP, with which torch shares its
    operations, would wait for them without end. The kernels' own threads are started anew.
    """
    with _held(_cores) if _cores.is_forked else nullcontext():
        yield


@contextmanager
def _held(cores: _Cores) -> Iterator[None]:
    cores.take()
    try:
        yield
    finally:
        cores.give_back()
