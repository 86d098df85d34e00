"""Assignment and accumulation on CUDA by Triton: exact labels, the same bits every time.

This module only launches device code, which is in the modules beside it. Apart from tuning,
nothing here waits for the device. Numbers of rows and centroids are run-time arguments, so
that a batch of another length compiles nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
import triton
import triton.language as tl

from streamkm.errors import InputError
from streamkm.kernels.base import Assignment, TwoNearest, assign_then_add
from streamkm.kernels.triton.assign import (
    measure_kernel,
    round_kernel,
    round_rows_kernel,
    screen_kernel,
)
from streamkm.kernels.triton.given import check_given, dense_rows
from streamkm.kernels.triton.lanes import lanes_kernel
from streamkm.kernels.triton.narrow import narrow_kernel
from streamkm.kernels.triton.one_read import add_spans_kernel, one_read_kernel
from streamkm.kernels.triton.replay import Launcher
from streamkm.kernels.triton.settle import settle_kernel
from streamkm.kernels.triton.step import StepFigures, TritonStep
from streamkm.kernels.triton.tiles import (
    LANES_OPTIONS,
    LANES_ROWS,
    MAX_ONE_READ_K,
    MAX_ROUNDED_D,
    NARROW_BLOCKS,
    NARROW_OPTIONS,
    ONE_READ_ROWS,
    SETTLE_OPTIONS,
    STREAMED_D,
    Tile,
    can_round,
    default_tile,
    fits_lanes,
    fits_one_read,
    is_resident,
    lanes_blocks,
    one_read_blocks,
    one_read_options,
    padded_features,
    power_of_two,
    tiles,
    two_tile,
)
from streamkm.kernels.triton.tuning import (
    LEAST_TUNED_K,
    cache_folder,
    key_of,
    seconds_of,
    tuned_tile,
)
from streamkm.kernels.triton.update import add_chunks_kernel, join_kernel

if TYPE_CHECKING:
    from streamkm.kernels.base import KernelRequest
    from streamkm.kernels.rows import Rows

__all__ = ["TritonKernel"]

#: Dtypes of rows that are read as stored, beside float32, if centroids are float32.
STORED = (torch.float16, torch.bfloat16, torch.uint8, torch.int8)
#: Entries of a row in the queue, at most; a row that needs more is compared with all centroids.
N_LISTED = 8
#: Features of a row that are summed at once for its distance.
STEP_D = {torch.float32: 32, torch.float64: 16}
#: Dtype that rows are widened to on the chip, by the dtype of the centroids.
WIDE = {torch.float32: tl.float32, torch.float64: tl.float64}
#: Rows of a batch, at most: 32 bits address the elements of the queue.
MAX_BATCH_ROWS = 2**27
#: Programs that settle rows and that narrow crowds, for each multiprocessor.
SETTLERS, NARROWERS = 16, 4
#: Centroids that a program rounds.
ROUNDED_K = 16
#: Bits of a score that may hold a tile number, at most.
MAX_INDEX_BITS = 18
#: Bounds hold with and without fused multiply-adds; without, a score takes one more instruction.
OPTIONS = {"enable_fp_fusion": True}
#: Sorted rows that one program adds up; it decides the last bits of sums.
CHUNK = 64
#: Programs of a step in one read, at most; it decides the last bits of sums. Two for each
#: multiprocessor of an H100; their sums take at most 33 MiB of memory.
MAX_SPANS = 264


class TritonKernel:
    """Triton on `device`, for batches of up to `batch_rows` rows and `k` centroids.

    With `tune` and `LEAST_TUNED_K` centroids or more, the first batch times the tiles, unless the
    fastest is remembered from before. If `tile` is given, none is timed.

    Raises
    ------
    InputError
        If `k` or `batch_rows` is out of range, or a call's tensors do not fit together.
    """

    name = "triton"
    distances_cancel = False
    in_place = None
    whole_passes = by_lists = None

    def __init__(
        self,
        batch_rows: int,
        k: int,
        dtype: torch.dtype,
        device: torch.device,
        precision: str = "exact",
        tile: Tile | None = None,
        *,
        tune: bool = False,
    ) -> None:
        if not 1 <= k <= 16 << MAX_INDEX_BITS:
            raise InputError(f"kernel triton takes 1 to {16 << MAX_INDEX_BITS:,} clusters, not {k}")
        if not 1 <= batch_rows <= MAX_BATCH_ROWS:
            raise InputError(
                f"kernel triton takes batches of 1 to {MAX_BATCH_ROWS:,} rows, not {batch_rows}"
            )
        if dtype not in MAX_ROUNDED_D:
            raise InputError(f"kernel triton takes float32 or float64 centroids, not {dtype}")
        self._k, self._dtype, self._tile = k, dtype, tile
        self.stored_dtypes = STORED if dtype == torch.float32 else ()
        self._tunes = tune and tile is None and k >= LEAST_TUNED_K and device.type == "cuda"
        self._precision = precision
        self._exact = precision == "exact"
        self._batch_rows = batch_rows
        # Largest element, length and relative residual of the centroids, and lengths of the queue
        # and of the crowd.
        self._about = torch.zeros(5, dtype=torch.int32, device=device)
        self._n_rechecked = torch.zeros((), dtype=torch.int64, device=device)
        n_queued = batch_rows if self._exact else 0
        self._queue = torch.empty((n_queued, 2 + N_LISTED), dtype=torch.int32, device=device)
        self._crowd = torch.empty(n_queued, dtype=torch.int32, device=device)
        self._buffers: dict[str, torch.Tensor] = {}
        card = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
        self._major = card.major if card else 9
        self._about_is_zero = True
        self.launch = Launcher()
        #: In few launches steps are made of rows in float32, or as they are stored.
        self.stepper = None if dtype == torch.float64 else TritonStep(self, batch_rows, k, device)
        # To the interpreter a program of many centroids is no dearer than one of few.
        self._rounded_k = ROUNDED_K if card else MAX_ONE_READ_K
        n_processors = card.multi_processor_count if card else 1
        self._n_settlers, self._n_narrowers = SETTLERS * n_processors, NARROWERS * n_processors

    @classmethod
    def check(cls, _device: torch.device) -> None:
        """Accept every CUDA device that torch knows."""

    @classmethod
    def make(cls, request: KernelRequest) -> Self:
        """See `Kernel`."""
        return cls(
            request.batch_rows, request.k, request.dtype, request.device, request.precision,
            tune=request.tune,
        )  # fmt: skip

    @property
    def n_rechecked(self) -> torch.Tensor:
        """See `Kernel`."""
        return self._n_rechecked

    def assign(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> Assignment:
        """Nearest centroid of each row; see `Kernel`. Needs no squared lengths."""
        del sq_norms_B
        return Assignment(*self._assign(x_BD, centroids_KD, two=False)[:2])

    def assign_two(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> TwoNearest:
        """The two nearest centroids of each row; see `Kernel`."""
        del sq_norms_B
        results = self._assign(x_BD, centroids_KD, two=len(centroids_KD) > 1)
        if len(centroids_KD) == 1:
            return TwoNearest(*results[:2], torch.full_like(results[1], torch.inf))
        return TwoNearest(*results)

    def begin_step(self) -> StepFigures:
        """Zero what the assignment adds to, as `TritonStep` does at the end of a step."""
        if not self._about_is_zero:
            self._about.zero_()
        self._about_is_zero = True
        return StepFigures(self._about, self._n_rechecked)

    def assign_in_step(
        self, x_BD: torch.Tensor, centroids_KD: torch.Tensor, found: Assignment
    ) -> None:
        """`assign` into memory that is there, within a step that has begun."""
        self._assign(x_BD, centroids_KD, two=False, found=found)
        self._about_is_zero = True

    def accumulate(
        self,
        x_BD: torch.Tensor,
        labels_B: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
        shares_B: torch.Tensor | None = None,
    ) -> None:
        """Add rows to their clusters; see `Kernel`."""
        n_rows, n_features = x_BD.shape
        if n_rows == 0:
            return
        x_BD = dense_rows(x_BD)
        # A radix sort takes one pass for each byte of a key.
        key = torch.int16 if len(sums_KD) < 2**15 else torch.int32
        sorted_B, order_B = torch.sort(labels_B.to(key), stable=True)
        n_chunks = triton.cdiv(n_rows, CHUNK)
        pieces = sums_KD.new_empty((n_chunks, 2, n_features))
        block_d = min(triton.next_power_of_2(n_features), 128)
        grid = (n_chunks, triton.cdiv(n_features, block_d))
        with torch.cuda.device_of(x_BD):
            add_chunks_kernel[grid](
                x_BD, x_BD.stride(0), sums_KD if shares_B is None else shares_B, order_B,
                sorted_B, sums_KD, counts_K, pieces, n_rows, n_features, CHUNK=CHUNK,
                BLOCK_D=block_d, HAS_SHARES=shares_B is not None, num_warps=1, **OPTIONS,
            )  # fmt: skip
            join_kernel[grid](
                sorted_B, sums_KD, pieces, n_rows, n_features,
                CHUNK=CHUNK, BLOCK_C=16, BLOCK_D=block_d, num_warps=1, **OPTIONS,
            )  # fmt: skip

    def step(
        self,
        rows: Rows,
        centroids_KD: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
    ) -> Assignment:
        """Assign rows and add them up, in one read if `fits_one_read`; see `Kernel`."""
        if not fits_one_read(len(centroids_KD), rows.x_BD.shape[1], self._dtype):
            return assign_then_add(self, rows, centroids_KD, sums_KD=sums_KD, counts_K=counts_K)
        self._refuse(rows.x_BD, centroids_KD)
        x_BD, centroids_KD = dense_rows(rows.x_BD), centroids_KD.contiguous()
        n_rows = len(x_BD)
        labels_B = torch.empty(n_rows, dtype=torch.int64, device=x_BD.device)
        sq_distances_B = torch.empty(n_rows, dtype=self._dtype, device=x_BD.device)
        if n_rows > 0:
            with torch.cuda.device_of(x_BD):
                self._one_read(
                    x_BD, rows, centroids_KD, labels_B, sq_distances_B, sums_KD, counts_K
                )
        return Assignment(labels_B, sq_distances_B)

    # ---- parts of assign ----------------------------------------------------

    def _assign(
        self,
        x_BD: torch.Tensor,
        centroids_KD: torch.Tensor,
        *,
        two: bool,
        found: Assignment | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self._refuse(x_BD, centroids_KD)
        n_rows, n_features = x_BD.shape
        labels_B, sq_distances_B = found or (
            torch.empty(n_rows, dtype=torch.int64, device=x_BD.device),
            torch.empty(n_rows, dtype=self._dtype, device=x_BD.device),
        )
        second_B = torch.empty_like(sq_distances_B) if two else sq_distances_B
        if n_rows == 0:
            return labels_B, sq_distances_B, second_B
        x_BD = dense_rows(x_BD)
        centroids_KD = centroids_KD.contiguous()
        padded_d = padded_features(n_features)
        tile = two_tile(self._major) if two else self._tile_for(x_BD, centroids_KD)
        results = (labels_B, sq_distances_B, second_B)
        with torch.cuda.device_of(x_BD):
            rounded = self._round_centroids(centroids_KD, padded_d, tile.centroids)
            self._screen(x_BD, centroids_KD, rounded, results, padded_d, tile, two=two)
            if self._exact:
                if not two:
                    self.launch(
                        narrow_kernel, (self._n_narrowers,), x_BD, x_BD.stride(0), centroids_KD,
                        *rounded[1:], labels_B, self._queue, self._crowd, self._about[4:],
                        len(centroids_KD), n_features,
                        **NARROW_BLOCKS, N_LISTED=N_LISTED, WIDE=WIDE[self._dtype],
                        **NARROW_OPTIONS, **OPTIONS,
                    )  # fmt: skip
                self.launch(
                    settle_kernel, (self._n_settlers,), x_BD, x_BD.stride(0), centroids_KD,
                    *results, self._queue, self._about[3:], len(centroids_KD), n_features,
                    BLOCK_N=tile.centroids, KEPT_N=tile.centroids // tile.fold, BLOCK_K=16,
                    BLOCK_D=32, STEP_D=STEP_D[self._dtype], N_LISTED=N_LISTED,
                    WIDE=WIDE[self._dtype], SECOND=two, **SETTLE_OPTIONS, **OPTIONS,
                )  # fmt: skip
                if found is None:
                    self._n_rechecked += self._about[3]
        return results

    def _tile_for(self, x_BD: torch.Tensor, centroids_KD: torch.Tensor) -> Tile:
        """The given tile, the tuned one, or the default; tuning waits for the device."""
        # Fewer centroids than the kernel is made for say little of the tile that suits all of them.
        if self._tunes and self._tile is None and len(centroids_KD) == self._k:
            key = key_of(x_BD.device, x_BD.dtype, x_BD.shape[1], self._k, self._dtype)

            def seconds(tile: Tile) -> float | None:
                trial = TritonKernel(
                    len(x_BD), self._k, self._dtype, x_BD.device, self._precision, tile
                )
                no_norms_B = x_BD.new_empty(0)
                return seconds_of(lambda: trial.assign(x_BD, no_norms_B, centroids_KD))

            with torch.cuda.device_of(x_BD):
                among = tiles(x_BD.shape[1], self._dtype, self._major)
                self._tile = tuned_tile(cache_folder(), key, among, seconds)
        k, n_features = centroids_KD.shape
        return self._tile or default_tile(n_features, k, self._dtype, self._major)

    def _refuse(self, x_BD: torch.Tensor, centroids_KD: torch.Tensor) -> None:
        taken = (self._dtype, *self.stored_dtypes)
        check_given(x_BD, centroids_KD, self._batch_rows, self._k, taken)

    def _round_centroids(
        self, centroids_KD: torch.Tensor, padded_d: int, block_k: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Centroids as scaled float16, their squared lengths, and `AMAX`, `NORM`, `RESIDUAL`."""
        k, n_features = centroids_KD.shape
        padded_k = triton.cdiv(k, block_k) * block_k
        c16 = self._buffer("c16", padded_k * padded_d, torch.float16)
        c_sq = self._buffer("c_sq", padded_k, torch.float32)
        about = self._about.view(torch.float32)
        if not self._about_is_zero:
            self._about.zero_()
        self._about_is_zero = False
        blocks = {"BLOCK_K": min(block_k, self._rounded_k), "BLOCK_D": min(padded_d, 64)}
        self.launch(
            measure_kernel, (triton.cdiv(k, blocks["BLOCK_K"]),),
            centroids_KD, about, k, n_features, **blocks, **OPTIONS,
        )  # fmt: skip
        self.launch(
            round_kernel, (padded_k // blocks["BLOCK_K"],),
            centroids_KD, c16, c_sq, about, k, n_features, padded_d, **blocks, **OPTIONS,
        )  # fmt: skip
        return c16, c_sq, about

    def _screen(
        self,
        x_BD: torch.Tensor,
        centroids_KD: torch.Tensor,
        rounded: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        results: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        padded_d: int,
        tile: Tile,
        *,
        two: bool,
    ) -> None:
        (n_rows, n_features), k = x_BD.shape, len(centroids_KD)
        wide = WIDE[self._dtype]
        stays = is_resident(n_features)
        rounds = tile.rounds and can_round(n_features, self._dtype)
        x16 = x_about = rounded[1]
        if not rounds:
            x16 = self._buffer("x16", self._batch_rows * padded_d, torch.float16)
            x_about = self._buffer("x_about", 3 * self._batch_rows, torch.float32)
            self.launch(
                round_rows_kernel, (triton.cdiv(n_rows, 16),), x_BD, x_BD.stride(0), x16, x_about,
                n_rows, n_features, padded_d, BLOCK_M=16, BLOCK_D=64, WIDE=wide, **OPTIONS,
            )  # fmt: skip
        n_tiles = triton.cdiv(k, tile.centroids)
        index_bits = (n_tiles - 1).bit_length()
        self.launch(
            screen_kernel, (triton.cdiv(n_rows, tile.rows),), x_BD, x_BD.stride(0), x16, x_about,
            centroids_KD, *rounded, *results, self._queue, self._crowd, self._about[3:], n_rows, k,
            n_features, n_tiles, -1 << index_bits, 2.0 ** (index_bits - 22),
            BLOCK_M=tile.rows, BLOCK_N=tile.centroids, FOLD=tile.fold,
            BLOCK_D=padded_d if stays else STREAMED_D, PADDED_D=padded_d,
            STEP_D=STEP_D[self._dtype], N_LISTED=N_LISTED, WIDE=wide,
            ROUNDED=not rounds, RESIDENT=stays, EXACT=self._exact, SECOND=two,
            num_warps=tile.warps, num_stages=tile.stages, **OPTIONS,
        )  # fmt: skip

    def _one_read(
        self,
        x_BD: torch.Tensor,
        rows: Rows,
        centroids_KD: torch.Tensor,
        labels_B: torch.Tensor,
        sq_distances_B: torch.Tensor,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
    ) -> None:
        (n_rows, n_features), k = x_BD.shape, len(centroids_KD)
        in_lanes = fits_lanes(k, n_features)
        tile_rows = LANES_ROWS if in_lanes else ONE_READ_ROWS
        span = triton.cdiv(triton.cdiv(n_rows, tile_rows), MAX_SPANS) * tile_rows
        n_spans = triton.cdiv(n_rows, span)
        span_sums = self._buffer("span_sums", MAX_SPANS * k * n_features, torch.float32)
        span_counts = self._buffer("span_counts", MAX_SPANS * k, torch.int32)
        # In one read products of rows and shares are float32.
        shares_B = None if rows.shares_B is None else rows.shares_B.to(self._dtype)
        left_out_B = rows.left_out_B
        # Pointers that are not used must still be pointers.
        given = (
            rows.sq_norms_B if rows.zeros_first else centroids_KD,
            centroids_KD if shares_B is None else shares_B,
            centroids_KD if left_out_B is None else left_out_B.view(torch.uint8),
        )
        results = (labels_B, sq_distances_B, span_sums, span_counts, self._n_rechecked)
        flags = {
            "HAS_SHARES": shares_B is not None, "HAS_LEFT_OUT": left_out_B is not None,
            "ZEROS_FIRST": rows.zeros_first, "EXACT": self._exact,
        }  # fmt: skip
        if in_lanes:
            lanes_kernel[(n_spans,)](
                x_BD, x_BD.stride(0), centroids_KD, *given, *results, n_rows, k, span,
                **lanes_blocks(k, n_features), **flags, **LANES_OPTIONS, **OPTIONS,
            )  # fmt: skip
        else:
            block_k, block_d = power_of_two(k), power_of_two(n_features)
            rounded = self._round_centroids(centroids_KD, block_d, block_k)
            # Rows as stored fit one term; multiplied by their shares they are float32.
            n_terms = 1 if shares_B is None and x_BD.dtype in STORED else 3
            term = tl.float16 if n_terms == 1 and x_BD.dtype == torch.float16 else tl.bfloat16
            # Triton's interpreter multiplies bfloat16 wrongly.
            factor = tl.float32 if x_BD.device.type == "cpu" else term
            one_read_kernel[(n_spans,)](
                x_BD, x_BD.stride(0), centroids_KD, *rounded, *given, *results,
                n_rows, k, n_features, block_d, span,
                **one_read_blocks(block_k, block_d, self._major), TERM=term, FACTOR=factor,
                N_TERMS=n_terms,
                **flags, **one_read_options(n_features), **OPTIONS,
            )  # fmt: skip
        add_spans_kernel[(triton.cdiv(k * n_features, 128),)](
            span_sums, span_counts, sums_KD, counts_K, n_spans, k, n_features,
            BLOCK_S=16, BLOCK_E=128, num_warps=4, **OPTIONS,
        )  # fmt: skip

    def _buffer(self, name: str, n_elements: int, dtype: torch.dtype) -> torch.Tensor:
        """Scratch memory of `n_elements` or more, allocated when a call needs more than before."""
        held = self._buffers.get(name)
        if held is None or len(held) < n_elements:
            held = torch.empty(n_elements, dtype=dtype, device=self._about.device)
            self._buffers[name] = held
        return held
