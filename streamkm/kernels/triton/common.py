"""Device code that kernels share: scaling, reading rows, distances, bounds on rounding."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "AMAX",
    "FAR",
    "NORM",
    "ONE_A_ROW",
    "RESIDUAL",
    "SUBNORMAL",
    "is_before",
    "is_clear",
    "keep_two",
    "least_kept",
    "load_rows",
    "raise_to",
    "round_rows",
    "scale_for",
    "score_limit",
    "sq_distances",
    "sum_features",
]

#: A score that no centroid has. Finite: infinity with a tile number in its bits would be NaN.
FAR = tl.constexpr(3.0e38)
#: Loss of a score by underflow, at most, in units of the scaled centroids.
FLOOR = tl.constexpr(2.0**-80)
#: Error of rounding an element that is subnormal in float16, at most.
SUBNORMAL = tl.constexpr(2.0**-25)
#: Relative error of one addition by a tensor core, which truncates instead of rounding.
ADD_EPS = tl.constexpr(2.0**-23)

#: Arguments with one number for each row, which may begin anywhere in a window. Compiled for
#: numbers at any address, so that another window compiles nothing.
ONE_A_ROW = ["sq_norms_ptr", "shares_ptr", "left_out_ptr", "labels_ptr"]

#: Places of what screening must know of the centroids: largest element, greatest length and
#: greatest relative residual. `measure_kernel` fills the first, `round_kernel` the others.
AMAX, NORM, RESIDUAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def scale_for(amax):
    """The power of two that brings `amax` (float32) to [2^14, 2^15), within float32's range."""
    exponent = (amax.to(tl.int32, bitcast=True) >> 23) & 0xFF
    return (tl.minimum(tl.maximum(268 - exponent, 1), 254) << 23).to(tl.float32, bitcast=True)


@triton.jit
def raise_to(ptr, value):
    """Raise the float at `ptr` to `value`, at least 0: such floats are ordered as their bits."""
    tl.atomic_max(ptr.to(tl.pointer_type(tl.int32)), value.to(tl.int32, bitcast=True))


@triton.jit
def load_rows(x_ptr, stride, rows, d, n_features, WIDE: tl.constexpr):
    """Features `d` of existing rows, widened; zeros beyond the last feature."""
    ptrs = x_ptr + rows.to(tl.int64)[:, None] * stride + d[None, :]
    return tl.load(ptrs, mask=(d < n_features)[None, :], other=0).to(WIDE)


@triton.jit
def round_rows(x, scale):
    """Scaled rows, these rounded to float16, and the rounding errors."""
    scaled = x * scale.to(x.dtype)[:, None]
    rounded = scaled.to(tl.float16)
    return scaled.to(tl.float32), rounded, (scaled - rounded.to(x.dtype)).to(tl.float32)


@triton.jit
def score_limit(
    least, c_norm, about_ptr, relative, subnormal, mult, x_norm, x_lost, pack_eps, padded_d
):  # fmt: skip
    """The score up to which a centroid may be the nearest, given the least score.

    By Cauchy-Schwarz ``|x.c - x'.c'| <= |x - x'||c| + |x'||c - c'|``. A centroid
    longer than the row and its distance together cannot be the nearest. So a single
    centroid far away does not make every row uncertain. (Factors above 1 allow for
    rounding in this function.)

    `relative` is the share of a centroid's length that rounding lost, at most, beside
    `subnormal` for each element; `x_lost` is the length that a row lost.
    """
    add = ADD_EPS * (padded_d + 16).to(tl.float32)
    floor = subnormal * tl.sqrt(padded_d.to(tl.float32))
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
def keep_two(best, second, scores, tile, index_mask):
    """Least and second least score at each position, with `tile` in the bits the mask clears."""
    packed = (scores.to(tl.int32, bitcast=True) & index_mask) | tile
    marked = packed.to(tl.float32, bitcast=True)
    # The second is the middle of three, in an order that lets each result overwrite an operand.
    return tl.minimum(best, marked), tl.maximum(best, tl.minimum(second, marked))


@triton.jit
def least_kept(scores, index_mask, BLOCK_N: tl.constexpr, KEPT_N: tl.constexpr):
    """Least score of each row, its position, and the first centroid of its group."""
    n = tl.arange(0, KEPT_N)[None, :]
    least = tl.min(scores, axis=1)
    position = tl.min(tl.where(scores == least[:, None], n, KEPT_N - 1), axis=1)
    tile = least.to(tl.int32, bitcast=True) & ~index_mask
    return least, position, tile * BLOCK_N + position


@triton.jit
def sq_distances(
    x_ptr, stride, c_ptr, rows, ids, n_features, WIDE: tl.constexpr, STEP_D: tl.constexpr
):
    """Sum of squared differences between each row and its own centroid.

    The order of adding depends neither on the shape of the tile nor on its layout. So the
    bits of a distance depend on the row and the centroid alone.
    """
    total = tl.zeros((ids.shape[0], STEP_D), WIDE)
    for start in range(0, n_features, STEP_D):
        d = start + tl.arange(0, STEP_D)
        x = load_rows(x_ptr, stride, rows, d, n_features, WIDE)
        c = load_rows(c_ptr, n_features, ids, d, n_features, WIDE)
        difference = x - c
        total = tl.fma(difference, difference, total)
    return sum_features(total)


@triton.jit
def sum_features(total):
    """Sum of each row: of neighbours in pairs, then of these sums in pairs, and so on."""
    for _ in tl.static_range(7):
        if total.shape[1] > 1:
            left, right = tl.split(tl.reshape(total, (total.shape[0], total.shape[1] // 2, 2)))
            total = left + right
    return tl.reshape(total, (total.shape[0],))


@triton.jit
def is_before(sq, label, other_sq, other):
    """Whether one centroid is nearer than the other, or as near with a lower index."""
    return (sq < other_sq) | ((sq == other_sq) & (label < other))


@triton.jit
def is_clear(least, others, n_features, WIDE: tl.constexpr):
    """Whether rounding cannot have exchanged two results of `sq_distances`.

    All terms of a sum are positive. So its relative error is at most eps times the number of
    roundings that a term goes through, for which ``n_features // 16 + 16`` is a bound.
    """
    IS_DOUBLE: tl.constexpr = tl.float64 == WIDE
    EPS: tl.constexpr = 2.0**-52 if IS_DOUBLE else 2.0**-23
    LOST: tl.constexpr = 2.0**-1021 if IS_DOUBLE else 2.0**-125
    share = EPS * (n_features // 16 + 16)
    return others * (1 - share) > least * (1 + share) + LOST * n_features
