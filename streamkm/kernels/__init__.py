"""Arithmetic on one batch of rows: tensors in, tensors out."""

from streamkm.kernels.base import Assignment, Kernel
from streamkm.kernels.reference import ReferenceKernel, sq_distances_to
from streamkm.kernels.select import make_kernel, resolve_kernel

__all__ = [
    "Assignment",
    "Kernel",
    "ReferenceKernel",
    "make_kernel",
    "resolve_kernel",
    "sq_distances_to",
]
