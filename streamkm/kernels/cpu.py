"""Assignment and accumulation on the CPU in cache-sized tiles, compiled from C++.

A tile of rows is scored against a panel of centroids in registers, and only each
row's least and second least score leave them: no B x K matrix reaches memory.
As many threads as torch has share a batch (see ``native/pool.h``), and what a
thread computes does not depend on how many there are. Rows whose two least scores
are within rounding of each other are looked at again in float64, as in ``kernels.exact``.

torch was measured against it (bench/LOG.md): its product runs at half the speed of
AVX-512 on processors that MKL does not favour, and the scores make one more round
through memory. Installing streamkm builds the extension where there is a compiler;
where there is none, `instruction_sets` is empty and ``--kernel auto`` takes the
reference.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from streamkm.errors import DeviceError, Option
from streamkm.kernels.base import Assignment, Measured, Rows, TwoNearest, assign_then_add
from streamkm.kernels.exact import recheck_second_, rounding_share
from streamkm.kernels.extension import (
    HOW_TO_BUILD,
    WHY_MISSING,
    address,
    instruction_sets,
    n_threads_for,
)

if TYPE_CHECKING:
    from streamkm.kernels.extension import InstructionSet

__all__ = ["CpuKernel"]

#: What a score takes beside its products, in products: comparing it with the least two so far.
EPILOGUE_PRODUCTS = 16


class CpuKernel:
    """Tiles in C++, for batches of up to `batch_rows` rows and `k` centroids.

    Parameters
    ----------
    batch_rows, k : int
        Rows and centroids, at most; fewer than 2^31 each.
    dtype : torch.dtype
        Of both, float32 or float64.
    device : torch.device
        The CPU.
    precision : {"exact", "fast"}
        Whether rows that screening cannot tell apart are scored again.
    instruction_set : InstructionSet or None
        By default the best one.

    Raises
    ------
    DeviceError
        On another device, or if the extension was not built.
    """

    name = "cpu"
    stored_dtypes: tuple[torch.dtype, ...] = ()
    distances_cancel = True

    def __init__(
        self,
        batch_rows: int,
        k: int,
        dtype: torch.dtype,
        device: torch.device,
        precision: str = "exact",
        *,
        instruction_set: InstructionSet | None = None,
    ) -> None:
        self.check(device)
        self._set = instruction_set or instruction_sets()[0]
        self._is_double = dtype == torch.float64
        self._rechecks = precision == "exact"
        panel = self._set.float64_panel if self._is_double else self._set.float32_panel
        n_lanes = -(-k // panel) * panel
        self._packed = torch.empty((n_lanes, 0), dtype=dtype, device=device)
        self._zeros_D = self._packed.new_zeros(0)
        self._c_sq = torch.empty(n_lanes, dtype=dtype, device=device)
        self._order = torch.empty(batch_rows, dtype=torch.int32, device=device)
        self.n_rechecked = torch.zeros((), dtype=torch.int64, device=device)

    @staticmethod
    def check(device: torch.device) -> None:
        """Raise a DeviceError, which says why, where this kernel cannot run."""
        if device.type != "cpu":
            raise DeviceError(
                Option("kernel", "cpu"), " needs ", Option("device", "cpu"), f", not {device}"
            )
        if not instruction_sets():
            raise DeviceError(
                Option("kernel", "cpu"),
                f": its extension {WHY_MISSING}; {HOW_TO_BUILD}, or use ",
                Option("kernel", "reference"),
            )

    def assign(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> Assignment:
        """Nearest centroid of each row; see `Kernel`."""
        assignment, _ = self._assign(x_BD, sq_norms_B, centroids_KD)
        return assignment

    def assign_two(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> TwoNearest:
        """The two nearest centroids of each row; see `Kernel`."""
        second_B = torch.empty_like(sq_norms_B)
        assignment, _ = self._assign(x_BD, sq_norms_B, centroids_KD, second_B=second_B)
        return TwoNearest(*assignment, second_B)

    def assign_where_they_lie(
        self,
        x_ND: torch.Tensor,
        positions_B: torch.Tensor | None,
        centroids_KD: torch.Tensor,
        *,
        most_sq_norm: float,
        exact: bool,
    ) -> Measured:
        """Nearest centroid of rows of a window of which nothing is known, in one pass over them.

        Parameters
        ----------
        x_ND : Tensor of shape (N, D)
            The window, in the dtype of the centroids.
        positions_B : int32 Tensor of shape (B,), or None
            Which of its rows; None for all of them.
        centroids_KD : Tensor of shape (K, D)
        most_sq_norm : float
            Rows whose squared length is greater, or NaN, are dropped.
        exact : bool
            Whether distances are to be sums of squared differences.
        """
        n_rows = len(x_ND if positions_B is None else positions_B)
        sq_norms_B = x_ND.new_empty(n_rows)
        dropped_B = x_ND.new_empty(n_rows, dtype=torch.bool)
        exact_B = x_ND.new_empty(n_rows if exact else 0, dtype=torch.float64)
        (labels_B, sq_distances_B), n_dropped = self._assign(
            x_ND,
            sq_norms_B,
            centroids_KD,
            positions_B=positions_B,
            dropped_B=dropped_B,
            most_sq_norm=most_sq_norm,
            exact_B=exact_B if exact else None,
        )
        sq_distances_B = exact_B if exact else sq_distances_B
        return Measured(labels_B, sq_distances_B, sq_norms_B, dropped_B if n_dropped else None)

    def _assign(
        self,
        x_ND: torch.Tensor,
        sq_norms_B: torch.Tensor,
        centroids_KD: torch.Tensor,
        *,
        second_B: torch.Tensor | None = None,
        positions_B: torch.Tensor | None = None,
        dropped_B: torch.Tensor | None = None,
        most_sq_norm: float = math.inf,
        exact_B: torch.Tensor | None = None,
    ) -> tuple[Assignment, int]:
        """Labels and distances, and in how many cases a row was dropped.

        Tensors that are there are filled; `sq_norms_B` only along with `dropped_B`.
        """
        (n_window, n_features), (n_rows, k) = x_ND.shape, (len(sq_norms_B), len(centroids_KD))
        self._check(x_ND, positions_B, centroids_KD, sq_norms_B)
        if not 0 < k <= len(self._c_sq):
            raise ValueError(f"this kernel is made for {len(self._c_sq)} centroids, not {k}")
        x_ND, sq_norms_B = x_ND.contiguous(), sq_norms_B.contiguous()
        centroids_KD = centroids_KD.contiguous()
        if self._packed.shape[1] != n_features:
            self._packed = self._packed.new_empty((len(self._packed), n_features))
            self._zeros_D = self._packed.new_zeros(n_features)
        labels_B = x_ND.new_empty(n_rows, dtype=torch.int64)
        sq_distances_B = torch.empty_like(sq_norms_B)
        uncertain_B = x_ND.new_empty(n_rows, dtype=torch.bool)
        n_uncertain, n_dropped = self._set.functions.assign(
            self._set.number,
            self._is_double,
            x_ND.data_ptr(),
            address(positions_B),
            sq_norms_B.data_ptr(),
            centroids_KD.data_ptr(),
            self._packed.data_ptr(),
            self._c_sq.data_ptr(),
            labels_B.data_ptr(),
            sq_distances_B.data_ptr(),
            uncertain_B.data_ptr(),
            address(second_B),
            address(dropped_B),
            self._zeros_D.data_ptr(),
            address(exact_B),
            n_window,
            n_rows,
            n_features,
            k,
            rounding_share(x_ND.dtype, n_features),
            most_sq_norm,
            self._rechecks,
            n_threads_for(n_rows * (n_features + EPILOGUE_PRODUCTS) * k),
        )
        if self._rechecks and n_uncertain:
            self.n_rechecked += n_uncertain
            if second_B is not None:
                recheck_second_(second_B, uncertain_B, x_ND, centroids_KD)
        return Assignment(labels_B, sq_distances_B), n_dropped

    def accumulate(
        self,
        x_BD: torch.Tensor,
        labels_B: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
        positions_B: torch.Tensor | None = None,
    ) -> None:
        """Add rows to their clusters, in the order of rows; see `Kernel`.

        With `positions_B`, of int32, they are those rows of `x_BD`, which is a window.
        """
        (n_window, n_features), k, n_rows = x_BD.shape, len(sums_KD), len(labels_B)
        self._check(x_BD, positions_B, sums_KD, labels_B)
        if labels_B.dtype != torch.int64 or not sums_KD.is_contiguous():
            raise ValueError(
                f"labels must be int64 and sums lie without gaps: {labels_B.dtype}, strides "
                f"{sums_KD.stride()}"
            )
        if counts_K.dtype != torch.int64 or counts_K.shape != (k,) or not counts_K.is_contiguous():
            raise ValueError(f"there must be {k} counts, int64, without gaps, one for each sum")
        x_BD, labels_B = x_BD.contiguous(), labels_B.contiguous()
        offsets = x_BD.new_empty(k + 1, dtype=torch.int64)
        self._set.functions.accumulate(
            self._set.number,
            self._is_double,
            x_BD.data_ptr(),
            address(positions_B),
            labels_B.data_ptr(),
            self._order.data_ptr(),
            offsets.data_ptr(),
            counts_K.data_ptr(),
            sums_KD.data_ptr(),
            n_window,
            n_rows,
            n_features,
            k,
            n_threads_for(n_rows * n_features),
        )

    def step(
        self,
        rows: Rows,
        centroids_KD: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
    ) -> Assignment:
        """Assign rows and add them up; see `Kernel`."""
        return assign_then_add(self, rows, centroids_KD, sums_KD=sums_KD, counts_K=counts_K)

    def _check(
        self,
        x_BD: torch.Tensor,
        positions_B: torch.Tensor | None,
        points_KD: torch.Tensor,
        of_rows_B: torch.Tensor,
    ) -> None:
        """Refuse what the extension, which sees addresses only, would read or write beyond."""
        n_features = x_BD.shape[1]
        n_rows = len(x_BD if positions_B is None else positions_B)
        if n_rows > len(self._order) or len(of_rows_B) != n_rows:
            raise ValueError(
                f"a batch has at most {len(self._order)} rows here, and as many labels and norms: "
                f"not {n_rows} rows and {len(of_rows_B)}"
            )
        if points_KD.shape[1] != n_features:
            raise ValueError(f"rows have {n_features} features, the others {points_KD.shape[1]}")
        if positions_B is not None and not (
            positions_B.dtype == torch.int32 and positions_B.is_contiguous()
        ):
            raise ValueError(f"positions must be int32 without gaps, not {positions_B.dtype}")
        tensors = (x_BD, points_KD, of_rows_B)
        if n_features == 0 or any(tensor.device.type != "cpu" for tensor in tensors):
            raise ValueError(
                f"this kernel takes rows of one feature or more on the CPU, not of {n_features} on "
                f"{', '.join(sorted({str(tensor.device) for tensor in tensors}))}"
            )
        found = {tensor.dtype for tensor in tensors} - {torch.int64}
        if found != {self._c_sq.dtype}:
            raise ValueError(f"this kernel is made for {self._c_sq.dtype}, not {found}")
