"""Device code that ends a step of a pass of Lloyd's algorithm: sums of a batch into graded sums.

Sums of the batch are whole numbers, of quanta of its own for each cluster; those of the pass are of
the sizes of `streamkm.kernels.ops.graded`, whose operations these kernels repeat.
"""

from __future__ import annotations

import triton
import triton.language as tl

from streamkm.kernels.ops import graded
from streamkm.kernels.triton.state import (
    ADDED,
    DROPPED,
    ROUNDER,
    TOTAL,
    bring_row,
    end_step,
    exponent_above,
    power,
    put_row,
)

__all__ = ["add_batch_kernel", "finish_batch_kernel"]

GRADE_BITS = tl.constexpr(graded.GRADE_BITS)
LEAST_GRADE = tl.constexpr(graded.LEAST_GRADE)
#: Grades above the least that any float64 needs: with them added, division rounds down.
ABOVE = tl.constexpr(32)
NEXT_SIZE = tl.constexpr(2.0**graded.GRADE_BITS)


@triton.jit
def grade_for(most):
    """The least grade for numbers up to `most`, which is not negative."""
    up = (exponent_above(most) + (ABOVE + 1) * GRADE_BITS) // GRADE_BITS - ABOVE
    grade = tl.where(most > 0, tl.maximum(up - 1, LEAST_GRADE), LEAST_GRADE)
    return grade.to(tl.int64)


@triton.jit
def graded_sums(large, small, added, grade, rise):
    """Sums whose grade rises by `rise` to `grade`, with `added` in them."""
    scaled = added * power(grade * -GRADE_BITS)
    rounded = (scaled + ROUNDER) - ROUNDER
    rest = (scaled - rounded) * NEXT_SIZE
    rounded_rest = (rest + ROUNDER) - ROUNDER
    kept = tl.where(rise == 0, small, tl.where(rise == 1, large, 0))
    return (
        tl.where(rise == 0, large, 0) + rounded.to(tl.int64),
        kept + rounded_rest.to(tl.int64),
    )


@triton.jit(do_not_specialize=["first", "stride"])
def add_batch_kernel(
    sums_ptr, grades_ptr, counts_ptr, epoch_counts_ptr,
    added_ptr, added_counts_ptr, exponents_ptr,
    x_ptr, labels_ptr, old_rows_ptr, old_labels_ptr, chosen_ptr, rows_ptr,
    chosen_labels_ptr, k, n_kept, n_features, n_bits, first, stride,
    LEAST: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add what a cluster got to the pass; or bring a row that was chosen for the reservoir."""
    number = tl.program_id(0)
    if number < k:
        n_added = tl.load(added_counts_ptr + number)
        if n_added > 0:
            quantum = power(tl.load(exponents_ptr + number) - n_bits)
            base = number.to(tl.int64) * n_features
            small_base = (number + k).to(tl.int64) * n_features
            most = tl.zeros((BLOCK_D,), tl.float64)
            for start in range(0, n_features, BLOCK_D):
                d = start + tl.arange(0, BLOCK_D)
                whole = tl.load(added_ptr + base + d, mask=d < n_features, other=0)
                most = tl.maximum(most, tl.abs(whole.to(tl.float64) * quantum))
            before = tl.load(grades_ptr + number)
            grade = tl.maximum(before, grade_for(tl.max(most, axis=0)))
            for start in range(0, n_features, BLOCK_D):
                d = start + tl.arange(0, BLOCK_D)
                inside = d < n_features
                whole = tl.load(added_ptr + base + d, mask=inside, other=0)
                large = tl.load(sums_ptr + base + d, mask=inside, other=0)
                small = tl.load(sums_ptr + small_base + d, mask=inside, other=0)
                added = whole.to(tl.float64) * quantum
                large, small = graded_sums(large, small, added, grade, grade - before)
                tl.store(sums_ptr + base + d, large, mask=inside)
                tl.store(sums_ptr + small_base + d, small, mask=inside)
                tl.store(added_ptr + base + d, tl.zeros((BLOCK_D,), tl.int64), mask=inside)
            tl.store(grades_ptr + number, grade)
            tl.store(counts_ptr + number, tl.load(counts_ptr + number) + n_added)
            tl.store(epoch_counts_ptr + number, tl.load(epoch_counts_ptr + number) + n_added)
            tl.store(added_counts_ptr + number, n_added * 0)
            tl.store(exponents_ptr + number, LEAST)
    else:
        bring_row(
            number - k, x_ptr, labels_ptr, old_rows_ptr, old_labels_ptr, chosen_ptr, rows_ptr,
            chosen_labels_ptr, n_kept, n_features, first, stride, BLOCK_D,
        )  # fmt: skip


@triton.jit
def finish_batch_kernel(
    reservoir_ptr, keys_ptr, reservoir_labels_ptr, rows_ptr, chosen_keys_ptr, chosen_labels_ptr,
    exponents_ptr, tally_ptr, about_ptr, rechecked_ptr,
    totals_ptr, grades_ptr, inertia_ptr, batch_inertia_ptr, n_steps_ptr, n_dropped_ptr,
    k, n_features, n_bits,
    LEAST: tl.constexpr, COUNTS_STEP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Put a chosen row into the reservoir; the first program ends the step and its scalars."""
    if tl.program_id(0) > 0:
        put_row(
            tl.program_id(0) - 1, reservoir_ptr, keys_ptr, reservoir_labels_ptr, rows_ptr,
            chosen_keys_ptr, chosen_labels_ptr, n_features, BLOCK_D,
        )  # fmt: skip
    else:
        n_rows = tl.load(tally_ptr + ADDED)
        total = tl.load(tally_ptr + TOTAL).to(tl.float64)
        inertia = total * power(tl.load(exponents_ptr + k) - n_bits)
        before = tl.load(grades_ptr)
        grade = tl.maximum(before, grade_for(inertia))
        large, small = tl.load(totals_ptr), tl.load(totals_ptr + 1)
        large, small = graded_sums(large, small, inertia, grade, grade - before)
        tl.store(totals_ptr, large)
        tl.store(totals_ptr + 1, small)
        tl.store(grades_ptr, grade)
        tl.store(inertia_ptr, tl.load(inertia_ptr) + inertia)
        tl.store(batch_inertia_ptr, inertia / tl.maximum(n_rows, 1).to(tl.float64))
        tl.store(n_dropped_ptr, tl.load(n_dropped_ptr) + tl.load(tally_ptr + DROPPED))
        if COUNTS_STEP:
            tl.store(n_steps_ptr, tl.load(n_steps_ptr) + 1)
        end_step(exponents_ptr, tally_ptr, about_ptr, rechecked_ptr, k, LEAST)
