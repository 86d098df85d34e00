"""Answers every question about a device that is asked outside `kernels` and `stream`.

A new type of device takes a change here, in `streamkm.stream` (how rows get there) and in
`streamkm.tables` (which kernels run on it). Besides these only kernels compare device types.
"""

from __future__ import annotations

import os
import warnings

import torch

from streamkm.errors import DeviceError, Option

__all__ = ["device_name", "is_host", "memory_of", "resolve_device", "sharing", "synchronize"]


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
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            is_there = torch.cuda.is_available()
        if not is_there:
            raise DeviceError(
                Option("device", name),
                f": torch {torch.__version__} sees no CUDA GPU{_reason(said)}; use ",
                Option("device", "cpu"),
                f", or {_remedy()}",
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


def _reason(said: list[warnings.WarningMessage]) -> str:
    """What torch warns of while it looks for GPUs, such as a driver that is too old: a sentence."""
    first = str(said[0].message).partition("(Triggered")[0] if said else ""
    # Advice follows, and where to download what.
    sentence = " ".join(first.split()).partition(". ")[0].rstrip(".")
    return f" ({sentence})" if sentence else ""


def _remedy() -> str:
    """How GPUs that are there can be made to be seen."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and not hidden.strip(" ,"):
        return "unset CUDA_VISIBLE_DEVICES, which is empty and hides every GPU"
    if hidden is not None:
        return f"check CUDA_VISIBLE_DEVICES, which is {hidden}, and the driver (nvidia-smi)"
    return "check the driver (nvidia-smi) and torch's build"


def is_host(device: torch.device) -> bool:
    """Whether `device` is the host, whose tensors lie in host memory and give values at once.

    Elsewhere, asking for a value waits for all queued work.
    """
    return device.type == "cpu"


def memory_of(device: torch.device) -> tuple[int, int] | None:
    """Bytes of a GPU that are free for this process, and all that it has; of a slice, the slice's.

    None of a device that has no memory of its own.

    Raises
    ------
    DeviceError
        If the GPU does not answer.
    """
    if device.type != "cuda":
        return None
    try:
        free, total = torch.cuda.mem_get_info(device)
        # What torch holds from earlier work it uses again.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise DeviceError(
            Option("device", str(device)),
            f" does not answer: {said}; check it (nvidia-smi), or use ",
            Option("device", "cpu"),
        ) from error
    return free, total


def sharing(device: torch.device, n_processes: int) -> int:
    """Processes that share `device`, at most, of `n_processes` on this machine."""
    n_devices = torch.cuda.device_count() if device.type == "cuda" else 1
    return -(-n_processes // n_devices)


def synchronize(device: torch.device) -> None:
    """Wait for all work that is queued on `device`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """The model of a GPU, or the type of any other device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
