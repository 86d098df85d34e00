"""Assignment and update on CUDA by Triton: exact labels, and the same bits every time.

This file only launches; what runs on the device is in ``triton_assign`` and
``triton_update``. Nothing here waits for the device, and the numbers of rows and
centroids are run-time arguments, so that a batch of another length compiles nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from streamkm.errors import InputError
from streamkm.kernels.base import Assignment
from streamkm.kernels.triton_assign import (
    measure_kernel,
    round_kernel,
    round_rows_kernel,
    screen_kernel,
    settle_kernel,
)
from streamkm.kernels.triton_update import add_chunks_kernel, join_kernel

__all__ = ["Tile", "TritonKernel", "TwoNearest", "default_tile"]

#: Input that is read as it is stored, beside the dtype of the centroids.
STORED = (torch.float16, torch.bfloat16, torch.uint8, torch.int8)
#: Rows of more features than this are not kept on the chip.
MAX_RESIDENT_D = 256
#: Centroids listed of a row that is compared again; with more, all are looked at.
N_LISTED = 8
#: Features taken at a time where distances are summed up.
STEP_D = 32
#: The queue of rows is addressed by 32 bits.
MAX_BATCH_ROWS = 2**27
#: Bits of a score that may hold a tile number.
MAX_INDEX_BITS = 18
#: Bounds hold with fused multiply-adds and without; without, scores take an instruction more.
OPTIONS = {"enable_fp_fusion": True}
#: Sorted rows that one program adds up: part of what decides the sums' last bits.
CHUNK = 64


@dataclass(frozen=True, slots=True)
class Tile:
    """How a program of the screening kernel is cut out; decides speed, never labels."""

    rows: int = 128
    centroids: int = 64
    fold: int = 2
    """How many times wider a tile of scores is than what is kept of it."""
    warps: int = 8
    stages: int = 2


class TwoNearest(NamedTuple):
    """The nearest centroid of every row, and how far the second nearest is."""

    labels_B: torch.Tensor
    sq_distances_B: torch.Tensor
    second_sq_distances_B: torch.Tensor
    """Of a row that was certain: to the second best of the screening. Infinite if k is 1."""


def default_tile(padded_d: int) -> Tile:
    """What is taken where nothing has been tuned."""
    if padded_d <= MAX_RESIDENT_D:
        return Tile()
    return Tile(centroids=128, fold=4, stages=3)


def padded_features(n_features: int) -> int:
    """Features that a row is padded to on its way to the tensor cores."""
    if n_features > MAX_RESIDENT_D:
        return -(-n_features // 64) * 64
    return max(1 << (n_features - 1).bit_length(), 16)


class TritonKernel:
    """Triton on `device`, for batches of up to `batch_rows` rows and `k` centroids.

    Raises
    ------
    InputError
        If `k` or `batch_rows` is out of range, or a call's tensors do not fit together.
    """

    name = "triton"

    def __init__(
        self,
        batch_rows: int,
        k: int,
        dtype: torch.dtype,
        device: torch.device,
        precision: str = "exact",
        tile: Tile | None = None,
    ) -> None:
        if not 1 <= k <= 16 << MAX_INDEX_BITS:
            raise InputError(f"kernel triton takes 1 to {16 << MAX_INDEX_BITS:,} clusters, not {k}")
        if not 1 <= batch_rows <= MAX_BATCH_ROWS:
            raise InputError(
                f"kernel triton takes batches of 1 to {MAX_BATCH_ROWS:,} rows, not {batch_rows}"
            )
        self._k, self._dtype, self._tile = k, dtype, tile
        self._exact = precision == "exact"
        self._batch_rows = batch_rows
        # Largest element, length and relative residual of the centroids; length of the queue.
        self._about = torch.zeros(4, dtype=torch.int32, device=device)
        self._n_rechecked = torch.zeros((), dtype=torch.int64, device=device)
        n_queued = batch_rows if self._exact else 0
        self._queue = torch.empty((n_queued, 2 + N_LISTED), dtype=torch.int32, device=device)
        self._buffers: dict[tuple[str, int], torch.Tensor] = {}
        on_gpu = device.type == "cuda"
        n_processors = (
            torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 1
        )
        self._n_settlers = 8 * n_processors

    @property
    def n_rechecked(self) -> torch.Tensor:
        """Rows that were scored again since the kernel was made: int64, on the device."""
        return self._n_rechecked

    def assign(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> Assignment:
        """Nearest centroid of each row; see `Kernel`. Needs no norms: distances are differences."""
        del sq_norms_B
        labels_B, sq_distances_B, _ = self._assign(x_BD, centroids_KD, two=False)
        return Assignment(labels_B, sq_distances_B)

    def assign_two(self, x_BD: torch.Tensor, centroids_KD: torch.Tensor) -> TwoNearest:
        """Nearest centroid of each row, and squared distances to it and to the second nearest."""
        labels_B, sq_distances_B, second_B = self._assign(x_BD, centroids_KD, two=True)
        if self._k == 1:
            second_B.fill_(torch.inf)
        return TwoNearest(labels_B, sq_distances_B, second_B)

    def accumulate(
        self,
        x_BD: torch.Tensor,
        labels_B: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
    ) -> None:
        """Add rows to their clusters; see `Kernel`."""
        n_rows, n_features = x_BD.shape
        if n_rows == 0:
            return
        x_BD = x_BD if x_BD.stride(1) == 1 else x_BD.contiguous()
        # Radix sorting takes as many passes as a key has bytes.
        key = torch.int16 if len(sums_KD) < 2**15 else torch.int32
        sorted_B, order_B = torch.sort(labels_B.to(key), stable=True)
        n_chunks = triton.cdiv(n_rows, CHUNK)
        pieces = sums_KD.new_empty((n_chunks, 2, n_features))
        block_d = min(triton.next_power_of_2(n_features), 128)
        grid = (n_chunks, triton.cdiv(n_features, block_d))
        with torch.cuda.device_of(x_BD):
            add_chunks_kernel[grid](
                x_BD, x_BD.stride(0), order_B, sorted_B, sums_KD, counts_K, pieces,
                n_rows, n_features, CHUNK=CHUNK, BLOCK_D=block_d, num_warps=1, **OPTIONS,
            )  # fmt: skip
            join_kernel[grid](
                sorted_B, sums_KD, pieces, n_rows, n_features,
                CHUNK=CHUNK, BLOCK_C=16, BLOCK_D=block_d, num_warps=1, **OPTIONS,
            )  # fmt: skip

    # ---- parts of assign ----------------------------------------------------

    def _assign(
        self, x_BD: torch.Tensor, centroids_KD: torch.Tensor, *, two: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self._check(x_BD, centroids_KD)
        n_rows, n_features = x_BD.shape
        labels_B = torch.empty(n_rows, dtype=torch.int64, device=x_BD.device)
        sq_distances_B = torch.empty(n_rows, dtype=self._dtype, device=x_BD.device)
        second_B = torch.empty_like(sq_distances_B) if two else sq_distances_B
        if n_rows == 0:
            return labels_B, sq_distances_B, second_B
        x_BD = x_BD if x_BD.stride(1) == 1 else x_BD.contiguous()
        centroids_KD = centroids_KD.contiguous()
        padded_d = padded_features(n_features)
        tile = self._tile or default_tile(padded_d)
        results = (labels_B, sq_distances_B, second_B)
        with torch.cuda.device_of(x_BD):
            rounded = self._round_centroids(centroids_KD, padded_d, tile)
            self._screen(x_BD, centroids_KD, rounded, results, padded_d, tile, two=two)
            if self._exact:
                settle_kernel[(self._n_settlers,)](
                    x_BD, x_BD.stride(0), centroids_KD, *results, self._queue, self._about[3:],
                    self._k, n_features,
                    KEPT_N=tile.centroids // tile.fold, BLOCK_K=16, STEP_D=STEP_D,
                    N_LISTED=N_LISTED, SECOND=two, num_warps=4, **OPTIONS,
                )  # fmt: skip
                self._n_rechecked += self._about[3]
        return results

    def _check(self, x_BD: torch.Tensor, centroids_KD: torch.Tensor) -> None:
        """Refuse what the device code would read out of bounds, or misread."""
        if centroids_KD.shape != (self._k, x_BD.shape[1]) or centroids_KD.dtype != self._dtype:
            raise InputError(
                f"centroids must be {self._k} x {x_BD.shape[1]}, {self._dtype}, for these rows; "
                f"they are {tuple(centroids_KD.shape)}, {centroids_KD.dtype}"
            )
        stored = STORED if self._dtype == torch.float32 else ()
        if x_BD.dtype not in (self._dtype, *stored):
            raise InputError(
                f"rows must be one of {(self._dtype, *stored)} beside {self._dtype} centroids, "
                f"not {x_BD.dtype}"
            )
        if len(x_BD) > self._batch_rows:
            raise InputError(
                f"a batch has at most the {self._batch_rows:,} rows that the kernel was made for, "
                f"not {len(x_BD):,}"
            )

    def _round_centroids(
        self, centroids_KD: torch.Tensor, padded_d: int, tile: Tile
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Centroids as scaled float16, their squared lengths, and what that cost."""
        n_features = centroids_KD.shape[1]
        padded_k = triton.cdiv(self._k, tile.centroids) * tile.centroids
        c16 = self._buffer("c16", padded_k * padded_d, torch.float16)
        c_sq = self._buffer("c_sq", padded_k, torch.float32)
        about = self._about.view(torch.float32)
        self._about.zero_()
        block_d = min(padded_d, 64)
        measure_kernel[(triton.cdiv(self._k, 16),)](
            centroids_KD, about, self._k, n_features, BLOCK_K=16, BLOCK_D=block_d, **OPTIONS
        )
        round_kernel[(padded_k // 16,)](
            centroids_KD, c16, c_sq, about, self._k, n_features, padded_d,
            BLOCK_K=16, BLOCK_D=block_d, **OPTIONS,
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
        n_rows, n_features = x_BD.shape
        wide = tl.float64 if self._dtype == torch.float64 else tl.float32
        is_resident = padded_d <= MAX_RESIDENT_D
        x16 = x_about = rounded[1]
        if not is_resident:
            x16 = self._buffer("x16", self._batch_rows * padded_d, torch.float16)
            x_about = self._buffer("x_about", 3 * self._batch_rows, torch.float32)
            round_rows_kernel[(triton.cdiv(n_rows, 16),)](
                x_BD, x_BD.stride(0), x16, x_about, n_rows, n_features, padded_d,
                BLOCK_M=16, BLOCK_D=64, WIDE=wide, **OPTIONS,
            )  # fmt: skip
        n_tiles = triton.cdiv(self._k, tile.centroids)
        index_bits = (n_tiles * tile.fold - 1).bit_length()
        screen_kernel[(triton.cdiv(n_rows, tile.rows),)](
            x_BD, x_BD.stride(0), x16, x_about, centroids_KD, *rounded, *results,
            self._queue, self._about[3:],
            n_rows, self._k, n_features, padded_d, n_tiles, -1 << index_bits,
            2.0 ** (index_bits - 22),
            BLOCK_M=tile.rows, BLOCK_N=tile.centroids, FOLD=tile.fold,
            BLOCK_D=padded_d if is_resident else 64, STEP_D=STEP_D, N_LISTED=N_LISTED, WIDE=wide,
            RESIDENT=is_resident, EXACT=self._exact, SECOND=two,
            num_warps=tile.warps, num_stages=tile.stages, **OPTIONS,
        )  # fmt: skip

    def _buffer(self, name: str, n_elements: int, dtype: torch.dtype) -> torch.Tensor:
        """Scratch memory, made on first use and kept."""
        key = (name, n_elements)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(n_elements, dtype=dtype, device=self._about.device)
        return self._buffers[key]
