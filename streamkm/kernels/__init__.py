"""Arithmetic on one batch of rows: tensors in, tensors out."""

from streamkm.kernels.base import Assignment, Kernel
from streamkm.kernels.reference import ReferenceKernel, sq_distances_to

__all__ = ["Assignment", "Kernel", "ReferenceKernel", "sq_distances_to"]
