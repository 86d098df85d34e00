"""Arithmetic on one batch of rows: tensors in, tensors out."""

from streamkm.kernels.base import (
    Assignment,
    Carried,
    Kernel,
    KernelRequest,
    Listed,
    MadeKernel,
    PassSums,
    TwoNearest,
    assign_then_add,
)
from streamkm.kernels.drift import Drift
from streamkm.kernels.exact import cancelling_share, pair_sq_distances
from streamkm.kernels.extension import (
    cores_for_kernels,
    instruction_sets,
    torch_alone_after_fork,
)
from streamkm.kernels.ops.choose import choose_, drawn_by
from streamkm.kernels.ops.distances import (
    sq_distances_between,
    sq_distances_to,
    sq_distances_with,
)
from streamkm.kernels.ops.fixed import (
    LEAST_EXPONENT,
    FixedSums,
    add_fixed_,
    bits_for,
    exponents_by_label,
    exponents_of,
    fixed_by_label,
    wide_by_label,
)
from streamkm.kernels.ops.gather import gather
from streamkm.kernels.ops.graded import LEAST_GRADE, add_graded_, graded_total, raise_grades_
from streamkm.kernels.ops.moments import Moments, moments_in_parts
from streamkm.kernels.ops.move import Sums, means_of, move_points_
from streamkm.kernels.ops.normalize import normalize_, normalized
from streamkm.kernels.ops.offer import OfferedRows, Reservoir, offer_, rounding_share
from streamkm.kernels.ops.ranking import Nearest, nearest_bytes, rank_nearest
from streamkm.kernels.ops.step import (
    Added,
    can_finish,
    expected_exponents,
    finish_step_,
)
from streamkm.kernels.passes import Breathed, BreathRules, PassedOver, Passes, PassKernel
from streamkm.kernels.reference import add_by_label, mass_by_label
from streamkm.kernels.rows import Rows
from streamkm.kernels.select import kernel_notes, make_kernel, resolve_kernel
from streamkm.kernels.stepping import AddRules, PassState, StepKernel, StepRules, StepState

__all__ = [
    "LEAST_EXPONENT",
    "LEAST_GRADE",
    "AddRules",
    "Added",
    "Assignment",
    "BreathRules",
    "Breathed",
    "Carried",
    "Drift",
    "FixedSums",
    "Kernel",
    "KernelRequest",
    "Listed",
    "MadeKernel",
    "Moments",
    "Nearest",
    "OfferedRows",
    "PassKernel",
    "PassState",
    "PassSums",
    "PassedOver",
    "Passes",
    "Reservoir",
    "Rows",
    "StepKernel",
    "StepRules",
    "StepState",
    "Sums",
    "TwoNearest",
    "add_by_label",
    "add_fixed_",
    "add_graded_",
    "assign_then_add",
    "bits_for",
    "can_finish",
    "cancelling_share",
    "choose_",
    "cores_for_kernels",
    "drawn_by",
    "expected_exponents",
    "exponents_by_label",
    "exponents_of",
    "finish_step_",
    "fixed_by_label",
    "gather",
    "graded_total",
    "instruction_sets",
    "kernel_notes",
    "make_kernel",
    "mass_by_label",
    "means_of",
    "moments_in_parts",
    "move_points_",
    "nearest_bytes",
    "normalize_",
    "normalized",
    "offer_",
    "pair_sq_distances",
    "raise_grades_",
    "rank_nearest",
    "resolve_kernel",
    "rounding_share",
    "sq_distances_between",
    "sq_distances_to",
    "sq_distances_with",
    "torch_alone_after_fork",
    "wide_by_label",
]
