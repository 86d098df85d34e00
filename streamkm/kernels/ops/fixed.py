"""Sums of rows by label in whole numbers, which come out the same in any order of addition.

Sums of floating-point numbers depend on the order; sums of integers do not. So each element of a
row is rounded to a whole number of quanta, and these are added. The quantum of a cluster is a power
of two, some 48 bits below the length of the longest row that is added to it. The rows of a batch
may then be divided among threads, processes and devices in any way (Demmel & Nguyen 2015,
"Parallel reproducible summation"). Rows of float64 are added up twice, rounded and what that leaves
over: their sums are as exact as the rows.

On the CPU the compiled extension, if there is one, adds rows up in registers: that takes as long as
sums of floating-point numbers. Otherwise torch adds them tile by tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from streamkm.kernels.extension import address, can_weigh, instruction_sets, n_threads_for

__all__ = [
    "LEAST_EXPONENT",
    "FixedSums",
    "add_fixed_",
    "bits_for",
    "exponents_by_label",
    "exponents_of",
    "fixed_by_label",
    "wide_by_label",
]

#: Least exponents of lengths: below, squared lengths vanish in the dtype of the rows.
LEAST_EXPONENT = {torch.float32: -70, torch.float64: -500}
#: Bits of a whole number, at most, and of a sum of them.
MOST_BITS, SUM_BITS = 48, 62
#: Elements that torch rounds at a time: 1 MiB of float64.
TILE_ELEMENTS = 1 << 17


class FixedSums(NamedTuple):
    """Sums of the rows of K clusters, and of squared distances, in whole numbers of quanta."""

    sums_LKD: torch.Tensor
    """int64; with L = 2 those of what the first rounding leaves over follow, in smaller quanta."""
    counts_K: torch.Tensor
    """Numbers of rows, int64."""
    total_1: torch.Tensor
    """Sum of the squared distances, int64, of shape (1,)."""
    exponents_E: torch.Tensor
    """All elements of the rows of a cluster are less than 2 to this power, int32; and at last all
    squared distances. E = K + 1."""
    n_bits: int
    """A quantum is 2 to the power of the exponent less these."""

    @classmethod
    def empty(
        cls, exponents_E: torch.Tensor, n_features: int, dtype: torch.dtype, n_bits: int
    ) -> FixedSums:
        """Sums of no rows yet, for rows of `dtype`."""
        n_limbs, k = 2 if dtype == torch.float64 else 1, len(exponents_E) - 1
        device = exponents_E.device
        return cls(
            torch.zeros((n_limbs, k, n_features), dtype=torch.int64, device=device),
            torch.zeros(k, dtype=torch.int64, device=device),
            torch.zeros(1, dtype=torch.int64, device=device),
            exponents_E,
            n_bits,
        )

    def wide(self) -> torch.Tensor:
        """The sums as float64, (K, D)."""
        quanta_K1 = _power(self.exponents_E[:-1] - self.n_bits)[:, None]
        wide_KD = self.sums_LKD[0] * quanta_K1
        for rests_KD in self.sums_LKD[1:]:
            wide_KD += rests_KD * (quanta_K1 * 2.0**-self.n_bits)
        return wide_KD

    def total(self) -> torch.Tensor:
        """The sum of the squared distances as float64, of shape ()."""
        return (self.total_1 * _power(self.exponents_E[-1:] - self.n_bits))[0]


def bits_for(n_rows: int) -> int:
    """Bits of whole numbers of which `n_rows` can be added up."""
    return min(MOST_BITS, SUM_BITS - max(n_rows - 1, 1).bit_length())


def exponents_by_label(
    sq_norms_B: torch.Tensor,
    sq_distances_B: torch.Tensor,
    shares_B: torch.Tensor | None,
    labels_B: torch.Tensor,
    k: int,
) -> torch.Tensor:
    """Powers of 2 that no row reaches, for `FixedSums.exponents_E`.

    Parameters
    ----------
    sq_norms_B, sq_distances_B : Tensor of shape (B,)
        Squared lengths of the rows, and squared distances to their centroids; of one dtype.
    shares_B : float64 Tensor of shape (B,), or None
        What rows and squared distances are multiplied by; None for 1.
    labels_B : int64 Tensor of shape (B,)
        From 0 to ``k - 1``.
    """
    least = LEAST_EXPONENT[sq_norms_B.dtype]
    if labels_B.is_cpu and instruction_sets() and can_weigh(shares_B, len(labels_B)):
        exponents_E = torch.empty(k + 1, dtype=torch.int32)
        sq_norms_B, sq_distances_B = sq_norms_B.contiguous(), sq_distances_B.contiguous()
        labels_B = labels_B.contiguous()
        shares_B = None if shares_B is None else shares_B.contiguous()
        instruction_sets()[0].functions.exponents(
            sq_norms_B.dtype == torch.float64,
            labels_B.data_ptr(),
            sq_norms_B.data_ptr(),
            sq_distances_B.data_ptr(),
            address(shares_B),
            exponents_E.data_ptr(),
            len(labels_B),
            k,
            least,
        )
        return exponents_E
    sq_lengths_B, sq_distances_B = sq_norms_B.double(), sq_distances_B.double()
    if shares_B is not None:
        sq_lengths_B, sq_distances_B = (
            sq_lengths_B * (shares_B * shares_B),
            sq_distances_B * shares_B,
        )
    longest_K = sq_lengths_B.new_zeros(k).scatter_reduce_(0, labels_B, sq_lengths_B, "amax")
    farthest = sq_distances_B.amax() if len(sq_distances_B) else sq_distances_B.new_zeros(())
    # One more, since squared lengths are rounded.
    lengths = (_exponents_above(longest_K.sqrt_(), least - 1) + 1).clamp_min_(least)
    return torch.cat((lengths, _exponents_above(farthest.view(1), 2 * least)))


def add_fixed_(
    sums: FixedSums,
    x_ND: torch.Tensor,
    positions_B: torch.Tensor | None,
    labels_B: torch.Tensor,
    sq_distances_B: torch.Tensor,
    shares_B: torch.Tensor | None = None,
) -> None:
    """Add each row to the sum of its label, 1 to its count, and its squared distance to the total.

    Parameters
    ----------
    sums : FixedSums
        Of exponents that hold for these rows, and others that are added to the same sums.
    x_ND : Tensor of shape (N, D)
        The rows, or the window that holds them; float32, float64, or any dtype on a GPU.
    positions_B : int32 Tensor of shape (B,), or None
        Positions of the rows in `x_ND`; None for all.
    labels_B : int64 Tensor of shape (B,)
        From 0 to K - 1.
    sq_distances_B : Tensor of shape (B,)
        Squared distances to their centroids.
    shares_B : float64 Tensor of shape (B,), or None
        What rows and squared distances are multiplied by, only if there are no positions; None
        for 1.
    """
    if _can_compile(x_ND, positions_B, labels_B, sq_distances_B, shares_B):
        _compiled_(sums, x_ND, positions_B, labels_B, sq_distances_B, shares_B)
        return
    sums.counts_K.index_add_(0, labels_B, torch.ones_like(labels_B))
    scales_E, rest = _power(sums.n_bits - sums.exponents_E), 2.0**sums.n_bits
    weighted_B = sq_distances_B.double()
    if shares_B is not None:
        weighted_B = weighted_B * shares_B
    sums.total_1.add_((weighted_B * scales_E[-1]).round_().long().sum())
    tile_rows = max(TILE_ELEMENTS // x_ND.shape[1], 1)
    for start in range(0, len(labels_B), tile_rows):
        tile = slice(start, start + tile_rows)
        x_TD = x_ND[tile] if positions_B is None else x_ND.index_select(0, positions_B[tile])
        values_TD = x_TD.double()
        if shares_B is not None:
            values_TD = values_TD * shares_B[tile, None]
        values_TD = values_TD * scales_E.index_select(0, labels_B[tile])[:, None]
        for sums_KD in sums.sums_LKD:
            rounded_TD = values_TD.round()
            sums_KD.index_add_(0, labels_B[tile], rounded_TD.long())
            values_TD = (values_TD - rounded_TD).mul_(rest)


def fixed_by_label(
    values_B: torch.Tensor, labels_B: torch.Tensor, exponents_K: torch.Tensor, n_bits: int
) -> torch.Tensor:
    """Sums of numbers, float64 and not negative, by label: those of rounded numbers and of rests.

    int64, of shape (2, K).
    """
    scaled_B = values_B * _power(n_bits - exponents_K).index_select(0, labels_B)
    sums_LK = labels_B.new_zeros((2, len(exponents_K)))
    for sums_K in sums_LK:
        rounded_B = scaled_B.round()
        sums_K.index_add_(0, labels_B, rounded_B.long())
        scaled_B = (scaled_B - rounded_B).mul_(2.0**n_bits)
    return sums_LK


def wide_by_label(sums_LK: torch.Tensor, exponents_K: torch.Tensor, n_bits: int) -> torch.Tensor:
    """The sums of `fixed_by_label` as float64, (K,)."""
    quanta_K = _power(exponents_K - n_bits)
    return sums_LK[0] * quanta_K + sums_LK[1] * (quanta_K * 2.0**-n_bits)


def exponents_of(values_B: torch.Tensor, labels_B: torch.Tensor, k: int) -> torch.Tensor:
    """For each of `k` labels a power of 2 that its numbers, float64, do not reach, int32."""
    most_K = values_B.new_zeros(k).scatter_reduce_(0, labels_B, values_B, "amax")
    return _exponents_above(most_K, LEAST_EXPONENT[torch.float64])


def _exponents_above(values: torch.Tensor, least: int) -> torch.Tensor:
    exponents = torch.frexp(values).exponent.clamp_min_(least)
    return torch.where(values > 0, exponents, least).int()


def _power(exponents: torch.Tensor) -> torch.Tensor:
    """2 to the power of integers, float64."""
    return torch.ldexp(torch.ones_like(exponents, dtype=torch.float64), exponents)


def _can_compile(
    x_ND: torch.Tensor,
    positions_B: torch.Tensor | None,
    labels_B: torch.Tensor,
    sq_distances_B: torch.Tensor,
    shares_B: torch.Tensor | None,
) -> bool:
    """Whether these may go to the extension, which checks only labels and positions."""
    return (
        bool(instruction_sets())
        and x_ND.is_cpu
        and x_ND.dtype in LEAST_EXPONENT
        and x_ND.is_contiguous()
        and sq_distances_B.dtype == x_ND.dtype
        and labels_B.dtype == torch.int64
        and (positions_B is None or positions_B.dtype == torch.int32)
        and (positions_B is None or shares_B is None)
        and can_weigh(shares_B, len(labels_B))
        and labels_B.shape == sq_distances_B.shape
        and len(labels_B) == len(x_ND if positions_B is None else positions_B)
    )


def _compiled_(
    sums: FixedSums,
    x_ND: torch.Tensor,
    positions_B: torch.Tensor | None,
    labels_B: torch.Tensor,
    sq_distances_B: torch.Tensor,
    shares_B: torch.Tensor | None,
) -> None:
    best, n_rows, k = instruction_sets()[0], len(labels_B), len(sums.counts_K)
    positions_B = None if positions_B is None else positions_B.contiguous()
    shares_B = None if shares_B is None else shares_B.contiguous()
    labels_B, sq_distances_B = labels_B.contiguous(), sq_distances_B.contiguous()
    order_B = torch.empty(n_rows, dtype=torch.int32)
    offsets = torch.empty(k + 1, dtype=torch.int64)
    best.functions.accumulate_fixed(
        best.number,
        x_ND.dtype == torch.float64,
        x_ND.data_ptr(),
        address(positions_B),
        address(shares_B),
        sq_distances_B.data_ptr(),
        labels_B.data_ptr(),
        sums.exponents_E.data_ptr(),
        sums.n_bits,
        order_B.data_ptr(),
        offsets.data_ptr(),
        sums.counts_K.data_ptr(),
        sums.sums_LKD.data_ptr(),
        sums.total_1.data_ptr(),
        len(x_ND),
        n_rows,
        x_ND.shape[1],
        k,
        n_threads_for(n_rows * x_ND.shape[1]),
    )
