"""Device code for few centroids of few features: labels, distances and sums in one read of x.

All centroids lie on the chip, so a row is scored against every one of them at once, and
no running best is kept. A program goes through a span of consecutive rows, tile by tile.
Rows that screening leaves in doubt are settled at once, by float64 distances to all
centroids, before their tile is added up.

Sums are products of the tensor cores, of a matrix that has a 1 where a row is of a
cluster. Its other factor must not be rounded: float32 rows go in as three bfloat16 terms
(3 x 8 bits, the whole mantissa), stored dtypes of 8 or 11 bits as they are. The products
of one tile start from zero, because tensor cores cut off where they add; tiles are added
in float32 in their order, spans in float64 in theirs. Where a span ends depends on the
number of rows alone, and nothing here is tuned: the same rows give the same bits.

Rejected: atomics (another order each time), and sums of rounded rows (tf32).
"""

from __future__ import annotations

import triton
import triton.language as tl

from streamkm.kernels.triton_parts import (
    AMAX,
    FAR,
    SUBNORMAL,
    load_rows,
    scale_for,
    score_limit,
)

__all__ = ["add_spans_kernel", "one_read_kernel"]


@triton.jit
def _settled(x_ptr, c_ptr, d, k, n_features, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr):
    """The nearest centroid of one row, the lowest of equals, by float64 distances."""
    x = tl.load(x_ptr + d, mask=d < n_features, other=0).to(tl.float64)[None, :]
    least = tl.full((), float("inf"), tl.float64)
    label = tl.full((), 0, tl.int32)
    for first in range(0, BLOCK_K, BLOCK_C):
        ids = first + tl.arange(0, BLOCK_C)
        difference = x - load_rows(c_ptr, n_features, ids, k, d, n_features, tl.float64)
        sq = tl.sum(difference * difference, axis=1)
        # NaN is never the least.
        sq = tl.where((ids < k) & (sq == sq), sq, float("inf"))
        found = tl.min(sq, axis=0)
        label = tl.where(found < least, tl.min(tl.where(sq == found, ids, k), axis=0), label)
        least = tl.minimum(least, found)
    return label, least


@triton.jit
def _sq_distances(x, c_ptr, label, d, k, n_features):
    difference = x - load_rows(c_ptr, n_features, label, k, d, n_features, tl.float32)
    return tl.sum(difference * difference, axis=1)


@triton.jit
def _assigned(
    x, x_ptr, stride, c_ptr, c16, c_sq_ptr, about_ptr, start, d, is_row, k, n_features,
    padded_d, LOST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Labels and squared distances of a tile of rows, and how many were settled."""
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_K)
    c_sq = tl.load(c_sq_ptr + n)[None, :]
    # Rows on the scale of the centroids: room for those 32 times as far out, whose scores
    # overflow beyond that and are in doubt, and for elements 2^24 times smaller.
    x_scale = scale_for(tl.load(about_ptr + AMAX)) * 0.03125
    mult = tl.full((), -64.0, tl.float32)
    n_settled = tl.full((), 0, tl.int32)
    scores = tl.dot((x * x_scale).to(tl.float16), c16) * mult + c_sq
    least = tl.min(scores, axis=1)
    label = tl.min(tl.where(scores == least[:, None], n[None, :], BLOCK_K), axis=1)
    label = tl.where(label < k, label, 0)
    sq_distance = _sq_distances(x, c_ptr, label, d, k, n_features)
    if EXACT:
        c_norm = tl.sqrt(tl.load(c_sq_ptr + label))
        # A row is no longer than its centroid and its distance (of which squares below
        # the least float32 number are lost) together.
        x_norm = x_scale * (tl.sqrt(sq_distance) + 2.0**-59) + 0.03125 * c_norm
        x_norm *= 1.0 + 2.0**-16
        x_lost = LOST * x_norm + SUBNORMAL * tl.sqrt(padded_d.to(tl.float32))
        limit = score_limit(least, c_norm, about_ptr, mult, x_norm, x_lost, 2.0**-22, padded_d)
        # What is no number rules out nothing.
        near = ~(scores > limit[:, None]) | ~(tl.abs(least) < FAR)[:, None]
        is_doubtful = (tl.sum(near.to(tl.int32), axis=1) != 1) & is_row
        n_settled = tl.sum(is_doubtful.to(tl.int32), axis=0)
        for _ in range(0, n_settled):
            place = tl.min(tl.where(is_doubtful, m, BLOCK_M), axis=0)
            is_doubtful = is_doubtful & (m > place)
            x_row_ptr = x_ptr + (start + place).to(tl.int64) * stride
            found, found_sq = _settled(x_row_ptr, c_ptr, d, k, n_features, BLOCK_K, BLOCK_C)
            label = tl.where(m == place, found, label)
            sq_distance = tl.where(m == place, found_sq.to(tl.float32), sq_distance)
    return label, sq_distance, n_settled


@triton.jit
def _leading_bits(x):
    """What is left of float32 numbers if their last 16 bits are cut off: a bfloat16 number."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _tile_sums(hot, x, TERM: tl.constexpr, N_TERMS: tl.constexpr):
    """Sums of the rows of a tile by their clusters, from zero."""
    hot = tl.trans(tl.where(hot, 1.0, 0.0).to(TERM))
    if N_TERMS == 1:
        sums = tl.dot(hot, x.to(TERM))
    else:
        # 8 bits, 8 more and the last 8: nothing is rounded, nothing is lost.
        high = _leading_bits(x)
        middle = _leading_bits(x - high)
        low = (x - high) - middle
        sums = tl.dot(hot, low.to(TERM))
        sums = tl.dot(hot, middle.to(TERM), sums)
        sums = tl.dot(hot, high.to(TERM), sums)
    return sums


@triton.jit(do_not_specialize=["n_rows", "k", "span"])
def one_read_kernel(
    x_ptr, stride, c_ptr, c16_ptr, c_sq_ptr, about_ptr, shares_ptr, left_out_ptr,
    labels_ptr, sq_distances_ptr, sums_ptr, counts_ptr, rechecked_ptr,
    n_rows, k, n_features, padded_d, span,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    TERM: tl.constexpr, N_TERMS: tl.constexpr, HAS_SHARES: tl.constexpr, HAS_LEFT_OUT: tl.constexpr,
    ZEROS_FIRST: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Labels and squared distances of a span of rows, and what it adds to each cluster."""
    # Of a row's length: rounding to float16, which holds stored dtypes as they are.
    LOST: tl.constexpr = 0.0 if N_TERMS == 1 else 2.0**-11
    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_K)
    c16 = tl.load(c16_ptr + n[None, :] * padded_d + d[:, None])
    sums = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    counts = tl.zeros((BLOCK_K,), tl.int32)
    n_doubtful = tl.full((), 0, tl.int32)
    begin = tl.program_id(0) * span
    end = tl.minimum(begin + span, n_rows)
    for start in tl.range(begin, end, BLOCK_M, num_stages=1):
        rows = start + tl.arange(0, BLOCK_M)
        is_row = rows < end
        x = load_rows(x_ptr, stride, rows, end, d, n_features, tl.float32)
        label, sq_distance, n_settled = _assigned(
            x, x_ptr, stride, c_ptr, c16, c_sq_ptr, about_ptr, start, d, is_row, k, n_features,
            padded_d, LOST, BLOCK_M, BLOCK_K, BLOCK_C, EXACT,
        )  # fmt: skip
        n_doubtful += n_settled
        if ZEROS_FIRST:
            label = tl.where(tl.max(tl.abs(x), axis=1) == 0, 0, label)
        tl.store(labels_ptr + rows, label.to(tl.int64), mask=is_row)
        tl.store(sq_distances_ptr + rows, sq_distance, mask=is_row)
        is_counted = is_row
        if HAS_LEFT_OUT:
            left_out = tl.load(left_out_ptr + rows, mask=is_row, other=1)
            is_counted = left_out == 0
            x = tl.where(is_counted[:, None], x, 0.0)
        if HAS_SHARES:
            x = x * tl.load(shares_ptr + rows, mask=is_row, other=0.0)[:, None]
        hot = (label[:, None] == n[None, :]) & is_counted[:, None]
        sums += _tile_sums(hot, x, TERM, N_TERMS)
        counts += tl.histogram(label, BLOCK_K, mask=is_counted)
    slab = tl.program_id(0) * k + n
    inside = (n < k)[:, None] & (d < n_features)[None, :]
    tl.store(sums_ptr + slab[:, None] * n_features + d[None, :], sums, mask=inside)
    tl.store(counts_ptr + slab, counts, mask=n < k)
    tl.atomic_add(rechecked_ptr, n_doubtful.to(tl.int64))


@triton.jit(do_not_specialize=["n_spans", "k"])
def add_spans_kernel(
    span_sums_ptr, span_counts_ptr, sums_ptr, counts_ptr, n_spans, k, n_features,
    BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Add the spans' sums, in float64 and in their order, and their counts."""
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    n_elements = k * n_features
    total = tl.load(sums_ptr + e, mask=e < n_elements, other=0).to(tl.float64)
    count = tl.zeros((BLOCK_E,), tl.int64)
    for first in range(0, n_spans, BLOCK_S):
        spans = first + tl.arange(0, BLOCK_S)[:, None]
        inside = (spans < n_spans) & (e < n_elements)[None, :]
        sums = tl.load(span_sums_ptr + spans * n_elements + e[None, :], mask=inside, other=0)
        total += tl.sum(sums.to(tl.float64), axis=0)
        inside = (spans < n_spans) & (e < k)[None, :]
        counts = tl.load(span_counts_ptr + spans * k + e[None, :], mask=inside, other=0)
        count += tl.sum(counts.to(tl.int64), axis=0)
    tl.store(sums_ptr + e, total.to(sums_ptr.dtype.element_ty), mask=e < n_elements)
    # There are at least as many elements as clusters.
    tl.store(counts_ptr + e, tl.load(counts_ptr + e, mask=e < k, other=0) + count, mask=e < k)
