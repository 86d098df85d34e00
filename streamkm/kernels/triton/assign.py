"""Device code of the assignment: screens on tensor cores, with a bound on the error.

Rows and centroids are scaled by powers of two and rounded to float16, so that any
input dtype keeps 11 bits and nothing overflows. A program holds a tile of rows and
goes over all centroids, tile by tile. `FOLD` scores of a tile share a position: they
are a group, and only the least of them goes on. Each position keeps the least and
second least score of all tiles, with the number of the tile in the lowest bits of the
mantissa. Nothing is reduced across lanes before the end. Then the members of the best
group are compared by their distances.

Rounding leaves residuals, and these bound the error of a score (Cauchy-Schwarz). A row
is certain if its runner-up lies beyond the bound. The few other rows are queued with
the centroids that may be nearest, and `settle_kernel` (``settle.py``) compares these by
float64 sums of squared differences, in which nothing cancels. Rows with more of them than
the queue lists are narrowed before (``narrow.py``). Both read the length of their list on
the device, so that the host never waits.

Where rows stay on the chip, the product of one tile runs on the tensor cores while the
scores of the tile before are looked through, and the tiles after are being copied.

Rejected: bfloat16 (8 bits: four times the bound, several times the queue) and tf32
(11 bits too, at half the rate).
"""

from __future__ import annotations

import triton
import triton.language as tl

from streamkm.kernels.triton.common import (
    AMAX,
    FAR,
    NORM,
    RESIDUAL,
    SUBNORMAL,
    is_before,
    is_clear,
    keep_two,
    least_kept,
    load_rows,
    raise_to,
    round_rows,
    scale_for,
    score_limit,
    sq_distances,
)
from streamkm.kernels.triton.settle import queue

__all__ = ["measure_kernel", "round_kernel", "round_rows_kernel", "screen_kernel"]


@triton.jit(do_not_specialize=["k"])
def measure_kernel(c_ptr, about_ptr, k, n_features, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store the largest absolute value of all elements of the centroids."""
    ids = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    amax = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, n_features, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = (ids < k)[:, None] & (d < n_features)[None, :]
        offsets = ids.to(tl.int64)[:, None] * n_features + d[None, :]
        c = tl.load(c_ptr + offsets, mask=inside, other=0.0)
        amax = tl.maximum(amax, tl.max(tl.abs(c).to(tl.float32), axis=1))
    raise_to(about_ptr + AMAX, tl.max(amax, axis=0))


@triton.jit(do_not_specialize=["k"])
def round_kernel(
    c_ptr,
    c16_ptr,
    c_sq_ptr,
    about_ptr,
    k,
    n_features,
    padded_d,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store centroids as scaled float16, padded with zeros, their squared lengths and residuals."""
    ids = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    scale = scale_for(tl.load(about_ptr + AMAX))
    sq_norm = tl.zeros((BLOCK_K,), tl.float32)
    sq_residual = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, padded_d, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = (ids < k)[:, None] & (d < n_features)[None, :]
        offsets = ids.to(tl.int64)[:, None] * n_features + d[None, :]
        c = tl.load(c_ptr + offsets, mask=inside, other=0.0)
        scaled = c * scale.to(c.dtype)
        rounded = scaled.to(tl.float16)
        padded = ids.to(tl.int64)[:, None] * padded_d + d[None, :]
        tl.store(c16_ptr + padded, rounded, mask=(d < padded_d)[None, :])
        lost = (scaled - rounded.to(c.dtype)).to(tl.float32)
        length = scaled.to(tl.float32)
        sq_norm += tl.sum(length * length, axis=1)
        sq_residual += tl.sum(lost * lost, axis=1)
    tl.store(c_sq_ptr + ids, tl.where(ids < k, sq_norm, FAR))
    norm = tl.sqrt(sq_norm)
    # Without the error of subnormal elements: `score_limit` adds one bound on it for all.
    beyond = tl.maximum(tl.sqrt(sq_residual) - SUBNORMAL * tl.sqrt(padded_d.to(tl.float32)), 0.0)
    relative = tl.where(norm > 0, beyond / tl.where(norm > 0, norm, 1.0), 0.0)
    raise_to(about_ptr + NORM, tl.max(norm, axis=0))
    raise_to(about_ptr + RESIDUAL, tl.max(relative, axis=0))


@triton.jit
def _halves(scores):
    """Left and right half of the columns, without moving data between lanes."""
    paired = tl.reshape(scores, (scores.shape[0], 2, scores.shape[1] // 2))
    return tl.split(tl.permute(paired, (0, 2, 1)))


@triton.jit
def _least_of_group(scores, FOLD: tl.constexpr):
    """The least of every `FOLD` (1, 2, 4 or 8) scores that share a position."""
    if FOLD > 1:
        left, right = _halves(scores)
        scores = _least_of_group(tl.minimum(left, right), FOLD // 2)
    return scores


@triton.jit
def _keep(best, second, products, mult, c_sq, tile, index_mask, FOLD: tl.constexpr):
    """The two least scores at each position, those of another tile included."""
    scores = products * mult[:, None] + c_sq[None, :]
    return keep_two(best, second, _least_of_group(scores, FOLD), tile, index_mask)


@triton.jit
def _nearest_of(
    x_ptr, stride, c_ptr, c_sq_ptr, rows, first, other, k, n_features,
    N_COMPARED: tl.constexpr, KEPT_N: tl.constexpr, WIDE: tl.constexpr, STEP_D: tl.constexpr,
    SECOND: tl.constexpr,
):  # fmt: skip
    """The nearest of the group that begins with `first`, or, if `SECOND`, of `first` and `other`.

    Also its squared distance, that of the second nearest, and the greatest length among them.
    """
    least_sq = tl.full(rows.shape, float("inf"), WIDE)
    second_sq = tl.full(rows.shape, float("inf"), WIDE)
    sq_norm = tl.zeros(rows.shape, tl.float32)
    label = tl.full(rows.shape, 2147483647, tl.int32)
    for i in range(0, N_COMPARED):
        ids = tl.where(i == 0, first, other) if SECOND else first + i * KEPT_N
        # A position may hold no centroid, and a row whose scores are NaN has no least.
        is_one = ids < k
        ids = tl.where(is_one, ids, 0)
        sq = sq_distances(x_ptr, stride, c_ptr, rows, ids, n_features, WIDE, STEP_D)
        sq = tl.where(is_one & (sq == sq), sq, float("inf"))
        is_nearer = is_before(sq, ids, least_sq, label)
        second_sq = tl.where(is_nearer, least_sq, tl.minimum(second_sq, sq))
        least_sq = tl.where(is_nearer, sq, least_sq)
        label = tl.where(is_nearer, ids, label)
        sq_norm = tl.maximum(sq_norm, tl.where(is_one, tl.load(c_sq_ptr + ids), 0.0))
    return tl.where(label < k, label, 0), least_sq, second_sq, tl.sqrt(sq_norm)


@triton.jit(do_not_specialize=["n_rows"])
def round_rows_kernel(
    x_ptr, stride, x16_ptr, x_about_ptr, n_rows, n_features, padded_d,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Store rows as scaled float16, padded with zeros, their scales, lengths and lost lengths.

    It serves rows that are too long for a tile of them to stay on the chip.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = tl.minimum(rows, n_rows - 1)
    amax = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, n_features, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = load_rows(x_ptr, stride, there, d, n_features, WIDE)
        amax = tl.maximum(amax, tl.max(tl.abs(x).to(tl.float32), axis=1))
    scale = scale_for(amax)
    sq_norm = tl.zeros((BLOCK_M,), tl.float32)
    sq_lost = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, padded_d, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = load_rows(x_ptr, stride, there, d, n_features, WIDE)
        scaled, rounded, lost = round_rows(x, scale)
        ptrs = x16_ptr + rows.to(tl.int64)[:, None] * padded_d + d[None, :]
        tl.store(ptrs, rounded, mask=(rows < n_rows)[:, None] & (d < padded_d)[None, :])
        sq_norm += tl.sum(scaled * scaled, axis=1)
        sq_lost += tl.sum(lost * lost, axis=1)
    about_ptrs = x_about_ptr + rows
    tl.store(about_ptrs, scale, mask=rows < n_rows)
    tl.store(about_ptrs + n_rows, tl.sqrt(sq_norm), mask=rows < n_rows)
    tl.store(about_ptrs + 2 * n_rows, tl.sqrt(sq_lost), mask=rows < n_rows)


@triton.jit
def _least_two(
    x16, c16_ptrs, c_sq_ptrs, mult, n_tiles, index_mask,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, FOLD: tl.constexpr, BLOCK_D: tl.constexpr,
    PADDED_D: tl.constexpr, RESIDENT: tl.constexpr,
):  # fmt: skip
    """The two least scores at each position over all tiles of centroids.

    `x16` are the rounded rows, or pointers to their first features if they are not `RESIDENT`.
    `PADDED_D` is a constant, so that the addresses of a tile differ by constants.
    """
    best = tl.full((BLOCK_M, BLOCK_N // FOLD), FAR, tl.float32)
    second = tl.full((BLOCK_M, BLOCK_N // FOLD), FAR, tl.float32)
    if RESIDENT:
        # The product of the next tile runs on the tensor cores while this one is looked through.
        products = tl.dot(x16, tl.load(c16_ptrs))
        for tile in range(1, n_tiles):
            ahead = tl.dot(x16, tl.load(c16_ptrs + tl.cast(tile, tl.int64) * (BLOCK_N * PADDED_D)))
            c_sq = tl.load(c_sq_ptrs + (tile - 1) * BLOCK_N)
            best, second = _keep(best, second, products, mult, c_sq, tile - 1, index_mask, FOLD)
            products = ahead
        c_sq = tl.load(c_sq_ptrs + (n_tiles - 1) * BLOCK_N)
        best, second = _keep(best, second, products, mult, c_sq, n_tiles - 1, index_mask, FOLD)
    else:
        for tile in range(0, n_tiles):
            tile_ptrs = c16_ptrs + tl.cast(tile, tl.int64) * (BLOCK_N * PADDED_D)
            products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for start in range(0, PADDED_D, BLOCK_D):
                products = tl.dot(tl.load(x16 + start), tl.load(tile_ptrs + start), products)
            c_sq = tl.load(c_sq_ptrs + tile * BLOCK_N)
            best, second = _keep(best, second, products, mult, c_sq, tile, index_mask, FOLD)
    return best, second


@triton.jit(do_not_specialize=["n_rows", "k", "n_tiles", "index_mask"])
def screen_kernel(
    x_ptr, stride, x16_ptr, x_about_ptr, c_ptr, c16_ptr, c_sq_ptr, about_ptr,
    labels_ptr, sq_distances_ptr, second_ptr, queue_ptr, crowd_ptr, count_ptr,
    n_rows, k, n_features, n_tiles, index_mask, pack_eps,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, FOLD: tl.constexpr, BLOCK_D: tl.constexpr,
    PADDED_D: tl.constexpr, STEP_D: tl.constexpr, N_LISTED: tl.constexpr, WIDE: tl.constexpr,
    ROUNDED: tl.constexpr, RESIDENT: tl.constexpr, EXACT: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """Store labels and squared distances of a tile of rows; queue uncertain rows."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = tl.minimum(rows, n_rows - 1)
    d, n = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    if ROUNDED:
        x_scale = tl.load(x_about_ptr + there)
        x_norm = tl.load(x_about_ptr + n_rows + there)
        x_lost = tl.load(x_about_ptr + 2 * n_rows + there)
        x16 = x16_ptr + there.to(tl.int64)[:, None] * PADDED_D + d[None, :]
        if RESIDENT:
            x16 = tl.load(x16)
    else:
        x = load_rows(x_ptr, stride, there, d, n_features, WIDE)
        x_scale = scale_for(tl.max(tl.abs(x).to(tl.float32), axis=1))
        scaled, x16, lost = round_rows(x, x_scale)
        x_norm = tl.sqrt(tl.sum(scaled * scaled, axis=1))
        x_lost = tl.sqrt(tl.sum(lost * lost, axis=1))
    mult = -2.0 * scale_for(tl.load(about_ptr + AMAX)) / x_scale
    KEPT_N: tl.constexpr = BLOCK_N // FOLD
    N_COMPARED: tl.constexpr = 2 if SECOND else FOLD
    best, second = _least_two(
        x16, c16_ptr + n[None, :] * PADDED_D + d[:, None], c_sq_ptr + n, mult, n_tiles,
        index_mask, BLOCK_M, BLOCK_N, FOLD, BLOCK_D, PADDED_D, RESIDENT,
    )  # fmt: skip
    least, position, first = least_kept(best, index_mask, BLOCK_N, KEPT_N)
    other = first
    if SECOND:
        tl.static_assert(FOLD == 1)
        others = tl.where(tl.arange(0, KEPT_N)[None, :] == position[:, None], second, best)
        least, _, other = least_kept(others, index_mask, BLOCK_N, KEPT_N)
    label, least_sq, second_sq, c_norm = _nearest_of(
        x_ptr, stride, c_ptr, c_sq_ptr, there, first, other, k, n_features,
        N_COMPARED, KEPT_N, WIDE, STEP_D, SECOND,
    )  # fmt: skip
    tl.store(labels_ptr + rows, label.to(tl.int64), mask=rows < n_rows)
    tl.store(sq_distances_ptr + rows, least_sq, mask=rows < n_rows)
    if SECOND:
        tl.store(second_ptr + rows, second_sq, mask=rows < n_rows)
    if EXACT:
        padded_d = tl.full((), PADDED_D, tl.int32)
        limit = score_limit(
            least, c_norm, about_ptr, tl.load(about_ptr + RESIDUAL), SUBNORMAL, mult, x_norm,
            x_lost, pack_eps, padded_d,
        )  # fmt: skip
        clear = is_clear(least_sq, second_sq, n_features, WIDE)
        queue(
            best, second, limit, clear, rows, n_rows, index_mask, queue_ptr, crowd_ptr, count_ptr,
            BLOCK_N, KEPT_N, N_LISTED, 2 if SECOND else 1,
        )  # fmt: skip
