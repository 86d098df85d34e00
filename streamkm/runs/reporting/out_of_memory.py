"""Turns a failed allocation, on the host or the device, into one kind of error, and a lost GPU too.

Libraries raise several: NumPy and Python a MemoryError, torch's allocators a RuntimeError, the
C++ below them bad_alloc, mmap an OSError with ENOMEM. One from a source's library may be the
cause of a `ReadError`. The memory plan keeps to its budget, so either other programs hold the
memory that is missing, or the plan does not count it.

A GPU that fails reports it late, at whatever call comes next. No later call of the process
succeeds, so nothing is tried again: the run ends, and goes on from what was saved.
"""

from __future__ import annotations

import errno
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from streamkm.errors import AllocationError, DeviceLostError, Option, SourceError, StreamkmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["memory_told"]

#: Texts, in lower case, of a RuntimeError that means a failed allocation.
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
#: Text of a failed allocation on the device, whether torch, CUDA or Triton raised it.
_DEVICE_SIGN = "cuda"
#: Texts, in lower case, of a RuntimeError that means a GPU that failed.
_LOST_SIGNS = ("cuda error", "cublas_status", "cuda driver error")
#: Text of the error for a thread that cannot start: its stack is memory too.
_THREAD_SIGN = "can't start new thread"


@contextmanager
def memory_told(doing: Callable[[], str], *, resumable: bool) -> Iterator[None]:
    """Turn a failed allocation in a ``with`` block into an AllocationError that says where it was.

    A failure of the GPU becomes a DeviceLostError.

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
    DeviceLostError
        In place of the error of a GPU that failed.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError, SourceError) as error:
        # streamkm's other errors name their reason; a SourceError may have memory as its cause.
        is_explained = isinstance(error, StreamkmError) and not isinstance(error, SourceError)
        if is_explained:
            raise
        refusal = _first(error, _is_refusal)
        if refusal is not None:
            raise _allocation_error(doing(), refusal, resumable=resumable) from error
        lost = _first(error, _is_loss)
        if lost is not None:
            raise _device_error(doing(), lost, resumable=resumable) from error
        raise


def _first(
    error: BaseException | None, means: Callable[[BaseException], bool]
) -> BaseException | None:
    """The first of `error` and its causes of which `means` is true; None if it is of none."""
    while error is not None and not means(error):
        error = error.__cause__
    return error


def _is_refusal(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    is_sign = any(sign in said for sign in (*_SIGNS, _THREAD_SIGN))
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_sign)


def _is_loss(error: BaseException) -> bool:
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in said for sign in _LOST_SIGNS)


def _allocation_error(doing: str, refusal: BaseException, *, resumable: bool) -> AllocationError:
    said = str(refusal)
    if _DEVICE_SIGN in said.lower():
        remedy: list[str | Option] = [
            "free the GPU's memory (nvidia-smi tells who holds it), set a smaller ",
            Option("max_device_memory"),
            ", or use ",
            Option("device", "cpu"),
        ]
    else:
        remedy = [
            "free memory that other programs hold, or set a smaller ",
            Option("max_host_memory"),
        ]
    said = f"out of memory while {doing} ({_in_words(said)}); "
    return AllocationError(said, *remedy, *_then(resumable=resumable))


def _device_error(doing: str, lost: BaseException, *, resumable: bool) -> DeviceLostError:
    first, *_ = str(lost).strip().splitlines()
    remedy = "check it (nvidia-smi; dmesg, where it is allowed), or use "
    return DeviceLostError(
        f"the GPU failed while {doing} ({first}); ",
        remedy,
        Option("device", "cpu"),
        *_then(resumable=resumable),
    )


def _then(*, resumable: bool) -> list[str | Option]:
    if resumable:
        return [", then repeat with ", Option("resume", value=True), ": what was saved is intact"]
    return [", then repeat"]


def _in_words(said: str) -> str:
    """The reason in a library's message, without its source lines and stack."""
    amount = re.search(r"(?i)(?:tried|unable) to allocate [\d.]+ \w+", said)
    if amount is not None:
        return amount[0][0].lower() + amount[0][1:]
    if _THREAD_SIGN in said.lower():
        return "no thread could be started"
    return "an allocation was refused"
