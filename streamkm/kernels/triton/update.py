"""Device code of the accumulation: sums and counts that have the same bits every time.

Rows are sorted by label, stably, and cut into chunks of a fixed length. A program adds up
a chunk row by row. The sum of a cluster that lies in one chunk is written at once. If a
cluster goes on into the next chunks, `join_kernel` adds its pieces in their order. The
order in which programs run decides nothing, and no chunk waits for another, however
unequal the clusters. Counts are integers, so atomics will do for them.

Rejected: atomics on sums (other bits on every run), and one program a cluster (a large
cluster then takes as long as all others together).
"""

from __future__ import annotations

import triton
import triton.language as tl

from streamkm.kernels.triton.common import ONE_A_ROW

__all__ = ["add_chunks_kernel", "join_kernel"]


@triton.jit
def _label_at(labels_ptr, position, n_rows):
    """Label at `position` of the sorted rows; -1 beyond both ends."""
    inside = (position >= 0) & (position < n_rows)
    return tl.load(labels_ptr + position, mask=inside, other=-1).to(tl.int32)


@triton.jit(do_not_specialize=["n_rows"], do_not_specialize_on_alignment=ONE_A_ROW)
def add_chunks_kernel(
    x_ptr, stride, shares_ptr, order_ptr, labels_ptr, sums_ptr, counts_ptr, pieces_ptr,
    n_rows, n_features,
    CHUNK: tl.constexpr, BLOCK_D: tl.constexpr, HAS_SHARES: tl.constexpr,
):  # fmt: skip
    """Add the rows of each cluster within one chunk of the sorted rows.

    The sum of a cluster that the chunk holds whole goes to `sums_ptr`. The other sums go to
    the chunk's `pieces_ptr`: to its first half if the cluster began in a chunk before, to its
    second half if the cluster begins here and goes on in the next.
    """
    chunk = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = chunk * CHUNK
    end = tl.minimum(begin + CHUNK, n_rows)
    from_before = _label_at(labels_ptr, begin - 1, n_rows)
    dtype = sums_ptr.dtype.element_ty
    piece_ptrs = pieces_ptr + chunk.to(tl.int64) * 2 * n_features + d
    total = tl.zeros((BLOCK_D,), dtype)
    since = begin
    for i in tl.range(0, end - begin, num_stages=4):
        position = begin + i
        label = _label_at(labels_ptr, position, n_rows)
        following = _label_at(labels_ptr, position + 1, n_rows)
        row = tl.load(order_ptr + position).to(tl.int64)
        x = tl.load(x_ptr + row * stride + d, mask=d < n_features, other=0)
        if HAS_SHARES:
            total += x.to(dtype) * tl.load(shares_ptr + row)
        else:
            total += x.to(dtype)
        ends = following != label
        is_last = ends | (position + 1 == end)
        came = (since == begin) & (label == from_before)
        began = (since != begin) | (label != from_before)
        whole = began & ends
        leaves = is_last & began & (following == label)
        sum_ptrs = sums_ptr + label.to(tl.int64) * n_features + d
        mask = d < tl.where(whole, n_features, 0)
        tl.store(sum_ptrs, tl.load(sum_ptrs, mask=mask, other=0) + total, mask=mask)
        tl.store(piece_ptrs, total, mask=d < tl.where(is_last & came, n_features, 0))
        tl.store(piece_ptrs + n_features, total, mask=d < tl.where(leaves, n_features, 0))
        is_counted = is_last & (tl.program_id(1) == 0)
        tl.atomic_add(counts_ptr + label, (position + 1 - since).to(tl.int64), mask=is_counted)
        total = tl.where(is_last, tl.zeros_like(total), total)
        since = tl.where(is_last, position + 1, since)


@triton.jit(do_not_specialize=["n_rows"])
def join_kernel(
    labels_ptr, sums_ptr, pieces_ptr, n_rows, n_features,
    CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add the pieces of the cluster that begins in a chunk and goes on in the next."""
    chunk = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = chunk * CHUNK
    end = begin + CHUNK
    label = _label_at(labels_ptr, end - 1, n_rows)
    goes = (label >= 0) & (_label_at(labels_ptr, end, n_rows) == label)
    begins = _label_at(labels_ptr, begin - 1, n_rows) != label
    if goes & begins:
        # `after` becomes the chunk after the last one that begins with this label.
        after = chunk + 1
        beyond = tl.cdiv(n_rows, CHUNK)
        while after < beyond:
            middle = (after + beyond) // 2
            is_same = _label_at(labels_ptr, middle * CHUNK, n_rows) == label
            after = tl.where(is_same, middle + 1, after)
            beyond = tl.where(is_same, beyond, middle)
        stored = pieces_ptr + d
        inside_d = d < n_features
        total = tl.load(stored + (chunk.to(tl.int64) * 2 + 1) * n_features, mask=inside_d)
        for start in range(chunk + 1, after, BLOCK_C):
            chunks = start + tl.arange(0, BLOCK_C)
            offsets = chunks.to(tl.int64)[:, None] * 2 * n_features
            inside = (chunks < after)[:, None] & inside_d[None, :]
            total += tl.sum(tl.load(stored[None, :] + offsets, mask=inside, other=0), axis=0)
        sum_ptrs = sums_ptr + label.to(tl.int64) * n_features + d
        tl.store(sum_ptrs, tl.load(sum_ptrs, mask=inside_d) + total, mask=inside_d)
