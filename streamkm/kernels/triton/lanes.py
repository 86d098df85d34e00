"""Device code for few centroids of very few features: a row to a lane, in one read of x.

A lane holds the features of its own rows in registers, beside all centroids and its own sums of
each. Nothing is reduced across lanes before the end. Rejected: tensor cores, for which rows of 3
features would be padded to 16, and every step shared among the lanes of a row.

Distances are sums of squared differences in float32, whose relative error is known. If that
leaves a row of a tile in doubt, the whole tile is scored again in float64.

A lane adds up its rows in their order. Lanes and then spans are added in an order that depends on
the shape alone. No sum depends on what is tuned.
"""

from __future__ import annotations

import triton
import triton.language as tl

from streamkm.kernels.triton.common import ONE_A_ROW, is_clear

__all__ = ["lanes_kernel"]


@triton.jit
def _two_nearest(xs, cs, BLOCK_K: tl.constexpr, D: tl.constexpr):
    """Labels, ties to the lowest index, and the two least sums of squared differences."""
    label = tl.zeros(xs[0].shape, tl.int32)
    best = tl.full(xs[0].shape, float("inf"), tl.float32)
    second = best
    for i in tl.static_range(BLOCK_K):
        sq = tl.zeros(xs[0].shape, tl.float32)
        for j in tl.static_range(D):
            difference = xs[j] - cs[i * D + j]
            sq = tl.fma(difference, difference, sq)
        label = tl.where(sq < best, i, label)
        # NaN leaves the row in doubt.
        second = tl.minimum(second, tl.maximum(best, sq))
        best = tl.minimum(best, sq)
    return label, best, second


@triton.jit
def _settled(xs, c_ptr, k, D: tl.constexpr):
    """Labels by float64 distances, ties to the lowest index."""
    label = tl.zeros(xs[0].shape, tl.int32)
    best = tl.full(xs[0].shape, float("inf"), tl.float64)
    for i in range(0, k):
        sq = tl.zeros(xs[0].shape, tl.float64)
        for j in tl.static_range(D):
            # Loaded again: registers would not hold them twice.
            difference = xs[j].to(tl.float64) - tl.load(c_ptr + i * D + j).to(tl.float64)
            sq = tl.fma(difference, difference, sq)
        # NaN is never the least.
        is_less = sq < best
        label, best = tl.where(is_less, i, label), tl.where(is_less, sq, best)
    return label


@triton.jit
def _sum_of_pairs(terms, FIRST: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr):
    """Sum of at most `WIDTH` of `N` terms, from `FIRST` on, in the order of `sum_features`."""
    if WIDTH == 1:
        total = terms[FIRST]
    else:
        total = _sum_of_pairs(terms, FIRST, WIDTH // 2, N)
        if FIRST + WIDTH // 2 < N:
            total = total + _sum_of_pairs(terms, FIRST + WIDTH // 2, WIDTH // 2, N)
    return total


@triton.jit
def _sq_distance(xs, c_ptr, label, zero, D: tl.constexpr, WIDTH: tl.constexpr):
    """`sq_distances` to the bit, for rows given as columns and a centroid for each."""
    squares = ()
    for j in tl.static_range(D):
        difference = xs[j] - tl.load(c_ptr + label * D + j)
        # Rounded before it is added: since `zero` is not a constant, no fused addition.
        squares += (tl.fma(difference, difference, zero),)
    return _sum_of_pairs(squares, 0, WIDTH, D)


@triton.jit
def _zeros(N: tl.constexpr, BLOCK_M: tl.constexpr, DTYPE: tl.constexpr):
    """`N` vectors of zeros."""
    zeros = (tl.zeros((BLOCK_M,), DTYPE),)
    for _ in tl.static_range(N - 1):
        zeros += (zeros[0],)
    return zeros


@triton.jit
def _columns(x_ptr, stride, rows, D: tl.constexpr):
    """Features of rows, widened, one vector for each feature."""
    columns = ()
    for j in tl.static_range(D):
        columns += (tl.load(x_ptr + rows.to(tl.int64) * stride + j).to(tl.float32),)
    return columns


@triton.jit
def _shared_out(xs, share, D: tl.constexpr):
    shared = ()
    for j in tl.static_range(D):
        shared += (xs[j] * share,)
    return shared


@triton.jit
def _add(xs, label, sums, counts, BLOCK_K: tl.constexpr, D: tl.constexpr):
    """Sums and counts of each lane plus its next row; a row of label -1 adds nothing."""
    new_sums, new_counts = (), ()
    for i in tl.static_range(BLOCK_K):
        is_own = label == i
        new_counts += (counts[i] + is_own.to(tl.int32),)
        for j in tl.static_range(D):
            before = sums[i * D + j]
            new_sums += (tl.where(is_own, before + xs[j], before),)
    return new_sums, new_counts


@triton.jit
def _store(sums, counts, sums_ptr, counts_ptr, k, BLOCK_K: tl.constexpr, D: tl.constexpr):
    """Store the sums and counts of all lanes, for the span of this program."""
    first = tl.program_id(0) * k
    for i in tl.static_range(BLOCK_K):
        tl.store(counts_ptr + first + i, tl.sum(counts[i], axis=0), mask=i < k)
        for j in tl.static_range(D):
            total = tl.sum(sums[i * D + j], axis=0)
            tl.store(sums_ptr + (first + i).to(tl.int64) * D + j, total, mask=i < k)


@triton.jit(do_not_specialize=["n_rows", "k", "span"], do_not_specialize_on_alignment=ONE_A_ROW)
def lanes_kernel(
    x_ptr, stride, c_ptr, sq_norms_ptr, shares_ptr, left_out_ptr,
    labels_ptr, sq_distances_ptr, sums_ptr, counts_ptr, rechecked_ptr,
    n_rows, k, span,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    HAS_SHARES: tl.constexpr, HAS_LEFT_OUT: tl.constexpr, ZEROS_FIRST: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Store labels and squared distances of a span of rows, and its sums and counts.

    `BLOCK_K` is `k` or up to 3 more: a centroid that does not exist is infinitely far.
    """
    cs = ()
    for e in tl.static_range(BLOCK_K * D):
        cs += (tl.load(c_ptr + e, mask=e < k * D, other=float("inf")),)
    sums = _zeros(BLOCK_K * D, BLOCK_M, tl.float32)
    counts = _zeros(BLOCK_K, BLOCK_M, tl.int32)
    zero = tl.minimum(n_rows, 0).to(tl.float32)
    n_doubtful = tl.zeros((BLOCK_M,), tl.int32)
    begin = tl.program_id(0) * span
    end = tl.minimum(begin + span, n_rows)
    for start in tl.range(begin, end, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        there = tl.minimum(rows, end - 1)
        xs = _columns(x_ptr, stride, there, D)
        label, best, second = _two_nearest(xs, cs, BLOCK_K, D)
        if EXACT:
            is_doubtful = ~is_clear(best, second, D, tl.float32) & (rows < end)
            if tl.max(is_doubtful.to(tl.int32), axis=0) > 0:
                label = _settled(xs, c_ptr, k, D)
                n_doubtful += is_doubtful.to(tl.int32)
        if ZEROS_FIRST:
            label = tl.where(tl.load(sq_norms_ptr + there) == 0, 0, label)
        sq_distance = _sq_distance(xs, c_ptr, label, zero, D, WIDTH)
        tl.store(labels_ptr + rows, label.to(tl.int64), mask=rows < end)
        tl.store(sq_distances_ptr + rows, sq_distance, mask=rows < end)
        is_counted = rows < end
        if HAS_LEFT_OUT:
            is_counted = is_counted & (tl.load(left_out_ptr + there) == 0)
        label = tl.where(is_counted, label, -1)
        if HAS_SHARES:
            xs = _shared_out(xs, tl.load(shares_ptr + there), D)
        sums, counts = _add(xs, label, sums, counts, BLOCK_K, D)
    _store(sums, counts, sums_ptr, counts_ptr, k, BLOCK_K, D)
    tl.atomic_add(rechecked_ptr, tl.sum(n_doubtful, axis=0).to(tl.int64))
