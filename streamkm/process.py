"""Prepares the process of a command, before torch is imported.

These settings concern the whole process, so a program makes them and a library does not.
"""

from __future__ import annotations

import ctypes
import gc
import os

__all__ = ["prepare_process"]

#: Bytes from which on a block of memory is mapped by itself.
LARGE_BLOCK_BYTES = 4 << 20
#: Containers made and not yet freed after which Python looks for cycles among the newest, and how
#: often it then looks among older ones. Those of torch, some 400,000, take a tenth of a second.
GC_THRESHOLDS = (50_000, 20, 100)
#: glibc's numbers of two options of `mallopt`.
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8


def prepare_process(most_threads: int | None = None) -> None:
    """Return freed memory to the system, let threads share the cores, and seldom look for cycles.

    Arithmetic uses `most_threads` threads at most, unless the user has said how many.
    """
    _give_back_large_blocks()
    gc.set_threshold(*GC_THRESHOLDS)
    # Readers share the cores with OpenMP's threads. By default these spin long at every barrier
    # for a thread that has no core: beside other work the arithmetic took twice as long. On a
    # quiet machine it takes half as long again if they do not spin at all. libgomp reads the
    # variable once, when torch is imported; a value that the user has set stays.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # OpenMP sees an affinity, but no quota of a control group: threads beyond it only wait.
    if most_threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(most_threads))


def _give_back_large_blocks() -> None:
    """Make glibc return large blocks to the system as soon as they are freed.

    By default glibc keeps them in one arena per thread that freed any: decoding chunks in a pool
    of threads then takes several times the memory in use. With a single arena the next thread
    uses a block of up to 4 MiB again; to map those afresh each time would cost a tenth of a fit.
    Does nothing where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_ARENA_MAX, 1)
    mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
