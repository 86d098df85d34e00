"""What a kernel is given: tensors that the device code would misread are refused, or copied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["ALIGNED_BYTES", "check_given", "dense_rows"]

#: Triton compiles one kernel for addresses that are multiples of this, and another for all others.
ALIGNED_BYTES = 16


def check_given(
    x_BD: torch.Tensor,
    centroids_KD: torch.Tensor,
    batch_rows: int,
    k: int,
    taken: tuple[torch.dtype, ...],
) -> None:
    """Refuse tensors that the device code would misread, or read out of bounds.

    A kernel is made for `batch_rows` rows of the dtypes `taken`, of which the first is the dtype
    of the centroids, and for `k` centroids, or fewer of both.
    """
    n, n_features = centroids_KD.shape
    fits = 1 <= n <= k and n_features == x_BD.shape[1]
    if not fits or centroids_KD.dtype != taken[0]:
        raise InputError(
            f"centroids must be {k} x {x_BD.shape[1]} at most, {taken[0]}, for these "
            f"rows; they are {n} x {n_features}, {centroids_KD.dtype}"
        )
    if x_BD.dtype not in taken:
        raise InputError(
            f"rows must be one of {taken} beside {taken[0]} centroids, not {x_BD.dtype}"
        )
    if len(x_BD) > batch_rows:
        raise InputError(
            f"a batch has at most the {batch_rows:,} rows that the kernel was made for, "
            f"not {len(x_BD):,}"
        )


def dense_rows(x_BD: torch.Tensor) -> torch.Tensor:
    """`x_BD`, or a copy whose features lie side by side, from an address the kernels are made for.

    Rows that begin elsewhere would be another kernel to Triton, compiled in the middle of a run.
    """
    if x_BD.stride(1) != 1:
        return x_BD.contiguous()
    return x_BD if x_BD.data_ptr() % ALIGNED_BYTES == 0 else x_BD.clone()
