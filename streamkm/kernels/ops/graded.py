"""Sums of float64 in whole numbers, over any number of addends of any size, in any order.

For sums of a whole pass, whose largest addend is not known beforehand. Every row of sums has a
grade: its addends are whole numbers of 2^(44 grade), and what rounding leaves over is added up in
whole numbers of 2^(44 (grade - 1)). A larger addend raises the grade; what is then smaller than
the smaller size is dropped. Sizes are the same powers of two whatever was added before, so that
only the largest addend decides what is dropped, and not the order (Demmel & Nguyen 2015,
"Parallel reproducible summation", with integers). Sums are right to 2^-44 of the largest addend, or
up to 2^-88, and to 2^-1012.
"""

from __future__ import annotations

import torch

from streamkm.kernels.extension import instruction_sets, n_threads_for

__all__ = ["GRADE_BITS", "LEAST_GRADE", "add_graded_", "graded_total", "raise_grades_"]

#: Bits from one size to the next.
GRADE_BITS = 44
#: Below this grade the smaller size would vanish.
LEAST_GRADE = -22
#: Cost of adding one number, in products.
ADDING_PRODUCTS = 8


def add_graded_(
    sums_LKD: torch.Tensor,
    grades_K: torch.Tensor,
    added_KD: torch.Tensor,
    unit: torch.Tensor | None = None,
) -> None:
    """Add `added_KD`, float64, times `unit`.

    Parameters
    ----------
    sums_LKD : int64 Tensor of shape (2, K, D), L = 2
        Whole numbers of the larger size, and of the smaller; zeros at first.
    grades_K : int64 Tensor of shape (K,)
        The grades; `LEAST_GRADE` at first.
    added_KD : float64 Tensor of shape (K, D)
    unit : Tensor of shape (), or None
        A power of two; None for 1.
    """
    if sums_LKD.is_cpu and instruction_sets():
        best, added_KD = instruction_sets()[0], added_KD.contiguous()
        best.functions.add_graded(
            best.number,
            added_KD.data_ptr(),
            1.0 if unit is None else float(unit),
            sums_LKD.data_ptr(),
            grades_K.data_ptr(),
            *added_KD.shape,
            n_threads_for(added_KD.numel() * ADDING_PRODUCTS),
        )
        return
    wide_KD = added_KD if unit is None else added_KD * unit
    most_K = wide_KD.abs().amax(dim=1)
    # All are less than half of the next grade's size, so that they are 0 of these. Rounded up:
    # integer division rounds down.
    exponents_K = torch.frexp(most_K).exponent + 1
    up_K = -torch.div(-exponents_K, GRADE_BITS, rounding_mode="floor")
    needed_K = torch.where(most_K > 0, (up_K.long() - 1).clamp_min_(LEAST_GRADE), LEAST_GRADE)
    raise_grades_(sums_LKD, grades_K, torch.maximum(grades_K, needed_K))
    one_K = torch.ones_like(most_K)
    values_KD = wide_KD * torch.ldexp(one_K, -GRADE_BITS * grades_K)[:, None]
    rounded_KD = values_KD.round()
    sums_LKD[0] += rounded_KD.long()
    sums_LKD[1] += (values_KD - rounded_KD).mul_(2.0**GRADE_BITS).round_().long()


def raise_grades_(sums_LKD: torch.Tensor, grades_K: torch.Tensor, raised_K: torch.Tensor) -> None:
    """Raise the grades to `raised_K`, so that sums of several processes can be added."""
    rise_K1 = (raised_K - grades_K)[:, None]
    large_KD, small_KD = sums_LKD
    small_KD.copy_(torch.where(rise_K1 == 0, small_KD, torch.where(rise_K1 == 1, large_KD, 0)))
    large_KD.copy_(torch.where(rise_K1 == 0, large_KD, 0))
    grades_K.copy_(raised_K)


def graded_total(sums_LKD: torch.Tensor, grades_K: torch.Tensor) -> torch.Tensor:
    """The sums as float64, (K, D)."""
    one_K = torch.ones_like(grades_K, dtype=torch.float64)
    sizes_K1 = torch.ldexp(one_K, GRADE_BITS * grades_K)[:, None]
    total_KD = sums_LKD[0] * sizes_K1
    total_KD += sums_LKD[1] * (sizes_K1 * 2.0**-GRADE_BITS)
    return total_KD
