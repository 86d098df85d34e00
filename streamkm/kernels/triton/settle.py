"""Device code that settles rows for which the screen leaves several centroids in doubt."""

from __future__ import annotations

import triton
import triton.language as tl

from streamkm.kernels.triton.common import is_before, load_rows, sq_distances

__all__ = ["queue", "settle_kernel"]


@triton.jit
def queue(
    best, second, limit, clear, rows, n_rows, index_mask, queue_ptr, crowd_ptr, count_ptr,
    BLOCK_N: tl.constexpr, KEPT_N: tl.constexpr, N_LISTED: tl.constexpr, N_SOUGHT: tl.constexpr,
):  # fmt: skip
    """Queue each row unless it is `clear` and just `N_SOUGHT` groups are within the limit.

    An entry is the first centroid of a group. If the second best at a position is within the
    limit too, a third may be, and the entry is ``-1 - position``: all centroids at the position.
    A row with more entries than fit, or with NaN, has 0 entries, which stand for all centroids.
    Its place in the queue is listed at `crowd_ptr`. `count_ptr` counts the queue and, behind
    that, the crowd.
    """
    n = tl.arange(0, KEPT_N)[None, :]
    near = best <= limit[:, None]
    is_crowded = second <= limit[:, None]
    n_near = tl.sum(near.to(tl.int32), axis=1)
    n_shared = tl.sum(is_crowded.to(tl.int32), axis=1)
    certain = (n_near == N_SOUGHT) & (n_shared == 0) & clear
    uncertain = ~certain & (rows < n_rows)
    n_uncertain = tl.sum(uncertain.to(tl.int32), axis=0)
    if n_uncertain > 0:
        first = tl.atomic_add(count_ptr, n_uncertain)
        slots = first + tl.cumsum(uncertain.to(tl.int32), axis=0) - 1
        ptrs = queue_ptr + slots * (2 + N_LISTED)
        # All centroids at a position are a 16th of all, or more. `narrow_kernel`, which takes rows
        # with two such entries, seeks one centroid only.
        MAX_SHARED: tl.constexpr = 1 if N_SOUGHT == 1 else N_LISTED
        fits = (n_near <= N_LISTED) & (n_shared <= MAX_SHARED)
        n_listed = tl.where(uncertain & fits, n_near, 0)
        tl.store(ptrs, rows, mask=uncertain)
        tl.store(ptrs + 1, n_listed, mask=uncertain)
        crowded = (uncertain & (n_listed == 0)).to(tl.int32)
        n_crowded = tl.sum(crowded, axis=0)
        if n_crowded > 0:
            place = tl.atomic_add(count_ptr + 1, n_crowded)
            tl.store(crowd_ptr + place + tl.cumsum(crowded, axis=0) - 1, slots, mask=crowded > 0)
        tile = best.to(tl.int32, bitcast=True) & ~index_mask
        entries = tl.where(is_crowded, -1 - n, tile * BLOCK_N + n)
        before = tl.full(rows.shape, -1, tl.int32)
        for j in range(0, tl.max(n_listed, axis=0)):
            later = near & (n > before[:, None])
            before = tl.min(tl.where(later, n, KEPT_N - 1), axis=1)
            entry = tl.sum(tl.where(n == before[:, None], entries, 0), axis=1)
            tl.store(ptrs + 2 + j, entry, mask=j < n_listed)


@triton.jit
def _merge(least, label, second, runner_up, sq, other):
    """The two nearest of three: two in order, and one more."""
    is_first = is_before(sq, other, least, label)
    is_second = is_before(sq, other, second, runner_up)
    second = tl.where(is_first, least, tl.where(is_second, sq, second))
    runner_up = tl.where(is_first, label, tl.where(is_second, other, runner_up))
    return tl.where(is_first, sq, least), tl.where(is_first, other, label), second, runner_up


@triton.jit
def _nearest_of(sq, ids):
    """The least of a block and its id, the lowest id of equals; NaN is never the least."""
    least = tl.min(tl.where(sq == sq, sq, float("inf")), axis=0)
    return least, tl.min(tl.where(sq == least, ids, 2147483647), axis=0)


@triton.jit(do_not_specialize=["k"])
def settle_kernel(
    x_ptr, stride, c_ptr, labels_ptr, sq_distances_ptr, second_ptr, queue_ptr, count_ptr,
    k, n_features,
    BLOCK_N: tl.constexpr, KEPT_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    STEP_D: tl.constexpr, N_LISTED: tl.constexpr, WIDE: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """Store the true labels of the queued rows, by float64 distances, ties to the lowest index.

    The stored distances are computed as those of all other rows: they do not show which rows
    were queued.
    """
    for slot in range(tl.program_id(0), tl.load(count_ptr), tl.num_programs(0)):
        ptr = queue_ptr + slot * (2 + N_LISTED)
        row = tl.load(ptr)
        n_listed = tl.load(ptr + 1)
        least = tl.full((), float("inf"), tl.float64)
        second = tl.full((), float("inf"), tl.float64)
        label = tl.full((), 2147483647, tl.int32)
        runner_up = tl.full((), 2147483647, tl.int32)
        for j in range(0, tl.maximum(n_listed, 1)):
            entry = tl.load(ptr + 2 + j, mask=n_listed > 0, other=0)
            first = tl.where(entry < 0, -1 - entry, entry)
            end = tl.where((entry < 0) | (n_listed == 0), k, tl.minimum(first + BLOCK_N, k))
            stride_k = tl.where(n_listed == 0, 1, KEPT_N)
            for start in range(first, end, BLOCK_K * stride_k):
                ids = start + tl.arange(0, BLOCK_K) * stride_k
                there = tl.minimum(ids, k - 1)
                sq = tl.zeros((BLOCK_K,), tl.float64)
                for from_d in range(0, n_features, BLOCK_D):
                    d = from_d + tl.arange(0, BLOCK_D)
                    offset = row.to(tl.int64) * stride
                    x = tl.load(x_ptr + offset + d, mask=d < n_features, other=0)
                    c = load_rows(c_ptr, n_features, there, d, n_features, tl.float64)
                    difference = c - x.to(tl.float64)[None, :]
                    sq += tl.sum(difference * difference, axis=1)
                sq = tl.where(ids < end, sq, float("inf"))
                found, found_id = _nearest_of(sq, ids)
                least, label, second, runner_up = _merge(
                    least, label, second, runner_up, found, found_id
                )
                if SECOND:
                    found, found_id = _nearest_of(tl.where(ids == found_id, float("inf"), sq), ids)
                    least, label, second, runner_up = _merge(
                        least, label, second, runner_up, found, found_id
                    )
        one = tl.arange(0, 1)
        # A row with NaN has no nearest centroid.
        label = tl.where(label < k, label, 0)
        ids = label + one
        sq = sq_distances(x_ptr, stride, c_ptr, row + one, ids, n_features, WIDE, STEP_D)
        tl.store(labels_ptr + row, label.to(tl.int64))
        tl.store(sq_distances_ptr + row + one, sq)
        if SECOND:
            runner_up = tl.where(runner_up < k, runner_up, 0)
            ids = runner_up + one
            sq = sq_distances(x_ptr, stride, c_ptr, row + one, ids, n_features, WIDE, STEP_D)
            tl.store(second_ptr + row + one, sq)
