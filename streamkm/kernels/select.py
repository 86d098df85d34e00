"""Which kernel does the arithmetic: the one that is asked for, or what suits the device.

A kernel is added by one line in `_MAKERS`, and by its name in ``config.KERNELS``.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from streamkm.errors import DeviceError, Option
from streamkm.kernels.cpu import CpuKernel
from streamkm.kernels.extension import HOW_TO_BUILD, WHY_MISSING, instruction_sets
from streamkm.kernels.reference import ReferenceKernel

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from streamkm.kernels.base import Kernel

__all__ = ["kernel_notes", "make_kernel", "resolve_kernel"]


def resolve_kernel(name: str, device: torch.device) -> str:
    """The kernel that ``--kernel`` asks for: `name`, or for ``auto`` the fastest on `device`.

    Raises
    ------
    DeviceError
        If `name` is not ``auto`` and that kernel does not run on `device`.
    """
    if name == "auto":
        # torch's builds for CUDA bring Triton along on Linux; elsewhere there may be none.
        if device.type == "cuda" and _has_triton():
            return "triton"
        return "cpu" if device.type == "cpu" and instruction_sets() else "reference"
    if name == "cpu":
        CpuKernel.check(device)
    if name == "triton" and device.type != "cuda":
        raise DeviceError(
            Option("kernel", "triton"),
            f" needs a CUDA GPU, the device is {device.type}; use ",
            Option("kernel", "auto"),
            " or ",
            Option("device", "cuda"),
        )
    if name == "triton" and not _has_triton():
        why = ": Triton is not installed (pip install triton)"
        raise DeviceError(Option("kernel", "triton"), why)
    return name


def kernel_notes(name: str, device: torch.device) -> list[str]:
    """What a user should know of the kernel that `name` stands for: that a faster one is missing.

    (Said by whoever runs: `pip` hides what a build says.)
    """
    if name != "auto" or device.type != "cpu" or resolve_kernel(name, device) == "cpu":
        return []
    cost = "without it arithmetic takes two to three times as long"
    return [f"the compiled CPU kernel {WHY_MISSING}; {cost}; {HOW_TO_BUILD}"]


def make_kernel(
    name: str,
    batch_rows: int,
    k: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    precision: str = "exact",
    tune: bool = False,
) -> Kernel:
    """The kernel that ``--kernel`` asks for, with its buffers.

    Parameters
    ----------
    name : str
        As `resolve_kernel` takes it.
    batch_rows, k : int
        Rows of a batch and centroids, at most.
    dtype : torch.dtype
        Of rows and centroids, float32 or float64.
    device : torch.device
        Where they lie.
    precision : {"exact", "fast"}
        Whether rows that screening cannot tell apart are scored again.
    tune : bool
        Whether a kernel that has several ways to cut its work may time them first.
    """
    return _MAKERS[resolve_kernel(name, device)](batch_rows, k, dtype, device, precision, tune)


def measuring(kernel: Kernel) -> CpuKernel | None:
    """`kernel` if it takes rows where they lie and finds out about them; None if it does not."""
    return kernel if isinstance(kernel, CpuKernel) else None


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _make_cpu(
    batch_rows: int, k: int, dtype: torch.dtype, device: torch.device, precision: str, _: bool
) -> Kernel:
    return CpuKernel(batch_rows, k, dtype, device, precision)


def _make_reference(
    batch_rows: int, k: int, dtype: torch.dtype, device: torch.device, precision: str, _: bool
) -> Kernel:
    return ReferenceKernel(batch_rows, k, dtype, device, precision)


def _make_triton(
    batch_rows: int, k: int, dtype: torch.dtype, device: torch.device, precision: str, tune: bool
) -> Kernel:
    # Imported here: most machines without a GPU have no Triton.
    from streamkm.kernels.triton import TritonKernel

    return TritonKernel(batch_rows, k, dtype, device, precision, tune=tune)


_MAKERS: dict[str, Callable[[int, int, torch.dtype, torch.device, str, bool], Kernel]] = {
    "cpu": _make_cpu,
    "reference": _make_reference,
    "triton": _make_triton,
}
