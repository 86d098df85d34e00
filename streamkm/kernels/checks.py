"""Refuses tensors that the compiled extension, given bare addresses, would go wrong with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from streamkm.kernels.base import PassSums

__all__ = ["check_adding", "check_rows", "check_sums"]


def check_rows(
    x_BD: torch.Tensor,
    positions_B: torch.Tensor | None,
    points_KD: torch.Tensor,
    of_rows_B: torch.Tensor,
    dtype: torch.dtype,
    points_dtype: torch.dtype | None = None,
    most_rows: int | None = None,
) -> None:
    """Refuse tensors beyond whose end the extension would go.

    Parameters
    ----------
    x_BD, positions_B, points_KD : Tensor
        The rows, or a window and positions in it, and centroids or sums.
    of_rows_B : Tensor
        Something of each row, of the dtype of the rows or int64.
    dtype, points_dtype : torch.dtype
        The dtype of the rows, and of the points if that is another.
    most_rows : int, optional
        Rows at most.
    """
    # Not by len() and device.type, which take five times as long: small batches feel it.
    n_window, n_features = x_BD.shape
    n_rows = n_window if positions_B is None else positions_B.shape[0]
    if most_rows is None:
        most_rows = n_rows
    if n_rows > most_rows or of_rows_B.shape[0] != n_rows:
        raise ValueError(
            f"a batch has at most {most_rows} rows here, and as many labels and norms: "
            f"not {n_rows} rows and {len(of_rows_B)}"
        )
    if points_KD.shape[1] != n_features:
        raise ValueError(
            f"rows have {n_features} features, centroids {points_KD.shape[1]}: they must agree"
        )
    if positions_B is not None and not (
        positions_B.dtype == torch.int32 and positions_B.is_contiguous()
    ):
        raise ValueError(f"positions must be int32 and contiguous, not {positions_B.dtype}")
    tensors = (x_BD, points_KD, of_rows_B)
    if n_features == 0 or not (x_BD.is_cpu and points_KD.is_cpu and of_rows_B.is_cpu):
        raise ValueError(
            f"this kernel takes rows of one feature or more on the CPU, not of {n_features} on "
            f"{', '.join(sorted({str(tensor.device) for tensor in tensors}))}"
        )
    if points_KD.dtype != (points_dtype or dtype):
        raise ValueError(f"this kernel takes no centroids or sums of {points_KD.dtype}")
    found = {x_BD.dtype, of_rows_B.dtype} - {torch.int64}
    if found != {dtype}:
        raise ValueError(f"this kernel is made for {dtype}, not {found}")


def check_sums(added: PassSums, centroids_KD: torch.Tensor) -> None:
    """Refuse sums of a pass that are not those of these centroids."""
    (k, n_features), (sums_LKD, grades_K, counts) = centroids_KD.shape, added
    of_k = (grades_K, *counts)
    if sums_LKD.shape != (2, k, n_features) or any(each.shape != (k,) for each in of_k):
        raise ValueError(
            f"sums must be of shape (2, {k}, {n_features}), grades and counts of ({k},), not "
            f"{tuple(sums_LKD.shape)} and {[tuple(each.shape) for each in of_k]}"
        )
    if not all(each.dtype == torch.int64 and each.is_contiguous() for each in (sums_LKD, *of_k)):
        raise ValueError("sums, grades and counts must be int64 and contiguous")


def check_adding(
    n_rows: int,
    labels_B: torch.Tensor,
    sums_KD: torch.Tensor,
    counts_K: torch.Tensor,
    shares_B: torch.Tensor | None,
    *,
    has_positions: bool,
) -> None:
    """Refuse labels, sums, counts and shares of `n_rows` rows that cannot be added up."""
    k = sums_KD.shape[0]
    if labels_B.dtype != torch.int64 or not sums_KD.is_contiguous():
        raise ValueError(
            f"labels must be int64 and sums contiguous, not {labels_B.dtype} and of strides "
            f"{sums_KD.stride()}"
        )
    if shares_B is not None and not (
        not has_positions and shares_B.dtype == torch.float64 and shares_B.shape == (n_rows,)
    ):
        raise ValueError(
            f"shares must be float64, one for each of {n_rows} rows without positions, not "
            f"{len(shares_B)} of {shares_B.dtype}"
        )
    if counts_K.dtype != torch.int64 or counts_K.shape != (k,) or not counts_K.is_contiguous():
        raise ValueError(
            f"counts must be contiguous, int64, of shape ({k},), one for each sum, not "
            f"{counts_K.dtype} of shape {tuple(counts_K.shape)}"
        )
