"""Whole passes of Lloyd's algorithm, and breaths, by the compiled extension for `CpuKernel`.

Each is one call. On a small sample it takes microseconds, and so would checking all tensors anew:
the rows are checked once, and each call checks what it brings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from streamkm.kernels.extension import address, can_weigh, n_threads_for
from streamkm.kernels.ops.move import MOVE_PRODUCTS
from streamkm.kernels.ops.tiles import EPILOGUE_PRODUCTS
from streamkm.kernels.passes import Breathed, PassedOver

if TYPE_CHECKING:
    from streamkm.kernels.extension import InstructionSet
    from streamkm.kernels.passes import BreathRules
    from streamkm.kernels.rows import Rows

__all__ = ["TilePasses"]


class TilePasses:
    """Passes over rows whose shapes and dtypes the kernel has checked; see `Passes`."""

    def __init__(
        self,
        instruction_set: InstructionSet,
        rows: Rows,
        weights_B: torch.Tensor | None,
        unit: float,
        packed: torch.Tensor,
        c_sq: torch.Tensor,
        n_uncertain: torch.Tensor,
        *,
        rounding_share: float,
        cancelling_share: float,
        rechecks: bool,
        spherical: bool,
    ) -> None:
        """`packed` and `c_sq` are scratch memory; rows in doubt are counted in `n_uncertain`."""
        x_BD, self._n_rows = rows.x_BD.contiguous(), rows.x_BD.shape[0]
        if not (can_weigh(rows.shares_B, self._n_rows) and can_weigh(weights_B, self._n_rows)):
            raise ValueError("shares and weights must be float64, one for each row")
        self._set, self._n_features, self._dtype = instruction_set, x_BD.shape[1], x_BD.dtype
        self._c_sq, self._n_uncertain = c_sq, n_uncertain
        # Held, because the extension gets their addresses alone.
        self._held = (
            x_BD,
            rows.sq_norms_B.contiguous(),
            *(each if each is None else each.contiguous() for each in (rows.shares_B, weights_B)),
            packed,
            c_sq,
        )
        self._addresses = tuple(map(address, self._held))
        self._shares = rounding_share, cancelling_share
        self._unit, self._rechecks, self._spherical = unit, rechecks, spherical

    def make(
        self,
        centroids_KD: torch.Tensor,
        n_passes: int,
        *,
        exact: bool,
        cost_before: float = 0.0,
        least_share: float = -1.0,
    ) -> PassedOver:
        """See `Passes`."""
        n_rows, n_features, dtype = self._n_rows, self._n_features, self._dtype
        k = self._checked(centroids_KD)
        centroids_KD = centroids_KD.contiguous()
        labels_B = centroids_KD.new_empty(n_rows, dtype=torch.int64)
        sq_distances_B = centroids_KD.new_empty(n_rows)
        mass_K = centroids_KD.new_empty(k, dtype=torch.float64)
        gains_K = centroids_KD.new_empty(k, dtype=torch.float64)
        after_KD = torch.empty_like(centroids_KD)
        n_made, n_uncertain, is_full, is_worth_it = self._set.functions.passes(
            self._set.number,
            dtype == torch.float64,
            *self._addresses,
            centroids_KD.data_ptr(),
            labels_B.data_ptr(),
            sq_distances_B.data_ptr(),
            mass_K.data_ptr(),
            after_KD.data_ptr(),
            gains_K.data_ptr(),
            self._unit,
            n_passes,
            n_rows,
            n_features,
            k,
            *self._shares,
            exact,
            self._rechecks,
            self._spherical,
            *self._threads(k),
            cost_before,
            least_share,
        )
        self._count(n_uncertain)
        return PassedOver(
            n_made, bool(is_full), bool(is_worth_it),
            labels_B, sq_distances_B, mass_K, after_KD, gains_K,
        )  # fmt: skip

    def breathe(
        self,
        centroids_KD: torch.Tensor,
        labels_B: torch.Tensor,
        sq_distances_B: torch.Tensor,
        cost: float,
        uniform_MU: torch.Tensor,
        rules: BreathRules,
        *,
        size: int,
        n_refused: int,
    ) -> Breathed:
        """See `Passes`."""
        k, (n_breaths, width) = self._checked(centroids_KD, size), uniform_MU.shape
        self._check(labels_B, torch.int64, self._n_rows)
        self._check(sq_distances_B, self._dtype, self._n_rows)
        self._check(uniform_MU, torch.float64, self._n_rows + k + size)
        # Copies: those who brought them may still hold them.
        centroids_KD = centroids_KD.clone(memory_format=torch.contiguous_format)
        labels_B, sq_distances_B = labels_B.clone(), sq_distances_B.clone()
        gains_K = centroids_KD.new_empty(k, dtype=torch.float64)
        n_taken, size, n_refused, n_uncertain, is_kept = self._set.functions.breaths(
            self._set.number,
            self._dtype == torch.float64,
            *self._addresses,
            centroids_KD.data_ptr(),
            labels_B.data_ptr(),
            sq_distances_B.data_ptr(),
            gains_K.data_ptr(),
            uniform_MU.data_ptr(),
            self._unit,
            self._n_rows,
            self._n_features,
            k,
            *self._shares,
            self._rechecks,
            *self._threads(k),
            n_breaths,
            width,
            size,
            n_refused,
            cost,
            *rules,
        )
        self._count(n_uncertain)
        return Breathed(
            n_taken, size, n_refused, bool(is_kept),
            centroids_KD, labels_B, sq_distances_B, gains_K,
        )  # fmt: skip

    def _threads(self, k: int) -> tuple[int, int, int]:
        """Threads that assign, that add up and that move centroids."""
        n_rows, n_features = self._n_rows, self._n_features
        return (
            n_threads_for(n_rows * (n_features + EPILOGUE_PRODUCTS) * k),
            n_threads_for(n_rows * n_features),
            n_threads_for(k * n_features * MOVE_PRODUCTS),
        )

    def _count(self, n_uncertain: int) -> None:
        if self._rechecks and n_uncertain:
            self._n_uncertain += n_uncertain

    @staticmethod
    def _check(tensor: torch.Tensor, dtype: torch.dtype, n_each: int) -> None:
        """Refuse a tensor beyond whose end the extension would go, or that it would misread."""
        if (
            tensor.dtype != dtype
            or tensor.shape[-1] != n_each
            or not (tensor.is_cpu and tensor.is_contiguous())
        ):
            raise ValueError(
                f"breaths take {n_each} contiguous numbers of {dtype}, not {tensor.dtype} of "
                f"shape {tuple(tensor.shape)}"
            )

    def _checked(self, centroids_KD: torch.Tensor, n_added: int = 0) -> int:
        """The number of centroids.

        Raises
        ------
        ValueError
            If the kernel has no room for them, or they do not go with the rows.
        """
        k, n_features = centroids_KD.shape
        if not 0 < k + n_added <= self._c_sq.shape[0]:
            raise ValueError(
                f"this kernel is made for {len(self._c_sq)} centroids, not {k + n_added}"
            )
        if (
            n_features != self._n_features
            or centroids_KD.dtype != self._dtype
            or not centroids_KD.is_cpu
        ):
            raise ValueError(
                f"centroids must be of {self._n_features} features and {self._dtype} on the CPU, "
                f"as rows are: not of {n_features} and {centroids_KD.dtype} on "
                f"{centroids_KD.device}"
            )
        return k
