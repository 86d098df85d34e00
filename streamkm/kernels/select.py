"""Selects a kernel: the one that ``--kernel`` names, or the best that runs on the device."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from streamkm.errors import DeviceError, Option
from streamkm.kernels.extension import HOW_TO_BUILD, WHY_MISSING
from streamkm.tables import KERNELS, load_class

if TYPE_CHECKING:
    import torch

    from streamkm.kernels.base import Kernel, KernelRequest

__all__ = ["kernel_notes", "make_kernel", "resolve_kernel"]

_DEVICES = {"cpu": "the CPU", "cuda": "a CUDA GPU"}


def resolve_kernel(name: str, device: torch.device) -> str:
    """Name of the kernel that ``--kernel`` asks for: `name`, or for ``auto`` the first that runs.

    Raises
    ------
    DeviceError
        If `name` is not ``auto`` and the kernel does not run on `device`.
    """
    if name == "auto":
        return next(candidate for candidate in KERNELS if _runs(candidate, device))
    _check(name, device)
    return name


def kernel_notes(name: str, device: torch.device) -> list[str]:
    """A note for the log if ``auto`` misses the compiled CPU kernel; otherwise nothing.

    The run must say it, since `pip` hides the messages of a build.
    """
    if name != "auto" or device.type != "cpu" or resolve_kernel(name, device) == "cpu":
        return []
    cost = "without it assigning rows takes 2.5 to 5 times as long"
    return [f"the compiled CPU kernel {WHY_MISSING}; {cost}; {HOW_TO_BUILD}"]


def make_kernel(name: str, request: KernelRequest) -> Kernel:
    """The kernel that `resolve_kernel` selects for `name`, with its buffers."""
    entry = KERNELS[resolve_kernel(name, request.device)]
    made: Kernel = load_class(entry.home).make(request)
    return made


def _runs(name: str, device: torch.device) -> bool:
    if device.type not in KERNELS[name].devices:
        return False
    try:
        _check(name, device)
    except DeviceError:
        return False
    return True


def _check(name: str, device: torch.device) -> None:
    """Raise a DeviceError if the kernel `name` does not run on `device`."""
    entry, kernel = KERNELS[name], Option("kernel", name)
    if device.type not in entry.devices:
        needed = entry.devices[0]
        raise DeviceError(
            kernel,
            f" needs {_DEVICES[needed]}, the device is {device.type}; use ",
            Option("kernel", "auto"),
            " or ",
            Option("device", needed),
        )
    if entry.package is not None and not _is_installed(entry.package):
        title = entry.package.capitalize()
        raise DeviceError(kernel, f": {title} is not installed (pip install {entry.package})")
    load_class(entry.home).check(device)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
