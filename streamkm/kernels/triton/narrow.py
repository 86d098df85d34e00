"""Device code for crowded rows: those with more near centroids than a queue's entry lists.

Where thousands of centroids are nearly equal, float16 tells few of them apart. Such rows are
gathered in tiles and screened again by products in which rows and centroids are split into a
high and a low float16 number each: 22 bits, and a bound that is tighter by a factor of 20 to 50.
Of the product only ``low * low`` is left out. What may be nearer than the nearest so far is
compared by float64 sums of squared differences, the least score first, and each that is nearer
tightens the limit for all that follow.

Few rows are crowded, so that the centroids are divided among programs too, into as many parts as
there are programs for, and no more than a queue's entry lists. The nearest of each part becomes
an entry of the row, and `settle_kernel` compares these as it does all others. Rejected: float64
distances to all centroids, row by row, which read them all from memory for each row; they remain
for rows or centroids that are not finite.
"""

from __future__ import annotations

import triton
import triton.language as tl

from streamkm.kernels.triton.common import (
    AMAX,
    FAR,
    is_before,
    load_rows,
    round_rows,
    scale_for,
    score_limit,
)

__all__ = ["narrow_kernel"]

#: What a low part is multiplied by, so that it is no subnormal number: float16's precision.
LOW = tl.constexpr(2048.0)
#: Share of a length that two parts lose, at most: 2^-22 each, and as much for ``low * low``.
SPLIT_LOST = tl.constexpr(2.0**-20)
#: Error of an element that is subnormal in both parts, at most.
SPLIT_SUBNORMAL = tl.constexpr(2.0**-36)


@triton.jit
def _parts(x, scale):
    """Scaled rows as float16 numbers: the high parts, and the low parts times `LOW`."""
    _, high, lost = round_rows(x, scale)
    return high, (lost * LOW).to(tl.float16)


@triton.jit
def _scores(
    x_ptr, stride, c_ptr, c_sq_ptr, rows, ids, x_scale, c_scale, mult, k, n_features,
    BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Scores of rows against centroids `ids` by split products."""
    there = tl.minimum(ids, k - 1)
    scale = c_scale + tl.zeros(ids.shape, tl.float32)
    products = tl.zeros((rows.shape[0], ids.shape[0]), tl.float32)
    crossed = tl.zeros((rows.shape[0], ids.shape[0]), tl.float32)
    for start in range(0, n_features, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x_high, x_low = _parts(load_rows(x_ptr, stride, rows, d, n_features, WIDE), x_scale)
        c_high, c_low = _parts(load_rows(c_ptr, n_features, there, d, n_features, WIDE), scale)
        c_high = tl.trans(c_high)
        products = tl.dot(x_high, c_high, products)
        crossed = tl.dot(x_low, c_high, crossed)
        crossed = tl.dot(x_high, tl.trans(c_low), crossed)
    c_sq = tl.load(c_sq_ptr + ids, mask=ids < k, other=FAR)
    return (products + crossed * (1.0 / LOW)) * mult[:, None] + c_sq[None, :]


@triton.jit
def _lengths(
    x_ptr, stride, rows, n_features, BLOCK_D: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Scales of rows, and the lengths of rows so scaled."""
    amax = tl.zeros(rows.shape, tl.float32)
    for start in range(0, n_features, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = load_rows(x_ptr, stride, rows, d, n_features, WIDE)
        amax = tl.maximum(amax, tl.max(tl.abs(x).to(tl.float32), axis=1))
    scale = scale_for(amax)
    sq_norm = tl.zeros(rows.shape, tl.float32)
    for start in range(0, n_features, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = load_rows(x_ptr, stride, rows, d, n_features, WIDE)
        scaled = (x * scale.to(WIDE)[:, None]).to(tl.float32)
        sq_norm += tl.sum(scaled * scaled, axis=1)
    return scale, 1.001 * tl.sqrt(sq_norm)


@triton.jit
def _exact(
    x_ptr, stride, c_ptr, rows, ids, c_scale, n_features, BLOCK_D: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Squared distance between each row and its own centroid, and its score, by float64."""
    sq = tl.zeros(rows.shape, tl.float64)
    score = tl.zeros(rows.shape, tl.float64)
    for start in range(0, n_features, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = load_rows(x_ptr, stride, rows, d, n_features, WIDE).to(tl.float64)
        c = load_rows(c_ptr, n_features, ids, d, n_features, WIDE).to(tl.float64)
        difference = c - x
        sq += tl.sum(difference * difference, axis=1)
        score += tl.sum(c * (difference - x), axis=1)
    scale = c_scale.to(tl.float64)
    return sq, (score * scale * scale).to(tl.float32)


@triton.jit(do_not_specialize=["k"])
def narrow_kernel(
    x_ptr, stride, c_ptr, c_sq_ptr, about_ptr, labels_ptr, queue_ptr, crowd_ptr, count_ptr,
    k, n_features,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, N_LISTED: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """List, for each crowded row, the nearest centroid of every part of the centroids.

    Rows without a finite score of their label keep 0 entries: they need all centroids.
    """
    count = tl.load(count_ptr)
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    n_tiles = tl.cdiv(count, BLOCK_M)
    n_parts = tl.maximum(tl.num_programs(0) // tl.maximum(n_tiles, 1), 1)
    n_parts = tl.minimum(n_parts, N_LISTED)
    part_k = tl.cdiv(tl.cdiv(k, n_parts), BLOCK_N) * BLOCK_N
    c_scale = scale_for(tl.load(about_ptr + AMAX))
    for item in range(tl.program_id(0), n_tiles * n_parts, tl.num_programs(0)):
        begin, part = item // n_parts * BLOCK_M, item % n_parts
        places = tl.minimum(begin + m, count - 1)
        entry_ptrs = queue_ptr + tl.load(crowd_ptr + places) * (2 + N_LISTED)
        rows = tl.load(entry_ptrs)
        x_scale, x_norm = _lengths(x_ptr, stride, rows, n_features, BLOCK_D, WIDE)
        mult = -2.0 * c_scale / x_scale
        n_added = tl.full((), 16, tl.int32) + n_features
        # The screen's label is the first to be beaten.
        label = tl.load(labels_ptr + rows).to(tl.int32)
        least_sq, score = _exact(
            x_ptr, stride, c_ptr, rows, label, c_scale, n_features, BLOCK_D, WIDE
        )
        limit = score_limit(
            score, tl.sqrt(tl.load(c_sq_ptr + label)), about_ptr, SPLIT_LOST, SPLIT_SUBNORMAL,
            mult, x_norm, SPLIT_LOST * x_norm, 0.0, n_added,
        )  # fmt: skip
        is_narrowed = (tl.abs(score) < 0.5 * FAR) & (limit < 0.5 * FAR) & (begin + m < count)
        for first in range(part * part_k, tl.minimum((part + 1) * part_k, k), BLOCK_N):
            scores = _scores(
                x_ptr, stride, c_ptr, c_sq_ptr, rows, first + n, x_scale, c_scale, mult, k,
                n_features, BLOCK_D, WIDE,
            )  # fmt: skip
            near = (scores <= limit[:, None]) & (first + n < k)[None, :] & is_narrowed[:, None]
            n_near = tl.max(tl.sum(near.to(tl.int32), axis=1), axis=0)
            while n_near > 0:
                found = tl.min(tl.where(near, scores, FAR), axis=1)
                is_least = near & (scores == found[:, None])
                at = tl.min(tl.where(is_least, n[None, :], BLOCK_N - 1), axis=1)
                one = tl.minimum(first + at, k - 1)
                sq, score = _exact(
                    x_ptr, stride, c_ptr, rows, one, c_scale, n_features, BLOCK_D, WIDE
                )
                is_nearer = (found < FAR) & is_before(sq, one, least_sq, label)
                least_sq = tl.where(is_nearer, sq, least_sq)
                label = tl.where(is_nearer, one, label)
                tighter = score_limit(
                    score, tl.sqrt(tl.load(c_sq_ptr + one)), about_ptr, SPLIT_LOST,
                    SPLIT_SUBNORMAL, mult, x_norm, SPLIT_LOST * x_norm, 0.0, n_added,
                )  # fmt: skip
                limit = tl.where(is_nearer, tl.minimum(limit, tighter), limit)
                near = near & (n[None, :] != at[:, None]) & (scores <= limit[:, None])
                n_near = tl.max(tl.sum(near.to(tl.int32), axis=1), axis=0)
        tl.store(entry_ptrs + 2 + part, label, mask=is_narrowed)
        # Every part stores the same number.
        tl.store(entry_ptrs + 1, n_parts + tl.zeros((BLOCK_M,), tl.int32), mask=is_narrowed)
