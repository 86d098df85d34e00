"""A whole step in few launches, with no value that the host waits for.

Beside the assignment a step of torch's operations takes some hundred launches: each waits for the
one before, and none has work for a GPU. Here rows are prepared in one launch, and five more add
them up, draw the reservoir, move the centroids, or add the batch to a pass, and end the step. All
working memory is allocated once. Draws are Philox numbers of (seed of the step, row), so that no
generator is made.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
import triton

from streamkm.kernels.base import Assignment
from streamkm.kernels.triton.given import ALIGNED_BYTES
from streamkm.kernels.triton.graded import add_batch_kernel, finish_batch_kernel
from streamkm.kernels.triton.replay import Launcher, Replays
from streamkm.kernels.triton.state import (
    add_kernel,
    finish_kernel,
    move_kernel,
    note_kernel,
    prepare_kernel,
    rank_kernel,
)
from streamkm.ranges import named

if TYPE_CHECKING:
    from collections.abc import Hashable

    from streamkm.kernels.stepping import AddRules, PassState, StepRules, StepState

__all__ = ["StepFigures", "TritonStep"]

#: No fused multiply-adds: rounding is that of torch's operations, one after the other.
OPTIONS = {"enable_fp_fusion": False}


class StepFigures(NamedTuple):
    """What an assignment leaves to the end of the step."""

    about: torch.Tensor
    """Of the centroids, and how many rows were compared again: zeros for the next assignment."""
    n_rechecked: torch.Tensor
    """What these rows are added to."""


class _First(NamedTuple):
    found: Assignment
    sq_norms_B: torch.Tensor
    dropped_B: torch.Tensor


class AssignsInStep(Protocol):
    """The kernel of which the step is."""

    launch: Launcher

    def begin_step(self) -> StepFigures:
        """What the assignment will leave, zeros so far."""

    def assign_in_step(
        self, x_BD: torch.Tensor, centroids_KD: torch.Tensor, found: Assignment
    ) -> None:
        """Write to `found` the nearest centroids and the squared distances to them."""


class TritonStep:
    """See `streamkm.kernels.base.StepKernel`; for rows in float32 or as they are stored."""

    def __init__(
        self, kernel: AssignsInStep, batch_rows: int, k: int, device: torch.device
    ) -> None:
        self._kernel, self._k, self._device = kernel, k, device
        self._labels_B = torch.empty(batch_rows, dtype=torch.int64, device=device)
        self._sq_distances_B = torch.empty(batch_rows, dtype=torch.float32, device=device)
        self._sq_norms_B = torch.empty(batch_rows, dtype=torch.float32, device=device)
        self._dropped_B = torch.empty(batch_rows, dtype=torch.bool, device=device)
        self._keys_B = torch.empty(batch_rows, dtype=torch.float64, device=device)
        self._held: dict[str, torch.Tensor] = {}
        #: The first of these rows, by how many: of the same tensors, so that steps are known again.
        self._firsts: dict[int, _First] = {}
        self._replay = {part: Replays(kernel.launch) for part in ("prepare", "assign", "rest")}

    def prepare(
        self,
        x_ND: torch.Tensor,
        positions_B: torch.Tensor | None,
        out_BD: torch.Tensor,
        shift_D: torch.Tensor | None,
        factor_D: torch.Tensor | None,
        *,
        most_sq_norm: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `StepKernel`."""
        n_rows, n_features = out_BD.shape
        _, sq_norms_B, dropped_B = self._first(n_rows)
        if not n_rows:
            return sq_norms_B, dropped_B
        given = x_ND if positions_B is None else positions_B
        stride = x_ND.stride(0)
        tensors = {"x_ptr": x_ND, "positions_ptr": given, "out_ptr": out_BD}
        changing = {name: tensor.data_ptr() for name, tensor in tensors.items()}

        def launch() -> None:
            self._kernel.launch(
                prepare_kernel, (n_rows,), x_ND, stride, given,
                sq_norms_B if shift_D is None else shift_D,
                sq_norms_B if factor_D is None else factor_D,
                out_BD, sq_norms_B, dropped_B.view(torch.int8), _bits(most_sq_norm), n_features,
                HAS_POSITIONS=positions_B is not None, IS_AFFINE=shift_D is not None,
                BLOCK_D=_block(n_features), num_warps=1, **OPTIONS,
            )  # fmt: skip

        key = (
            n_rows, n_features, stride, x_ND.dtype, given.dtype, out_BD.dtype, most_sq_norm,
            positions_B is None, *(each % ALIGNED_BYTES == 0 for each in changing.values()),
        )  # fmt: skip
        with torch.cuda.device_of(out_BD):
            self._replay["prepare"](key, (shift_D, factor_D), changing, launch)
        return sq_norms_B, dropped_B

    def update_(
        self,
        state: StepState,
        x_BD: torch.Tensor,
        sq_norms_B: torch.Tensor,
        dropped_B: torch.Tensor | None,
        adding: AddRules,
        rules: StepRules,
    ) -> None:
        """See `StepKernel`."""
        found, figures = self._assign(x_BD, state.centroids_KD)
        memory, *others = rules
        memory_bits = _bits(memory or 0.0)

        def launch() -> None:
            self._add_up(state, state.stop, x_BD, found, sq_norms_B, dropped_B, adding)
            self._move(state, x_BD, found.labels_B, figures, adding, rules)

        key, changing = _key(x_BD, dropped_B, adding, memory is None, *others)
        with named("move"), torch.cuda.device_of(x_BD):
            self._replay["rest"](
                key, (*state, sq_norms_B, dropped_B), changing | {"memory_bits": memory_bits},
                launch,
            )  # fmt: skip

    def add_to_pass_(
        self,
        state: PassState,
        x_BD: torch.Tensor,
        sq_norms_B: torch.Tensor,
        dropped_B: torch.Tensor | None,
        adding: AddRules,
        *,
        counts_step: bool,
    ) -> None:
        """See `StepKernel`."""
        found, figures = self._assign(x_BD, state.centroids_KD)

        def launch() -> None:
            # A pass goes on whatever the state says of stopping: this stays 0.
            stop = self._zeros("stop", 1)
            self._add_up(state, stop, x_BD, found, sq_norms_B, dropped_B, adding)
            self._add_to_pass(state, x_BD, found.labels_B, figures, adding, counts_step)

        key, changing = _key(x_BD, dropped_B, adding, counts_step)
        with torch.cuda.device_of(x_BD):
            self._replay["rest"](key, (*state, sq_norms_B, dropped_B), changing, launch)

    def _assign(
        self, x_BD: torch.Tensor, centroids_KD: torch.Tensor
    ) -> tuple[Assignment, StepFigures]:
        found, *_ = self._first(x_BD.shape[0])

        def launch() -> None:
            self._kernel.assign_in_step(x_BD, centroids_KD, found)

        address = x_BD.data_ptr()
        with named("assign"), torch.cuda.device_of(x_BD):
            figures = self._kernel.begin_step()
            if address % ALIGNED_BYTES or not centroids_KD.is_contiguous():
                launch()  # From copies, which are elsewhere each time.
            else:
                key = (x_BD.shape, x_BD.dtype)
                self._replay["assign"](key, (centroids_KD,), {"x_ptr": address}, launch)
        return found, figures

    def _first(self, n_rows: int) -> _First:
        """Labels and distances, squared lengths, and which rows are dropped, of `n_rows`."""
        first = self._firsts.get(n_rows)
        if first is None:
            found = Assignment(self._labels_B[:n_rows], self._sq_distances_B[:n_rows])
            first = _First(found, self._sq_norms_B[:n_rows], self._dropped_B[:n_rows])
            self._firsts[n_rows] = first
        return first

    def _add_up(
        self,
        state: StepState | PassState,
        stop: torch.Tensor,
        x_BD: torch.Tensor,
        found: Assignment,
        sq_norms_B: torch.Tensor,
        dropped_B: torch.Tensor | None,
        adding: AddRules,
    ) -> None:
        """Add up the rows, and choose among those on offer and those of the reservoir."""
        (n_rows, n_features), k = x_BD.shape, len(state.centroids_KD)
        n_kept, n_offered = len(state.reservoir_keys_R), adding.n_offered(n_rows)
        tally, exponents_E = self._zeros("tally", 3), self._exponents(k, adding.least_exponent)
        has_dropped = dropped_B is not None
        dropped = found.labels_B if dropped_B is None else dropped_B.view(torch.int8)
        block_d = min(_block(n_features), 128)
        self._kernel.launch(
            note_kernel, (triton.cdiv(n_rows, 256),),
            *found, sq_norms_B, dropped, exponents_E, tally, self._keys_B,
            stop, n_rows, k, adding.first, adding.stride, adding.seed,
            _bits(adding.rounding), LEAST=adding.least_exponent, HAS_DROPPED=has_dropped,
            BLOCK=256, **OPTIONS,
        )  # fmt: skip
        self._kernel.launch(
            add_kernel, (triton.cdiv(n_rows, 16), triton.cdiv(n_features, block_d)),
            x_BD, *found, dropped, exponents_E, self._zeros("sums", k * n_features),
            self._zeros("counts", k), tally, n_rows, k, n_features, adding.n_bits,
            HAS_DROPPED=has_dropped, BLOCK_M=16, BLOCK_D=block_d, **OPTIONS,
        )  # fmt: skip
        self._kernel.launch(
            rank_kernel, (triton.cdiv(n_kept + n_offered, 32),),
            state.reservoir_keys_R, self._keys_B, self._buffer("chosen", n_kept, torch.int32),
            self._buffer("chosen_keys", n_kept, torch.float64), n_kept, n_offered,
            BLOCK_M=32, BLOCK_N=128, **OPTIONS,
        )  # fmt: skip

    def _brought(
        self, state: StepState | PassState, x_BD: torch.Tensor, labels_B: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """What rows that were chosen for the reservoir are brought from, and to."""
        n_kept, n_features = state.reservoir_RD.shape
        return (
            x_BD, labels_B, state.reservoir_RD, state.reservoir_labels_R, self._held["chosen"],
            self._buffer("rows", n_kept * n_features, state.reservoir_RD.dtype),
            self._buffer("chosen_labels", n_kept, torch.int64),
        )  # fmt: skip

    def _reservoir(self, state: StepState | PassState) -> tuple[torch.Tensor, ...]:
        """The reservoir, and what is put into it at the end of a step."""
        held = self._held
        return (
            state.reservoir_RD, state.reservoir_keys_R, state.reservoir_labels_R, held["rows"],
            held["chosen_keys"], held["chosen_labels"],
        )  # fmt: skip

    def _move(
        self,
        state: StepState,
        x_BD: torch.Tensor,
        labels_B: torch.Tensor,
        figures: StepFigures,
        adding: AddRules,
        rules: StepRules,
    ) -> None:
        """Move the centroids, fill the reservoir and end the step."""
        (k, n_features), n_kept = state.centroids_KD.shape, len(state.reservoir_keys_R)
        held, least, n_bits = self._held, adding.least_exponent, adding.n_bits
        sq_steps_K = self._buffer("sq_steps", k, torch.float64)
        self._kernel.launch(
            move_kernel, (k + n_kept,),
            state.centroids_KD, state.sums_KD, state.mass_K, state.counts_K,
            state.epoch_counts_K, state.stop, held["sums"], held["counts"],
            held["exponents"], sq_steps_K, *self._brought(state, x_BD, labels_B), k, n_kept,
            n_features, n_bits, adding.first, adding.stride, _bits(rules.memory or 0.0),
            LEAST=least, FORGETS=rules.memory is not None, BLOCK_D=_block(n_features),
            num_warps=2, **OPTIONS,
        )  # fmt: skip
        self._kernel.launch(
            finish_kernel, (1 + n_kept,),
            *self._reservoir(state), held["exponents"], sq_steps_K, held["tally"], *figures,
            state.inertia, state.batch_inertia, state.shift, state.n_steps, state.n_dropped,
            state.tolerance, state.stop, state.smoothed_inertia, state.best_inertia,
            state.no_improvement, k, n_features, n_bits, rules.n_all,
            rules.patience or 0, LEAST=least, WATCHES=rules.patience is not None,
            BY_TOL=rules.by_tol, BY_NO_IMPROVEMENT=rules.by_no_improvement, BLOCK_K=1024,
            BLOCK_D=_block(n_features), **OPTIONS,
        )  # fmt: skip

    def _add_to_pass(
        self,
        state: PassState,
        x_BD: torch.Tensor,
        labels_B: torch.Tensor,
        figures: StepFigures,
        adding: AddRules,
        counts_step: bool,
    ) -> None:
        """Add the batch to the sums of the pass, fill the reservoir and end the step."""
        (k, n_features), n_kept = state.centroids_KD.shape, len(state.reservoir_keys_R)
        held, least, n_bits = self._held, adding.least_exponent, adding.n_bits
        self._kernel.launch(
            add_batch_kernel, (k + n_kept,),
            state.pass_sums_LKD, state.pass_grades_K, state.counts_K, state.epoch_counts_K,
            held["sums"], held["counts"], held["exponents"],
            *self._brought(state, x_BD, labels_B), k, n_kept, n_features, n_bits,
            adding.first, adding.stride, LEAST=least, BLOCK_D=_block(n_features), num_warps=2,
            **OPTIONS,
        )  # fmt: skip
        self._kernel.launch(
            finish_batch_kernel, (1 + n_kept,),
            *self._reservoir(state), held["exponents"], held["tally"], *figures,
            state.pass_totals_LT, state.pass_total_grades_T, state.inertia,
            state.batch_inertia, state.n_steps, state.n_dropped, k, n_features, n_bits,
            LEAST=least, COUNTS_STEP=counts_step, BLOCK_D=_block(n_features), **OPTIONS,
        )  # fmt: skip

    def _zeros(self, name: str, n_elements: int) -> torch.Tensor:
        """Working memory that a step finds and leaves as zeros."""
        held = self._held.get(name)
        if held is None or len(held) != n_elements:
            held = torch.zeros(n_elements, dtype=torch.int64, device=self._device)
            self._held[name] = held
        return held

    def _exponents(self, k: int, least: int) -> torch.Tensor:
        """The exponents of the clusters and of the squared distances, the least at first."""
        held = self._held.get("exponents")
        if held is None or len(held) != k + 1:
            held = torch.full((k + 1,), least, dtype=torch.int32, device=self._device)
            held[k] = 2 * least
            self._held["exponents"] = held
        return held

    def _buffer(self, name: str, n_elements: int, dtype: torch.dtype) -> torch.Tensor:
        """Working memory of any content, of `n_elements` or more."""
        held = self._held.get(name)
        if held is None or len(held) < n_elements:
            held = torch.empty(max(n_elements, 1), dtype=dtype, device=self._device)
            self._held[name] = held
        return held


def _key(
    x_BD: torch.Tensor, dropped_B: torch.Tensor | None, adding: AddRules, *others: Hashable
) -> tuple[Hashable, dict[str, int]]:
    """What decides the launches of a step beside its assignment; and what changes in them."""
    seed, first, *rules = adding
    shape, address = x_BD.shape, x_BD.data_ptr()
    key = (
        shape, x_BD.dtype, address % ALIGNED_BYTES == 0, dropped_B is None,
        adding.n_offered(shape[0]), seed < 2**31, *rules, *others,
    )  # fmt: skip
    return key, {"x_ptr": address, "seed": seed, "first": first}


def _bits(number: float) -> int:
    """The bits of a float64, which as an argument of a kernel would be rounded to float32."""
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


def _block(n_features: int) -> int:
    """Features that a program takes at once."""
    return min(triton.next_power_of_2(n_features), 1024)
