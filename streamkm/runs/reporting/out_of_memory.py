"""Turns a failed allocation, on the host or the device, into one kind of error.

Libraries raise several: NumPy and Python a MemoryError, torch's allocators a RuntimeError, the
C++ below them bad_alloc, mmap an OSError with ENOMEM. One from a source's library may be the
cause of a `ReadError`. The memory plan keeps to its budget, so either other programs hold the
memory that is missing, or the plan does not count it.
"""

from __future__ import annotations

import errno
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from streamkm.errors import AllocationError, Option, SourceError, StreamkmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["memory_told"]

#: Texts, in lower case, of a RuntimeError that means a failed allocation.
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
#: Text of a failed allocation on the device, whether torch, CUDA or Triton raised it.
_DEVICE_SIGN = "cuda"
#: Text of the error for a thread that cannot start: its stack is memory too.
_THREAD_SIGN = "can't start new thread"


@contextmanager
def memory_told(doing: Callable[[], str], *, resumable: bool) -> Iterator[None]:
    """Turn a failed allocation in a ``with`` block into an AllocationError that says where it was.

    Parameters
    ----------
    doing : callable
        Returns what the program is doing: "labelling, after row 4,096", for example.
    resumable : bool
        Whether saved work is kept, so that the error advises to repeat with ``resume``.

    Raises
    ------
    AllocationError
        In place of the error that means a failed allocation; that one is its cause.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError, SourceError) as error:
        # streamkm's other errors name their reason; a SourceError may have memory as its cause.
        is_explained = isinstance(error, StreamkmError) and not isinstance(error, SourceError)
        refusal = None if is_explained else _refusal(error)
        if refusal is None:
            raise
        raise _allocation_error(doing(), refusal, resumable=resumable) from error


def _refusal(error: BaseException | None) -> BaseException | None:
    """The first of `error` and its causes that means a failed allocation; None if none does."""
    while error is not None and not _is_refusal(error):
        error = error.__cause__
    return error


def _is_refusal(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    is_sign = any(sign in said for sign in (*_SIGNS, _THREAD_SIGN))
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_sign)


def _allocation_error(doing: str, refusal: BaseException, *, resumable: bool) -> AllocationError:
    said = str(refusal)
    if _DEVICE_SIGN in said.lower():
        remedy: list[str | Option] = [
            "free the GPU's memory (nvidia-smi tells who holds it), or use ",
            Option("device", "cpu"),
        ]
    else:
        remedy = [
            "free memory that other programs hold, or set a smaller ",
            Option("max_host_memory"),
        ]
    then: list[str | Option] = [", then repeat"]
    if resumable:
        then = [", then repeat with ", Option("resume", value=True), ": what was saved is intact"]
    return AllocationError(f"out of memory while {doing} ({_in_words(said)}); ", *remedy, *then)


def _in_words(said: str) -> str:
    """The reason in a library's message, without its source lines and stack."""
    amount = re.search(r"(?i)(?:tried|unable) to allocate [\d.]+ \w+", said)
    if amount is not None:
        return amount[0][0].lower() + amount[0][1:]
    if _THREAD_SIGN in said.lower():
        return "no thread could be started"
    return "an allocation was refused"
