"""Arithmetic on one batch of rows: tensors in, tensors out."""

from streamkm.kernels.base import Assignment, Kernel, Rows, TwoNearest
from streamkm.kernels.distances import (
    exact_sq_distances,
    sq_distances_between,
    sq_distances_to,
)
from streamkm.kernels.reference import ReferenceKernel, add_by_label
from streamkm.kernels.select import make_kernel, resolve_kernel

__all__ = [
    "Assignment",
    "Kernel",
    "ReferenceKernel",
    "Rows",
    "TwoNearest",
    "add_by_label",
    "exact_sq_distances",
    "make_kernel",
    "resolve_kernel",
    "sq_distances_between",
    "sq_distances_to",
]
