"""Device code for few centroids of few features: labels, distances and sums in one read of x.

A program goes through a span of consecutive rows, tile by tile. It scores each tile against
all centroids, which stay on the chip. Rows that the screen leaves in doubt are settled at once,
by float64 distances to all centroids. Then the tile is added up. For that its rows are loaded
again, a few features at a time, while they lie in the multiprocessor's cache: device memory is
read once, and registers hold little.

The rows of a tile that belong to one cluster are added up first. Tensor cores multiply the tile
by a matrix that has a 1 where two rows have the same label. The rows must not be rounded:
float32 rows go in as three bfloat16 terms (3 x 8 bits, the whole mantissa), stored dtypes of 8
or 11 bits as they are. The products of a tile start from zero, because tensor cores truncate
when they add. Then one row of each cluster in the tile adds its product to the sums of the span
in memory, which no other program writes. So tiles are added in float32 in their order, and spans
in float64 in theirs. The end of a span depends on the number of rows alone, and no sum depends on
what is tuned: the same rows give the same bits.

Rejected: atomics (another order each time), sums of rounded rows (tf32), and sums of all clusters
in registers, as products with a matrix of rows by clusters (four times the products with 256
clusters, and more registers than there are).
"""

from __future__ import annotations

import triton
import triton.language as tl

from streamkm.kernels.triton.common import (
    AMAX,
    FAR,
    ONE_A_ROW,
    RESIDUAL,
    SUBNORMAL,
    keep_two,
    least_kept,
    load_rows,
    scale_for,
    score_limit,
    sq_distances,
)

__all__ = ["add_spans_kernel", "one_read_kernel"]


@triton.jit
def _settled(x_ptr, c_ptr, k, n_features, BLOCK_C: tl.constexpr, STEP_D: tl.constexpr):
    """The nearest centroid of one row by float64 distances; the lowest index wins a tie."""
    least = tl.full((), float("inf"), tl.float64)
    label = tl.full((), 0, tl.int32)
    for first in range(0, k, BLOCK_C):
        ids = first + tl.arange(0, BLOCK_C)
        there = tl.minimum(ids, k - 1)
        sq = tl.zeros((BLOCK_C,), tl.float64)
        for start in range(0, n_features, STEP_D):
            d = start + tl.arange(0, STEP_D)
            x = tl.load(x_ptr + d, mask=d < n_features, other=0).to(tl.float64)[None, :]
            difference = load_rows(c_ptr, n_features, there, d, n_features, tl.float64) - x
            sq += tl.sum(difference * difference, axis=1)
        # NaN is never the least.
        sq = tl.where((ids < k) & (sq == sq), sq, float("inf"))
        found = tl.min(sq, axis=0)
        label = tl.where(found < least, tl.min(tl.where(sq == found, ids, k), axis=0), label)
        least = tl.minimum(least, found)
    return label


@triton.jit
def _score_tiles(c16_ptr, d, padded_d, FIRST: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """Tuple of `N` tiles of the rounded centroids, transposed, from tile `FIRST` on."""
    n = FIRST * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = (tl.load(c16_ptr + n[None, :] * padded_d + d[:, None]),)
    if N > 1:
        tiles = tiles + _score_tiles(c16_ptr, d, padded_d, FIRST + 1, N - 1, BLOCK_N)
    return tiles


@triton.jit
def _assigned(
    x_ptr, stride, c_ptr, c16s, c_sq_ptr, about_ptr, rows, end, k, n_features, padded_d,
    LOST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, N_TILES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, STEP_D: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Labels and squared distances of a tile of rows, and the number of rows settled."""
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    # Rows take a 32nd of the scale of the centroids. That leaves room for rows 32 times as far
    # out, beyond which scores overflow and are in doubt, and for elements 2^24 times smaller.
    x_scale = scale_for(tl.load(about_ptr + AMAX)) * 0.03125
    mult = tl.full((), -64.0, tl.float32)
    n_settled = tl.full((), 0, tl.int32)
    there = tl.minimum(rows, end - 1)
    x = load_rows(x_ptr, stride, there, d, n_features, tl.float32)
    x16 = (x * x_scale).to(tl.float16)
    best = tl.full((BLOCK_M, BLOCK_N), FAR, tl.float32)
    second = tl.full((BLOCK_M, BLOCK_N), FAR, tl.float32)
    for tile in tl.static_range(N_TILES):
        c_sq = tl.load(c_sq_ptr + tile * BLOCK_N + tl.arange(0, BLOCK_N))
        scores = tl.dot(x16, c16s[tile]) * mult + c_sq[None, :]
        best, second = keep_two(best, second, scores, tile, -N_TILES)
    least, position, label = least_kept(best, -N_TILES, BLOCK_N, BLOCK_N)
    label = tl.where(label < k, label, 0)
    others = tl.where(tl.arange(0, BLOCK_N)[None, :] == position[:, None], second, best)
    runner_up = tl.min(others, axis=1)
    sq_distance = sq_distances(x_ptr, stride, c_ptr, there, label, n_features, tl.float32, STEP_D)
    if EXACT:
        c_norm = tl.sqrt(tl.load(c_sq_ptr + label))
        # A row is at most as long as its centroid and its distance together. (Squares below
        # the least float32 number are missing from the distance.)
        x_norm = x_scale * (tl.sqrt(sq_distance) + 2.0**-59) + 0.03125 * c_norm
        x_norm *= 1.0 + 2.0**-16
        x_lost = LOST * x_norm + SUBNORMAL * tl.sqrt(padded_d.to(tl.float32))
        PACK_EPS: tl.constexpr = N_TILES * 2.0**-22
        limit = score_limit(
            least, c_norm, about_ptr, tl.load(about_ptr + RESIDUAL), SUBNORMAL, mult, x_norm,
            x_lost, PACK_EPS, padded_d,
        )  # fmt: skip
        # A score that is not a number rules out no centroid.
        is_certain = (runner_up > limit) & (tl.abs(least) < 0.5 * FAR)
        is_doubtful = ~is_certain & (rows < end)
        n_settled = tl.sum(is_doubtful.to(tl.int32), axis=0)
        for _ in range(0, n_settled):
            place = tl.min(tl.where(is_doubtful, m, BLOCK_M), axis=0)
            is_doubtful = is_doubtful & (m > place)
            row = tl.min(rows, axis=0) + place
            row_ptr = x_ptr + row.to(tl.int64) * stride
            found = _settled(row_ptr, c_ptr, k, n_features, BLOCK_C, STEP_D)
            one = tl.arange(0, 1)
            found_sq = sq_distances(
                x_ptr, stride, c_ptr, row + one, found + one, n_features, tl.float32, STEP_D
            )
            label = tl.where(m == place, found, label)
            sq_distance = tl.where(m == place, tl.sum(found_sq, axis=0), sq_distance)
    return label, sq_distance, n_settled


@triton.jit
def _leading_bits(x):
    """float32 numbers without their last 16 bits: bfloat16 numbers."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _tile_sums(member, x, TERM: tl.constexpr, FACTOR: tl.constexpr, N_TERMS: tl.constexpr):
    """For each row of a tile the sum of the rows that `member` marks, from zero.

    Terms are numbers of dtype `TERM`, multiplied as `FACTOR`, which is another dtype only where
    the interpreter multiplies.
    """
    hot = tl.where(member, 1.0, 0.0).to(FACTOR)
    if N_TERMS == 1:
        sums = tl.dot(hot, x.to(TERM).to(FACTOR))
    else:
        # The first 8 bits, the next 8 and the last 8: nothing is rounded.
        high = _leading_bits(x)
        middle = _leading_bits(x - high)
        low = (x - high) - middle
        sums = tl.dot(hot, low.to(TERM).to(FACTOR))
        sums = tl.dot(hot, middle.to(TERM).to(FACTOR), sums)
        sums = tl.dot(hot, high.to(TERM).to(FACTOR), sums)
    return sums


@triton.jit(do_not_specialize=["n_rows", "k", "span"], do_not_specialize_on_alignment=ONE_A_ROW)
def one_read_kernel(
    x_ptr, stride, c_ptr, c16_ptr, c_sq_ptr, about_ptr, sq_norms_ptr, shares_ptr, left_out_ptr,
    labels_ptr, sq_distances_ptr, sums_ptr, counts_ptr, rechecked_ptr,
    n_rows, k, n_features, padded_d, span,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr, SLAB_D: tl.constexpr, STEP_D: tl.constexpr,
    TERM: tl.constexpr, FACTOR: tl.constexpr, N_TERMS: tl.constexpr, HAS_SHARES: tl.constexpr,
    HAS_LEFT_OUT: tl.constexpr, ZEROS_FIRST: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Store labels and squared distances of a span of rows, and its sums and counts."""
    # Share of a row's length that rounding to float16 loses; stored dtypes fit it.
    LOST: tl.constexpr = 0.0 if N_TERMS == 1 else 2.0**-11
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    c16s = _score_tiles(c16_ptr, d, padded_d, 0, BLOCK_K // BLOCK_N, BLOCK_N)
    span_ptr = sums_ptr + tl.program_id(0).to(tl.int64) * k * n_features
    for first in range(0, k * n_features, 1024):
        e = first + tl.arange(0, 1024)
        tl.store(span_ptr + e, tl.zeros((1024,), tl.float32), mask=e < k * n_features)
    counts = tl.zeros((BLOCK_K,), tl.int32)
    n_doubtful = tl.full((), 0, tl.int32)
    begin = tl.program_id(0) * span
    end = tl.minimum(begin + span, n_rows)
    for start in tl.range(begin, end, BLOCK_M, num_stages=1):
        rows = start + m
        there = tl.minimum(rows, end - 1)
        label, sq_distance, n_settled = _assigned(
            x_ptr, stride, c_ptr, c16s, c_sq_ptr, about_ptr, rows, end, k, n_features, padded_d,
            LOST, BLOCK_M, BLOCK_N, BLOCK_K // BLOCK_N, BLOCK_C, BLOCK_D, STEP_D, EXACT,
        )  # fmt: skip
        n_doubtful += n_settled
        if ZEROS_FIRST:
            label = tl.where(tl.load(sq_norms_ptr + there) == 0, 0, label)
        tl.store(labels_ptr + rows, label.to(tl.int64), mask=rows < end)
        tl.store(sq_distances_ptr + rows, sq_distance, mask=rows < end)
        is_counted = rows < end
        if HAS_LEFT_OUT:
            is_counted = is_counted & (tl.load(left_out_ptr + there) == 0)
        counts += tl.histogram(label, BLOCK_K, mask=is_counted)
        label = tl.where(is_counted, label, -1)
        same = label[:, None] == label[None, :]
        # The first row of each cluster in the tile adds the sum of all its rows.
        leader = tl.min(tl.where(same, m[None, :], BLOCK_M), axis=1)
        brings = ((leader == m) & (label >= 0))[:, None]
        row_ptrs = span_ptr + label[:, None] * n_features
        # The thread that adds to a cluster differs from tile to tile.
        tl.debug_barrier()
        for first_d in range(0, BLOCK_D, SLAB_D):
            at = first_d + tl.arange(0, SLAB_D)
            part = load_rows(x_ptr, stride, there, at, n_features, tl.float32)
            if HAS_LEFT_OUT:
                part = tl.where(is_counted[:, None], part, 0.0)
            if HAS_SHARES:
                part *= tl.load(shares_ptr + there)[:, None]
            part = _tile_sums(same, part, TERM, FACTOR, N_TERMS)
            ptrs = row_ptrs + at[None, :]
            mask = brings & (at < n_features)[None, :]
            tl.store(ptrs, tl.load(ptrs, mask=mask, other=0.0) + part, mask=mask)
    tl.store(counts_ptr + tl.program_id(0) * k + n, counts, mask=n < k)
    tl.atomic_add(rechecked_ptr, n_doubtful.to(tl.int64))


@triton.jit(do_not_specialize=["n_spans", "k"])
def add_spans_kernel(
    span_sums_ptr, span_counts_ptr, sums_ptr, counts_ptr, n_spans, k, n_features,
    BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Add the sums of spans, in float64 and in order of spans, and their counts."""
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
    # The programs cover all counts: there are at least as many elements as clusters.
    tl.store(counts_ptr + e, tl.load(counts_ptr + e, mask=e < k, other=0) + count, mask=e < k)
