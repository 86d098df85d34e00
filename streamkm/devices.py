"""Answers every question about a device that is asked outside `kernels`.

Work on a device that is not the host is queued. `Queues` is all that the rest of the package asks
of such a device: queues, events by which one waits for another, and memory that copies can reach
beside the arithmetic. CUDA calls its queues streams. A new type of device takes a class and a line
in `QUEUES`, and what `streamkm.tables` says of the kernels that run on it. Besides these only
kernels compare device types.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import torch

from streamkm.errors import DeviceError, Option

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import numpy as np

__all__ = [
    "QUEUES",
    "CudaQueues",
    "Event",
    "Queue",
    "Queues",
    "device_name",
    "is_host",
    "queues_of",
    "resolve_device",
    "synchronize",
]


class Event(Protocol):
    """A mark in a queue. Before it is recorded it holds nothing up."""

    def record(self, queue: Any) -> None:
        """Put the mark behind all that is in `queue`; it forgets where it was."""

    def synchronize(self) -> None:
        """Let the host wait until all before the mark is done."""

    def query(self) -> bool:
        """Whether all before the mark is done."""

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from this mark to `end`, if both were made to be timed and have passed."""


class Queue(Protocol):
    """Work that a device does in the order in which it was queued, beside that of other queues."""

    def wait_event(self, event: Any) -> None:
        """Let all that is queued from now on wait for `event`, where it is recorded now."""

    def wait_stream(self, other: Any) -> None:
        """Let all that is queued from now on wait for all that is in `other` now."""

    def synchronize(self) -> None:
        """Let the host wait for all that is in the queue."""


class Queues(Protocol):
    """The queues of one device, and host memory that it copies from and to beside its work."""

    def current(self) -> Queue:
        """The queue that operations of torch go to."""

    def new(self) -> Queue:
        """Another queue."""

    def event(self, *, timed: bool = False) -> Event:
        """A new event."""

    def within(self, queue: Any) -> AbstractContextManager[Any]:
        """Operations of torch in a ``with`` block go to `queue`."""

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Page-locked memory of torch's own."""

    def lock(self, buffer: np.ndarray) -> str:
        """Page-lock `buffer`; why that was refused, or an empty string."""

    def unlock(self, buffer: np.ndarray) -> None:
        """Undo `lock`."""

    def synchronize(self) -> None:
        """Let the host wait for all that is in any queue."""


class CudaQueues:
    """CUDA's streams and events; see `Queues`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def current(self) -> torch.cuda.Stream:
        """See `Queues`."""
        return torch.cuda.current_stream(self._device)

    def new(self) -> torch.cuda.Stream:
        """See `Queues`."""
        return torch.cuda.Stream(self._device)

    def event(self, *, timed: bool = False) -> torch.cuda.Event:
        """See `Queues`."""
        return torch.cuda.Event(enable_timing=timed)

    def within(self, queue: torch.cuda.Stream) -> AbstractContextManager[Any]:
        """See `Queues`."""
        return torch.cuda.stream(queue)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See `Queues`."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def lock(self, buffer: np.ndarray) -> str:
        """See `Queues`."""
        with torch.cuda.device(self._device):
            status = torch.cuda.cudart().cudaHostRegister(buffer.ctypes.data, buffer.nbytes, 0)
        if int(status) == 0:
            return ""
        # The failure stays CUDA's last error, and the next launch would raise it. torch can clear
        # it only by a launch.
        with suppress(RuntimeError):
            torch.ones(1, device=self._device)
        return str(status)

    def unlock(self, buffer: np.ndarray) -> None:
        """See `Queues`."""
        with torch.cuda.device(self._device):
            torch.cuda.cudart().cudaHostUnregister(buffer.ctypes.data)

    def synchronize(self) -> None:
        """See `Queues`."""
        torch.cuda.synchronize(self._device)


#: How to get at the queues of a device, by its type; the host has none.
QUEUES: dict[str, Callable[[torch.device], Queues]] = {"cuda": CudaQueues}


def queues_of(device: torch.device) -> Queues | None:
    """The queues of `device`; None for the host, which does at once what it is asked."""
    return None if is_host(device) else QUEUES[device.type](device)


def resolve_device(
    name: str, types: tuple[str, ...] = ("cpu", "cuda"), user: str = ""
) -> torch.device:
    """The device that ``--device`` names; ``auto`` is a GPU if torch sees one, else the CPU.

    It is the CPU too if `user`, as a message names it, runs on devices of other `types`.

    Raises
    ------
    DeviceError
        If torch sees no such device, or `user` does not run there.
    """
    if name == "auto":
        name = "cuda" if "cuda" in types and torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type not in types:
        raise DeviceError(
            Option("device", name),
            f": {user} runs on {' or '.join(types)} alone; use ",
            Option("device", types[0]),
        )
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(
                Option("device", name),
                f": torch {torch.__version__} sees no CUDA GPU; use ",
                Option("device", "cpu"),
                ", or check the driver (nvidia-smi) and torch's build",
            )
        n_gpus = torch.cuda.device_count()
        index = device.index or 0
        if index >= n_gpus:
            there_are = f": there are {n_gpus} GPUs, counted from 0"
            raise DeviceError(Option("device", name), there_are)
        device = torch.device("cuda", index)
        try:
            torch.cuda.init()
        except RuntimeError as error:
            # In a forked child, for one: its message names spawn as the way to start processes.
            because = f" cannot be used in this process: {' '.join(str(error).split())}"
            raise DeviceError(Option("device", name), because) from error
    return device


def is_host(device: torch.device) -> bool:
    """Whether `device` is the host, whose tensors lie in host memory and give values at once.

    Elsewhere, asking for a value waits for all queued work.
    """
    return device.type == "cpu"


def synchronize(device: torch.device) -> None:
    """Wait for all work that is queued on `device`."""
    queues = queues_of(device)
    if queues is not None:
        queues.synchronize()


def device_name(device: torch.device) -> str:
    """The model of a GPU, or the type of any other device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
