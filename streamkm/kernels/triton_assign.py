"""Device code of the assignment: screening on tensor cores, certified by a bound on its error.

Rows and centroids are rounded to float16 after scaling by powers of two, so that
any input dtype keeps 11 bits and nothing overflows. A program holds a tile of
rows and goes over all centroids; at every position of the score tile it keeps
the least and second least score, with the number of the centroid tile in the
lowest bits of the mantissa. Nothing is reduced across lanes before the end.

What rounding can have done to a score is bounded from the residuals that were
measured when rows and centroids were rounded (Cauchy-Schwarz), so a row whose
runner-up lies beyond the bound is certain. The few others are queued with the
centroids that may be nearest, and `settle_kernel` compares those by float64
sums of squared differences, in which nothing cancels. It reads the length of
the queue on the device: the host never waits.

Rejected: bfloat16 (8 bits: four times the bound, several times the queue) and
tf32 (11 bits too, at half the rate).
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["measure_kernel", "round_kernel", "round_rows_kernel", "screen_kernel", "settle_kernel"]

#: A score that no centroid has; finite, so that a tile number in it makes no NaN.
FAR = tl.constexpr(3.0e38)
#: Scores in units of the scaled centroids that underflow may have cost.
FLOOR = tl.constexpr(2.0**-80)
#: Rounding one element that is subnormal in float16.
SUBNORMAL = tl.constexpr(2.0**-25)
#: Error of one addition by a tensor core, which cuts off instead of rounding.
ADD_EPS = tl.constexpr(2.0**-23)

#: Where `measure_kernel` and `round_kernel` leave what screening needs to know.
AMAX, NORM, RESIDUAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _scale_for(amax):
    """The power of two that brings `amax` (float32) to [2^14, 2^15), as far as float32 goes."""
    exponent = (amax.to(tl.int32, bitcast=True) >> 23) & 0xFF
    return (tl.minimum(tl.maximum(268 - exponent, 1), 254) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _raise_to(ptr, value):
    """Maximum of what is at `ptr` and the non-negative float `value`: integers in its order."""
    tl.atomic_max(ptr.to(tl.pointer_type(tl.int32)), value.to(tl.int32, bitcast=True))


@triton.jit(do_not_specialize=["k", "n_features"])
def measure_kernel(c_ptr, about_ptr, k, n_features, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr):
    """Largest element of the centroids."""
    ids = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    amax = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, n_features, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = (ids < k)[:, None] & (d < n_features)[None, :]
        offsets = ids.to(tl.int64)[:, None] * n_features + d[None, :]
        c = tl.load(c_ptr + offsets, mask=inside, other=0.0)
        amax = tl.maximum(amax, tl.max(tl.abs(c).to(tl.float32), axis=1))
    _raise_to(about_ptr + AMAX, tl.max(amax, axis=0))


@triton.jit(do_not_specialize=["k", "n_features"])
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
    """Centroids as scaled float16, padded with zeros; their squared lengths; the residuals."""
    ids = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    scale = _scale_for(tl.load(about_ptr + AMAX))
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
    # What a centroid lost by being short beside the longest is one for all of them.
    beyond = tl.maximum(tl.sqrt(sq_residual) - SUBNORMAL * tl.sqrt(padded_d.to(tl.float32)), 0.0)
    relative = tl.where(norm > 0, beyond / tl.where(norm > 0, norm, 1.0), 0.0)
    _raise_to(about_ptr + NORM, tl.max(norm, axis=0))
    _raise_to(about_ptr + RESIDUAL, tl.max(relative, axis=0))


@triton.jit
def _load_rows(x_ptr, stride, rows, n_rows, d, n_features, WIDE: tl.constexpr):
    inside = (rows < n_rows)[:, None] & (d < n_features)[None, :]
    x = tl.load(x_ptr + rows.to(tl.int64)[:, None] * stride + d[None, :], mask=inside, other=0)
    return x.to(WIDE)


@triton.jit
def _rounded(x, scale):
    """Scaled rows, the same rounded to float16, and what that lost."""
    scaled = x * scale.to(x.dtype)[:, None]
    rounded = scaled.to(tl.float16)
    return scaled.to(tl.float32), rounded, (scaled - rounded.to(x.dtype)).to(tl.float32)


@triton.jit
def _keep_two(best, second, scores, tile, index_mask):
    """Least and second least score at each position, `tile` in the bits that the mask frees."""
    packed = (scores.to(tl.int32, bitcast=True) & index_mask) | tile
    marked = packed.to(tl.float32, bitcast=True)
    # The middle one of three, in an order that lets every result overwrite its operand.
    return tl.minimum(best, marked), tl.maximum(best, tl.minimum(second, marked))


@triton.jit
def _halves(scores):
    """Left and right half of the columns, without moving anything between lanes."""
    paired = tl.reshape(scores, (scores.shape[0], 2, scores.shape[1] // 2))
    return tl.split(tl.permute(paired, (0, 2, 1)))


@triton.jit
def _keep_tile(best, second, scores, tile, index_mask, FOLD: tl.constexpr):
    """`_keep_two` for a tile that is `FOLD` (1, 2 or 4) times as wide as what is kept."""
    if FOLD == 1:
        best, second = _keep_two(best, second, scores, tile, index_mask)
    else:
        left, right = _halves(scores)
        if FOLD == 2:
            best, second = _keep_two(best, second, left, 2 * tile, index_mask)
            best, second = _keep_two(best, second, right, 2 * tile + 1, index_mask)
        else:
            first, after = _halves(left)
            best, second = _keep_two(best, second, first, 4 * tile, index_mask)
            best, second = _keep_two(best, second, after, 4 * tile + 1, index_mask)
            first, after = _halves(right)
            best, second = _keep_two(best, second, first, 4 * tile + 2, index_mask)
            best, second = _keep_two(best, second, after, 4 * tile + 3, index_mask)
    return best, second


@triton.jit
def _least(scores, index_mask, KEPT_N: tl.constexpr):
    """Least score of each row, its position and the centroid that it is of."""
    n = tl.arange(0, KEPT_N)[None, :]
    least = tl.min(scores, axis=1)
    position = tl.min(tl.where(scores == least[:, None], n, KEPT_N - 1), axis=1)
    tile = least.to(tl.int32, bitcast=True) & ~index_mask
    return least, position, tile * KEPT_N + position


@triton.jit
def _limit(least, c_norm, about_ptr, mult, x_norm, x_lost, pack_eps, padded_d):
    """The score up to which a centroid may be the nearest, given the least one.

    By Cauchy-Schwarz ``|x.c - x'.c'| <= |x - x'||c| + |x'||c - c'|``. No centroid
    longer than the row and its distance together can be the nearest, so that one
    far away does not make every row uncertain. (The factors above 1 are for
    rounding in here.)
    """
    add = ADD_EPS * (padded_d + 16).to(tl.float32)
    floor = SUBNORMAL * tl.sqrt(padded_d.to(tl.float32))
    relative = tl.load(about_ptr + RESIDUAL)
    x_reach = x_norm + x_lost
    per_length = tl.abs(mult) * (x_lost + x_reach * (relative + add))
    fixed = tl.abs(mult) * x_reach * floor + pack_eps * tl.abs(least) + FLOOR
    own = per_length * c_norm + add * c_norm * c_norm + fixed
    in_units_of_c = 0.5 * tl.abs(mult) * x_norm
    sq_distance = tl.maximum(least + own + in_units_of_c * in_units_of_c, 0.0)
    reach = 1.001 * (in_units_of_c + tl.sqrt(sq_distance))
    longest = tl.minimum(reach, tl.load(about_ptr + NORM))
    other = per_length * longest + add * longest * longest + fixed
    return least + 1.02 * (1.0 + 4.0 * pack_eps) * (own + other)


@triton.jit
def _sq_distances(
    x_ptr, stride, c_ptr, rows, labels, n_rows, n_features, WIDE: tl.constexpr, STEP_D: tl.constexpr
):
    """Sum of squared differences of each row and the centroid of its label."""
    total = tl.zeros(rows.shape, WIDE)
    for start in range(0, n_features, STEP_D):
        d = start + tl.arange(0, STEP_D)
        x = _load_rows(x_ptr, stride, rows, n_rows, d, n_features, WIDE)
        c = _load_rows(c_ptr, n_features, labels, 2147483647, d, n_features, WIDE)
        total += tl.sum((x - c) * (x - c), axis=1)
    return total


@triton.jit
def _queue(
    best, second, limit, rows, n_rows, index_mask, queue_ptr, count_ptr,
    KEPT_N: tl.constexpr, N_LISTED: tl.constexpr,
):  # fmt: skip
    """Queue each row for which several centroids are within the limit, and list these.

    An entry is a centroid, or ``-1 - position`` for all centroids at a position
    where the second best is within the limit too, since a third may be. A row
    with more entries than fit, or with NaN, has 0 of them: all centroids.
    """
    n = tl.arange(0, KEPT_N)[None, :]
    near = best <= limit[:, None]
    is_crowded = second <= limit[:, None]
    n_near = tl.sum(near.to(tl.int32), axis=1)
    n_crowded = tl.sum(is_crowded.to(tl.int32), axis=1)
    uncertain = ((n_near != 1) | (n_crowded > 0)) & (rows < n_rows)
    n_uncertain = tl.sum(uncertain.to(tl.int32), axis=0)
    if n_uncertain > 0:
        first = tl.atomic_add(count_ptr, n_uncertain)
        slots = first + tl.cumsum(uncertain.to(tl.int32), axis=0) - 1
        ptrs = queue_ptr + slots * (2 + N_LISTED)
        n_listed = tl.where(uncertain & (n_near <= N_LISTED), n_near, 0)
        tl.store(ptrs, rows, mask=uncertain)
        tl.store(ptrs + 1, n_listed, mask=uncertain)
        tile = best.to(tl.int32, bitcast=True) & ~index_mask
        entries = tl.where(is_crowded, -1 - n, tile * KEPT_N + n)
        before = tl.full(rows.shape, -1, tl.int32)
        for j in range(0, tl.max(n_listed, axis=0)):
            later = near & (n > before[:, None])
            before = tl.min(tl.where(later, n, KEPT_N - 1), axis=1)
            entry = tl.sum(tl.where(n == before[:, None], entries, 0), axis=1)
            tl.store(ptrs + 2 + j, entry, mask=j < n_listed)


@triton.jit(do_not_specialize=["n_rows", "n_features"])
def round_rows_kernel(
    x_ptr, stride, x16_ptr, x_about_ptr, n_rows, n_features, padded_d,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Rows as scaled float16, padded with zeros; scale, length and length of what was lost.

    For rows of so many features that a tile of them cannot stay on the chip.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    amax = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, n_features, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = _load_rows(x_ptr, stride, rows, n_rows, d, n_features, WIDE)
        amax = tl.maximum(amax, tl.max(tl.abs(x).to(tl.float32), axis=1))
    scale = _scale_for(amax)
    sq_norm = tl.zeros((BLOCK_M,), tl.float32)
    sq_lost = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, padded_d, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = _load_rows(x_ptr, stride, rows, n_rows, d, n_features, WIDE)
        scaled, rounded, lost = _rounded(x, scale)
        ptrs = x16_ptr + rows.to(tl.int64)[:, None] * padded_d + d[None, :]
        tl.store(ptrs, rounded, mask=(rows < n_rows)[:, None] & (d < padded_d)[None, :])
        sq_norm += tl.sum(scaled * scaled, axis=1)
        sq_lost += tl.sum(lost * lost, axis=1)
    about_ptrs = x_about_ptr + rows
    tl.store(about_ptrs, scale, mask=rows < n_rows)
    tl.store(about_ptrs + n_rows, tl.sqrt(sq_norm), mask=rows < n_rows)
    tl.store(about_ptrs + 2 * n_rows, tl.sqrt(sq_lost), mask=rows < n_rows)


@triton.jit(do_not_specialize=["n_rows", "k", "n_features", "n_tiles", "index_mask"])
def screen_kernel(
    x_ptr, stride, x16_ptr, x_about_ptr, c_ptr, c16_ptr, c_sq_ptr, about_ptr,
    labels_ptr, sq_distances_ptr, second_ptr, queue_ptr, count_ptr,
    n_rows, k, n_features, padded_d, n_tiles, index_mask, pack_eps,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, FOLD: tl.constexpr, BLOCK_D: tl.constexpr,
    STEP_D: tl.constexpr, N_LISTED: tl.constexpr, WIDE: tl.constexpr, RESIDENT: tl.constexpr,
    EXACT: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """Labels and squared distances of a tile of rows; uncertain rows are queued."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    if RESIDENT:
        x = _load_rows(x_ptr, stride, rows, n_rows, d, n_features, WIDE)
        x_scale = _scale_for(tl.max(tl.abs(x).to(tl.float32), axis=1))
        scaled, x16, lost = _rounded(x, x_scale)
        x_norm = tl.sqrt(tl.sum(scaled * scaled, axis=1))
        x_lost = tl.sqrt(tl.sum(lost * lost, axis=1))
    else:
        x_scale = tl.load(x_about_ptr + rows, mask=rows < n_rows, other=1.0)
        x_norm = tl.load(x_about_ptr + n_rows + rows, mask=rows < n_rows, other=0.0)
        x_lost = tl.load(x_about_ptr + 2 * n_rows + rows, mask=rows < n_rows, other=0.0)
    mult = -2.0 * _scale_for(tl.load(about_ptr + AMAX)) / x_scale
    KEPT_N: tl.constexpr = BLOCK_N // FOLD
    best = tl.full((BLOCK_M, KEPT_N), FAR, tl.float32)
    second = tl.full((BLOCK_M, KEPT_N), FAR, tl.float32)
    for tile in range(0, n_tiles):
        c_rows = (tile * BLOCK_N + n).to(tl.int64) * padded_d
        c16_ptrs = c16_ptr + c_rows[None, :] + d[:, None]
        if RESIDENT:
            products = tl.dot(x16, tl.load(c16_ptrs))
        else:
            products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            x16_ptrs = x16_ptr + rows.to(tl.int64)[:, None] * padded_d + d[None, :]
            for start in range(0, padded_d, BLOCK_D):
                x16 = tl.load(x16_ptrs + start, mask=(rows < n_rows)[:, None], other=0.0)
                products = tl.dot(x16, tl.load(c16_ptrs + start), products)
        scores = products * mult[:, None] + tl.load(c_sq_ptr + tile * BLOCK_N + n)[None, :]
        best, second = _keep_tile(best, second, scores, tile, index_mask, FOLD)
    least, position, label = _least(best, index_mask, KEPT_N)
    # A row whose scores are all NaN or infinite has no least one.
    label = tl.where(label < k, label, 0)
    sq_distance = _sq_distances(x_ptr, stride, c_ptr, rows, label, n_rows, n_features, WIDE, STEP_D)
    tl.store(labels_ptr + rows, label.to(tl.int64), mask=rows < n_rows)
    tl.store(sq_distances_ptr + rows, sq_distance, mask=rows < n_rows)
    if SECOND:
        others = tl.where(tl.arange(0, KEPT_N)[None, :] == position[:, None], second, best)
        _, _, runner_up = _least(others, index_mask, KEPT_N)
        runner_up = tl.where(runner_up < k, runner_up, 0)
        sq_distance = _sq_distances(
            x_ptr, stride, c_ptr, rows, runner_up, n_rows, n_features, WIDE, STEP_D
        )
        tl.store(second_ptr + rows, sq_distance, mask=rows < n_rows)
    if EXACT:
        c_norm = tl.sqrt(tl.load(c_sq_ptr + label))
        limit = _limit(least, c_norm, about_ptr, mult, x_norm, x_lost, pack_eps, padded_d)
        _queue(
            best, second, limit, rows, n_rows, index_mask, queue_ptr, count_ptr, KEPT_N, N_LISTED
        )


@triton.jit(do_not_specialize=["k", "n_features"])
def settle_kernel(
    x_ptr, stride, c_ptr, labels_ptr, sq_distances_ptr, second_ptr, queue_ptr, count_ptr,
    k, n_features,
    KEPT_N: tl.constexpr, BLOCK_K: tl.constexpr, STEP_D: tl.constexpr, N_LISTED: tl.constexpr,
    SECOND: tl.constexpr,
):  # fmt: skip
    """True labels of the queued rows, ties to the lowest index, by float64 distances."""
    for slot in range(tl.program_id(0), tl.load(count_ptr), tl.num_programs(0)):
        ptr = queue_ptr + slot * (2 + N_LISTED)
        row = tl.load(ptr).to(tl.int64)
        n_listed = tl.load(ptr + 1)
        least = tl.full((), float("inf"), tl.float64)
        runner_up = tl.full((), float("inf"), tl.float64)
        label = tl.full((), 0, tl.int32)
        for j in range(0, tl.maximum(n_listed, 1)):
            entry = tl.load(ptr + 2 + j, mask=n_listed > 0, other=0)
            first = tl.where(entry < 0, -1 - entry, entry)
            end = tl.where((entry < 0) | (n_listed == 0), k, tl.minimum(first + 1, k))
            stride_k = tl.where(n_listed == 0, 1, KEPT_N)
            for start in range(first, end, BLOCK_K * stride_k):
                ids = start + tl.arange(0, BLOCK_K) * stride_k
                sq = tl.zeros((BLOCK_K,), tl.float64)
                for from_d in range(0, n_features, STEP_D):
                    d = from_d + tl.arange(0, STEP_D)
                    x = tl.load(x_ptr + row * stride + d, mask=d < n_features, other=0)
                    c = _load_rows(c_ptr, n_features, ids, end, d, n_features, tl.float64)
                    difference = c - x.to(tl.float64)[None, :]
                    sq += tl.sum(difference * difference, axis=1)
                sq = tl.where(ids < end, sq, float("inf"))
                found = tl.min(sq, axis=0)
                id_found = tl.min(tl.where(sq == found, ids, 2147483647), axis=0)
                others = tl.min(tl.where(ids == id_found, float("inf"), sq), axis=0)
                runner_up = tl.minimum(tl.maximum(least, found), tl.minimum(runner_up, others))
                is_better = (found < least) | ((found == least) & (id_found < label))
                label = tl.where(is_better & (id_found < k), id_found, label)
                least = tl.minimum(least, found)
        tl.store(labels_ptr + row, label.to(tl.int64))
        tl.store(sq_distances_ptr + row, least.to(sq_distances_ptr.dtype.element_ty))
        if SECOND:
            tl.store(second_ptr + row, runner_up.to(second_ptr.dtype.element_ty))
