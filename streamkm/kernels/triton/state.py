"""Device code of a step beside the assignment: sums, reservoir, centroids, scalars.

Sums of rows are whole numbers (see `streamkm.kernels.ops.fixed`), so that atomics add them up in
any order with the same bits. They are relaxed: no kernel reads what it has added, and others would
wait for memory at each. What one step leaves in the working memory, the next needs as it is: zeros,
and the least exponents.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "ADDED",
    "DROPPED",
    "ROUNDER",
    "TOTAL",
    "add_kernel",
    "bring_row",
    "end_step",
    "exponent_above",
    "finish_kernel",
    "move_kernel",
    "note_kernel",
    "power",
    "prepare_kernel",
    "put_row",
    "rank_kernel",
]

#: Added to a number below 2^51 and taken off again, it rounds to whole numbers, ties to even.
ROUNDER = tl.constexpr(1.5 * 2.0**52)
#: Places of `tally`: rows that were added, rows that were dropped, sum of squared distances.
ADDED, DROPPED, TOTAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
RUNNING = tl.constexpr(0)


@triton.jit
def power(exponent):
    """2 to the power of an integer from -1022 to 1023, float64."""
    return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def exponent_above(value):
    """The least power of 2 that is greater than `value`, a float64 that is normal."""
    return (((value.to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1022).to(tl.int32)


@triton.jit
def as_float(bits):
    """The float64 of these bits: a float that is an argument would be rounded to float32."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def uniform(seed, number):
    """A number from 0 to 1, 1 excluded, for each `number`: 53 bits of Philox (Salmon 2011)."""
    high, low, _, _ = tl.randint4x(seed.to(tl.int64), number)
    high = (high.to(tl.uint32, bitcast=True) >> 5).to(tl.float64)
    low = (low.to(tl.uint32, bitcast=True) >> 6).to(tl.float64)
    return (high * 67108864.0 + low) * (1.0 / 9007199254740992.0)


@triton.jit
def prepare_kernel(
    x_ptr, stride, positions_ptr, shift_ptr, factor_ptr, out_ptr, sq_norms_ptr, dropped_ptr,
    most_bits, n_features,
    HAS_POSITIONS: tl.constexpr, IS_AFFINE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gather, widen and scale a row; its squared length, and whether it is dropped."""
    row = tl.program_id(0)
    at = tl.load(positions_ptr + row).to(tl.int64) if HAS_POSITIONS else row.to(tl.int64)
    WIDE: tl.constexpr = sq_norms_ptr.dtype.element_ty
    total = tl.zeros((BLOCK_D,), WIDE)
    for start in range(0, n_features, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = tl.load(x_ptr + at * stride + d, mask=d < n_features, other=0)
        if IS_AFFINE:
            shift = tl.load(shift_ptr + d, mask=d < n_features, other=0)
            factor = tl.load(factor_ptr + d, mask=d < n_features, other=0)
            x = (x.to(WIDE) - shift) * factor
        wide = x.to(WIDE)
        total += wide * wide
        tl.store(out_ptr + row.to(tl.int64) * n_features + d, x, mask=d < n_features)
    sq_norm = tl.sum(total, axis=0)
    # Not ``>``, which is false for NaN.
    is_dropped = ~(sq_norm <= as_float(most_bits).to(WIDE))
    tl.store(sq_norms_ptr + row, tl.where(is_dropped, 0.0, sq_norm))
    tl.store(dropped_ptr + row, is_dropped.to(tl.int8))
    if is_dropped:
        for start in range(0, n_features, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            zeros = tl.zeros((BLOCK_D,), out_ptr.dtype.element_ty)
            tl.store(out_ptr + row.to(tl.int64) * n_features + d, zeros, mask=d < n_features)


@triton.jit(do_not_specialize=["n_rows", "first", "stride", "seed"])
def note_kernel(
    labels_ptr, sq_distances_ptr, sq_norms_ptr, dropped_ptr, exponents_ptr, tally_ptr, keys_ptr,
    stop_ptr, n_rows, k, first, stride, seed, rounding_bits,
    LEAST: tl.constexpr, HAS_DROPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Raise the exponents of the clusters of rows, and draw the keys of the rows on offer."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n_rows
    taken = inside
    if HAS_DROPPED:
        dropped = inside & (tl.load(dropped_ptr + row, mask=inside, other=0) != 0)
        taken = inside & ~dropped
        tl.atomic_add(tally_ptr + DROPPED, tl.sum(dropped.to(tl.int64), axis=0), sem="relaxed")
    label = tl.load(labels_ptr + row, mask=inside, other=0)
    sq_distance = tl.load(sq_distances_ptr + row, mask=taken, other=0).to(tl.float64)
    sq_norm = tl.load(sq_norms_ptr + row, mask=taken, other=0).to(tl.float64)
    # Of a root half the exponent, and one more, since squared lengths are rounded.
    length = tl.where(sq_norm > 0, ((exponent_above(sq_norm) + 1) >> 1) + 1, LEAST)
    tl.atomic_max(exponents_ptr + label, tl.maximum(length, LEAST), mask=taken, sem="relaxed")
    far = tl.where(sq_distance > 0, exponent_above(sq_distance), 2 * LEAST)
    tl.atomic_max(exponents_ptr + k, tl.max(tl.maximum(far, 2 * LEAST), axis=0), sem="relaxed")
    is_live = tl.load(stop_ptr) == RUNNING
    is_possible = taken & is_live & (sq_distance > as_float(rounding_bits) * sq_norm)
    exponential = -tl.log(1.0 - uniform(seed, row))
    key = tl.where(is_possible, exponential / tl.where(is_possible, sq_distance, 1.0), float("inf"))
    place = row - first
    is_offered = inside & (place >= 0) & (place % stride == 0)
    tl.store(keys_ptr + place // stride, key, mask=is_offered)


@triton.jit(do_not_specialize=["n_rows"])
def add_kernel(
    x_ptr, labels_ptr, sq_distances_ptr, dropped_ptr, exponents_ptr, sums_ptr, counts_ptr,
    tally_ptr, n_rows, k, n_features, n_bits,
    HAS_DROPPED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add rows, in whole numbers of the quanta of their clusters, and their squared distances."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    taken = row < n_rows
    if HAS_DROPPED:
        taken = taken & (tl.load(dropped_ptr + row, mask=taken, other=1) == 0)
    label = tl.load(labels_ptr + row, mask=taken, other=0)
    scale = power(n_bits - tl.load(exponents_ptr + label, mask=taken, other=0))
    mask = taken[:, None] & (d < n_features)[None, :]
    x = tl.load(x_ptr + row.to(tl.int64)[:, None] * n_features + d[None, :], mask=mask, other=0)
    scaled = x.to(tl.float64) * scale[:, None]
    whole = ((scaled + ROUNDER) - ROUNDER).to(tl.int64)
    tl.atomic_add(
        sums_ptr + label[:, None] * n_features + d[None, :], whole, mask=mask, sem="relaxed"
    )
    if tl.program_id(1) == 0:
        tl.atomic_add(
            counts_ptr + label, tl.full((BLOCK_M,), 1, tl.int64), mask=taken, sem="relaxed"
        )
        sq_distance = tl.load(sq_distances_ptr + row, mask=taken, other=0).to(tl.float64)
        scaled_sq = sq_distance * power(n_bits - tl.load(exponents_ptr + k))
        whole_sq = ((scaled_sq + ROUNDER) - ROUNDER).to(tl.int64)
        tl.atomic_add(tally_ptr + TOTAL, tl.sum(whole_sq, axis=0), sem="relaxed")
        tl.atomic_add(tally_ptr + ADDED, tl.sum(taken.to(tl.int64), axis=0), sem="relaxed")


@triton.jit
def _key(old_keys_ptr, keys_ptr, candidate, n_kept, n_offered):
    """Keys of candidates: first those of the reservoir, then those on offer, infinite beyond."""
    old = tl.load(old_keys_ptr + candidate, mask=candidate < n_kept, other=float("inf"))
    place = candidate - n_kept
    is_new = (place >= 0) & (place < n_offered)
    new = tl.load(keys_ptr + place, mask=is_new, other=float("inf"))
    return tl.where(candidate < n_kept, old, new)


@triton.jit(do_not_specialize=["n_offered"])
def rank_kernel(
    old_keys_ptr, keys_ptr, chosen_ptr, chosen_keys_ptr, n_kept, n_offered,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Choose the candidates of the least keys: each counts those that come before it."""
    candidate = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n_candidates = n_kept + n_offered
    key = _key(old_keys_ptr, keys_ptr, candidate, n_kept, n_offered)
    # Before a row on offer come all rows of the reservoir whose keys are not greater.
    last_key = tl.load(old_keys_ptr + n_kept - 1)
    if tl.max(((candidate < n_kept) | (key < last_key)).to(tl.int32), axis=0) > 0:
        rank = tl.zeros((BLOCK_M,), tl.int32)
        for start in range(0, n_candidates, BLOCK_N):
            other = start + tl.arange(0, BLOCK_N)
            other_key = _key(old_keys_ptr, keys_ptr, other, n_kept, n_offered)
            is_first = other_key[None, :] < key[:, None]
            is_equal = (other_key[None, :] == key[:, None]) & (other[None, :] < candidate[:, None])
            rank += tl.sum((is_first | is_equal).to(tl.int32), axis=1)
        is_chosen = (candidate < n_candidates) & (rank < n_kept)
        chosen = tl.where(key < float("inf"), candidate, -1)  # A place without a row.
        tl.store(chosen_ptr + rank, chosen, mask=is_chosen)
        tl.store(chosen_keys_ptr + rank, key, mask=is_chosen)


@triton.jit
def bring_row(
    place, x_ptr, labels_ptr, old_rows_ptr, old_labels_ptr, chosen_ptr, rows_ptr,
    chosen_labels_ptr, n_kept, n_features, first, stride, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Bring a row that was chosen for the reservoir, from the batch or from where it was."""
    candidate = tl.load(chosen_ptr + place)
    is_there = candidate >= 0
    is_old = candidate < n_kept
    row = (first + (candidate - n_kept) * stride).to(tl.int64)
    old_label = tl.load(old_labels_ptr + candidate, mask=is_there & is_old, other=0)
    new_label = tl.load(labels_ptr + row, mask=is_there & ~is_old, other=0)
    tl.store(chosen_labels_ptr + place, old_label + new_label)
    for start in range(0, n_features, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = (d < n_features) & is_there
        old = tl.load(
            old_rows_ptr + candidate.to(tl.int64) * n_features + d,
            mask=inside & is_old,
            other=0,
        )
        new = tl.load(x_ptr + row * n_features + d, mask=inside & ~is_old, other=0)
        brought = tl.where(is_old, old, new.to(old.dtype))
        tl.store(rows_ptr + place.to(tl.int64) * n_features + d, brought, mask=d < n_features)


@triton.jit(do_not_specialize=["first", "stride", "memory_bits"])
def move_kernel(
    centroids_ptr, sums_ptr, mass_ptr, counts_ptr, epoch_counts_ptr, stop_ptr,
    added_ptr, added_counts_ptr, exponents_ptr, sq_steps_ptr,
    x_ptr, labels_ptr, old_rows_ptr, old_labels_ptr, chosen_ptr, rows_ptr,
    chosen_labels_ptr, k, n_kept, n_features, n_bits, first, stride, memory_bits,
    LEAST: tl.constexpr, FORGETS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Move a cluster that got rows; or bring a row that was chosen for the reservoir."""
    number = tl.program_id(0)
    if number < k:
        n_added = tl.load(added_counts_ptr + number)
        is_moved = (n_added > 0) & (tl.load(stop_ptr) == RUNNING)
        quantum = power(tl.load(exponents_ptr + number) - n_bits)
        mass, added = tl.load(mass_ptr + number), n_added.to(tl.float64)
        kept = mass * 0 + 1.0
        if FORGETS:
            most = tl.minimum(mass + added, tl.maximum(as_float(memory_bits), added))
            kept = tl.where(n_added > 0, (most - added) / mass, 1.0)
            mass = mass * kept
        mass = mass + added
        total = tl.zeros((BLOCK_D,), tl.float64)
        base = number.to(tl.int64) * n_features
        for start in range(0, n_features, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            inside = d < n_features
            moved = inside & is_moved
            whole = tl.load(added_ptr + base + d, mask=inside, other=0)
            sums = tl.load(sums_ptr + base + d, mask=moved, other=0)
            if FORGETS:
                sums = sums * kept
            sums = sums + whole.to(tl.float64) * quantum
            before = tl.load(centroids_ptr + base + d, mask=moved, other=0)
            after = (sums / mass).to(before.dtype)
            step = (after - before).to(tl.float64)
            total += tl.where(moved, step * step, 0.0)
            tl.store(sums_ptr + base + d, sums, mask=moved)
            tl.store(centroids_ptr + base + d, after, mask=moved)
            tl.store(added_ptr + base + d, tl.zeros((BLOCK_D,), tl.int64), mask=inside)
        tl.store(sq_steps_ptr + number, tl.sum(total, axis=0))
        tl.store(mass_ptr + number, mass, mask=is_moved)
        for_ever = tl.load(counts_ptr + number) + n_added
        of_epoch = tl.load(epoch_counts_ptr + number) + n_added
        tl.store(counts_ptr + number, for_ever, mask=is_moved)
        tl.store(epoch_counts_ptr + number, of_epoch, mask=is_moved)
        tl.store(added_counts_ptr + number, n_added * 0)
        tl.store(exponents_ptr + number, LEAST)
    else:
        bring_row(
            number - k, x_ptr, labels_ptr, old_rows_ptr, old_labels_ptr, chosen_ptr, rows_ptr,
            chosen_labels_ptr, n_kept, n_features, first, stride, BLOCK_D,
        )  # fmt: skip


@triton.jit
def _watch(
    mean, n_rows, n_steps, smoothed_ptr, best_ptr, no_improvement_ptr, stop_ptr, n_all, patience,
    BY_NO_IMPROVEMENT: tl.constexpr,
):  # fmt: skip
    """Smooth the mean squared distance, and stop a state that has long not improved."""
    smoothed, best = tl.load(smoothed_ptr), tl.load(best_ptr)
    alpha = 2.0 * n_rows.to(tl.float64) / (n_all.to(tl.int64) + 1).to(tl.float64)
    alpha = tl.minimum(alpha, 1.0)
    blended = smoothed * (1 - alpha) + mean * alpha
    blended = tl.where(smoothed != smoothed, mean, blended)
    is_counted = (n_rows > 0) & (n_steps > 1)
    is_better = is_counted & (blended < best)
    waited = tl.load(no_improvement_ptr) + is_counted.to(tl.int64)
    waited = tl.where(is_better, 0, waited)
    tl.store(smoothed_ptr, blended, mask=is_counted)
    tl.store(best_ptr, blended, mask=is_better)
    tl.store(no_improvement_ptr, waited)
    tl.store(stop_ptr, BY_NO_IMPROVEMENT, mask=waited >= patience)


@triton.jit
def put_row(
    place, reservoir_ptr, keys_ptr, labels_ptr, rows_ptr, chosen_keys_ptr, chosen_labels_ptr,
    n_features, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Put a row that was brought into the reservoir."""
    tl.store(keys_ptr + place, tl.load(chosen_keys_ptr + place))
    tl.store(labels_ptr + place, tl.load(chosen_labels_ptr + place))
    base = place.to(tl.int64) * n_features
    for start in range(0, n_features, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        row = tl.load(rows_ptr + base + d, mask=d < n_features)
        tl.store(reservoir_ptr + base + d, row, mask=d < n_features)


@triton.jit
def end_step(exponents_ptr, tally_ptr, about_ptr, rechecked_ptr, k, LEAST: tl.constexpr):
    """Count rows that were compared again, and leave the working memory to the next step."""
    tl.store(exponents_ptr + k, 2 * LEAST)
    n_rechecked = tl.load(about_ptr + 3)
    tl.store(rechecked_ptr, tl.load(rechecked_ptr) + n_rechecked)
    for place in tl.static_range(3):
        tl.store(tally_ptr + place, tl.zeros((), tl.int64))
    for place in tl.static_range(5):
        tl.store(about_ptr + place, n_rechecked * 0)


@triton.jit(do_not_specialize=["n_all", "patience"])
def finish_kernel(
    reservoir_ptr, keys_ptr, reservoir_labels_ptr, rows_ptr, chosen_keys_ptr, chosen_labels_ptr,
    exponents_ptr, sq_steps_ptr, tally_ptr, about_ptr, rechecked_ptr,
    inertia_ptr, batch_inertia_ptr, shift_ptr, n_steps_ptr, n_dropped_ptr, tolerance_ptr, stop_ptr,
    smoothed_ptr, best_ptr, no_improvement_ptr,
    k, n_features, n_bits, n_all, patience,
    LEAST: tl.constexpr, WATCHES: tl.constexpr, BY_TOL: tl.constexpr,
    BY_NO_IMPROVEMENT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Put a chosen row into the reservoir; the first program ends the step and its scalars."""
    if tl.program_id(0) > 0:
        put_row(
            tl.program_id(0) - 1, reservoir_ptr, keys_ptr, reservoir_labels_ptr, rows_ptr,
            chosen_keys_ptr, chosen_labels_ptr, n_features, BLOCK_D,
        )  # fmt: skip
    else:
        steps = tl.zeros((BLOCK_K,), tl.float64)
        for start in range(0, k, BLOCK_K):
            cluster = start + tl.arange(0, BLOCK_K)
            steps += tl.load(sq_steps_ptr + cluster, mask=cluster < k, other=0)
        shift = tl.sum(steps, axis=0)
        n_rows = tl.load(tally_ptr + ADDED)
        total = tl.load(tally_ptr + TOTAL).to(tl.float64)
        inertia = total * power(tl.load(exponents_ptr + k) - n_bits)
        if tl.load(stop_ptr) == RUNNING:
            mass = tl.maximum(n_rows, 1).to(tl.float64)
            mean = inertia / mass
            n_steps = tl.load(n_steps_ptr) + 1
            tl.store(inertia_ptr, tl.load(inertia_ptr) + inertia)
            tl.store(batch_inertia_ptr, mean)
            tl.store(shift_ptr, shift)
            tl.store(n_steps_ptr, n_steps)
            tl.store(n_dropped_ptr, tl.load(n_dropped_ptr) + tl.load(tally_ptr + DROPPED))
            tolerance = tl.load(tolerance_ptr)
            is_close = (n_rows > 0) & (tolerance > 0) & (shift <= tolerance)
            if WATCHES:
                _watch(
                    mean, n_rows, n_steps, smoothed_ptr, best_ptr, no_improvement_ptr, stop_ptr,
                    n_all, patience, BY_NO_IMPROVEMENT,
                )  # fmt: skip
            tl.store(stop_ptr, BY_TOL, mask=is_close)
        end_step(exponents_ptr, tally_ptr, about_ptr, rechecked_ptr, k, LEAST)
