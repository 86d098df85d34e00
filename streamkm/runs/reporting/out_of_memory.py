"""Memory that the system, or the device, refuses: one error for the many that libraries raise.

NumPy and Python raise MemoryError, torch's allocators RuntimeError, C++ below them bad_alloc,
mmap ENOMEM; and what a source's library raises may come as the cause of a `ReadError`. The
memory plan keeps to its budget, so that what is refused is held by others, or is no part of it.
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

#: What a RuntimeError says, in lower case, that is one of memory.
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
#: Of the device's, whoever of torch, CUDA and Triton says it.
_DEVICE_SIGN = "cuda"
#: The stack of a thread is memory too.
_THREAD_SIGN = "can't start new thread"


@contextmanager
def memory_told(doing: Callable[[], str], *, resumable: bool) -> Iterator[None]:
    """Tell what goes wrong within for want of memory as that.

    Parameters
    ----------
    doing : callable
        What is being done at that moment, for people.
    resumable : bool
        Whether what was saved is kept, and a repetition with ``resume`` goes on from it.

    Raises
    ------
    AllocationError
        Instead of what told so.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError, SourceError) as error:
        # A SourceError may have any cause; of others of ours what they say is what is wrong.
        is_told = isinstance(error, StreamkmError) and not isinstance(error, SourceError)
        refusal = None if is_told else _refusal(error)
        if refusal is None:
            raise
        raise _allocation_error(doing(), refusal, resumable=resumable) from error


def _refusal(error: BaseException | None) -> BaseException | None:
    """The first of an error and its causes that is about memory."""
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
    """What a library says of an allocation, without its source lines and stack."""
    amount = re.search(r"(?i)(?:tried|unable) to allocate [\d.]+ \w+", said)
    if amount is not None:
        return amount[0][0].lower() + amount[0][1:]
    if _THREAD_SIGN in said.lower():
        return "no thread could be started"
    return "an allocation was refused"
