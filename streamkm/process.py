"""What a command sets for its own process, before torch is imported.

Both concern the whole process, so they are for programs to call, not for libraries.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["prepare_process"]

#: From this size on a block of memory is mapped by itself; the options' numbers in glibc.
LARGE_BLOCK_BYTES, M_MMAP_THRESHOLD, M_ARENA_MAX = 4 << 20, -3, -8


def prepare_process() -> None:
    """Make freed memory go back to the system, and waiting threads leave their cores to others."""
    _give_back_large_blocks()
    # Readers share the cores with OpenMP's threads, which by default spin long at every
    # barrier for one that has no core: beside other work arithmetic took twice as long.
    # (Not spinning at all costs half again on a quiet machine.) Read once, when torch is
    # imported; what the user has set stays.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _give_back_large_blocks() -> None:
    """Make the C library return large blocks to the system as soon as they are freed.

    glibc otherwise keeps them, in an arena for every thread that ever freed one: decoding
    chunks in a pool of threads then takes several times what is in use. With a single arena,
    blocks up to a few MiB are used again by whichever thread comes next; to map those afresh
    each time would cost a tenth of a fit. Does nothing where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_ARENA_MAX, 1)
    mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
