"""Names what a run does for profilers such as Nsight Systems: ranges of NVTX, in every thread.

They are off unless a run asks for them. `named` is then one look-up and an empty ``with`` block, a
few per batch. Whether they are on is known to the whole process, since reader threads and kernels
know nothing of the run that they work for.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from streamkm.errors import DeviceError, Option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

__all__ = ["RANGES", "named", "shown"]

#: Every name that is used.
RANGES = ("read", "copy", "assign", "move", "checkpoint")

_NOTHING = nullcontext()
_opened: list[Callable[[str], AbstractContextManager[Any]]] = []


def named(name: str) -> AbstractContextManager[Any]:
    """Show a ``with`` block under one of `RANGES`, if ranges are shown."""
    return _opened[-1](name) if _opened else _NOTHING


@contextmanager
def shown(*, wanted: bool) -> Iterator[None]:
    """Show the ranges of a ``with`` block, if that is `wanted`.

    Raises
    ------
    DeviceError
        If torch was built without NVTX.
    """
    if not wanted:
        yield
        return
    from torch.cuda import nvtx

    try:
        with nvtx.range("streamkm"):
            pass
    except RuntimeError as error:
        raise DeviceError(
            Option("nvtx", value=True),
            " needs torch built for CUDA, which alone has NVTX; leave it out",
        ) from error
    _opened.append(nvtx.range)
    try:
        yield
    finally:
        _opened.pop()
