"""Arithmetic on one batch of rows: tensors in, tensors out."""

from streamkm.kernels.base import Assignment, Kernel, Rows, TwoNearest
from streamkm.kernels.cpu import CpuKernel
from streamkm.kernels.distances import (
    sq_distances_between,
    sq_distances_to,
    sq_distances_with,
)
from streamkm.kernels.reference import ReferenceKernel, add_by_label
from streamkm.kernels.select import kernel_notes, make_kernel, measuring, resolve_kernel
from streamkm.kernels.swaps import MOST_STEPS, WEIGHT_STEPS, swap_gains

__all__ = [
    "MOST_STEPS",
    "WEIGHT_STEPS",
    "Assignment",
    "CpuKernel",
    "Kernel",
    "ReferenceKernel",
    "Rows",
    "TwoNearest",
    "add_by_label",
    "kernel_notes",
    "make_kernel",
    "measuring",
    "resolve_kernel",
    "sq_distances_between",
    "sq_distances_to",
    "sq_distances_with",
    "swap_gains",
]
