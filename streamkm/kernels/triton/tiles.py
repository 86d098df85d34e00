"""Sizes by which the work of the device is cut into programs.

Most decide speed only. Those that decide the last bits of sums say so, and are never tuned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = [
    "LANES_OPTIONS",
    "LANES_ROWS",
    "MAX_LANE_NUMBERS",
    "MAX_ONE_READ_K",
    "MAX_ROUNDED_D",
    "NARROW_BLOCKS",
    "NARROW_OPTIONS",
    "ONE_READ_ROWS",
    "SETTLE_OPTIONS",
    "STREAMED_D",
    "Tile",
    "can_round",
    "default_tile",
    "fits_lanes",
    "fits_one_read",
    "is_resident",
    "lanes_blocks",
    "one_read_blocks",
    "one_read_options",
    "padded_features",
    "power_of_two",
    "tiles",
    "two_tile",
]

#: Block sizes of `narrow_kernel`, and options of its compilation.
NARROW_BLOCKS = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_D": 32}
NARROW_OPTIONS = {"num_warps": 4, "maxnreg": 255}
#: Features of a row that a program rounds itself, at most, by the dtype of the centroids:
#: registers would not hold more of a tile of rows.
MAX_ROUNDED_D = {torch.float32: 128, torch.float64: 64}
#: Features of a row that stays in shared memory while all centroids pass by, at most. Longer
#: rows are loaded again with each tile of centroids, `STREAMED_D` features at a time.
MAX_RESIDENT_D, STREAMED_D = 256, 64
#: Clusters and features of a step in one read, at most: more centroids do not stay on the chip.
MAX_ONE_READ_K, MAX_ONE_READ_D = 256, 128
#: Rows of a tile of `one_read_kernel`; it decides the last bits of sums.
ONE_READ_ROWS = 64
#: Rows of a tile of `lanes_kernel`, one for each thread of 8 warps, and options of its
#: compilation; the rows decide the last bits of sums.
LANES_ROWS, LANES_OPTIONS = 256, {"num_warps": 8, "maxnreg": 255}
#: Elements of centroids, sums and counts that a thread of `lanes_kernel` holds, at most, and
#: features of a row, at most.
MAX_LANE_NUMBERS, MAX_LANE_FEATURES = 176, 16
#: Options of `settle_kernel`. Without a number of registers the assembler takes too few, so that
#: another program fits beside, and spills the rest.
SETTLE_OPTIONS = {"num_warps": 2, "maxnreg": 255}
#: Centroids from which on a wider group saves more on every score than it costs to compare its
#: members at the end, and rounding rows beforehand costs less than the registers it takes.
MANY_CENTROIDS = 2048


@dataclass(frozen=True, slots=True)
class Tile:
    """Sizes of one program of `screen_kernel`; they decide speed, never labels."""

    rows: int = 128
    centroids: int = 64
    fold: int = 2
    """Scores of a tile that share a position, of which one is kept."""
    warps: int = 8
    stages: int = 3
    """Tiles of centroids in shared memory. With 2, a program waits for each copy in full."""
    rounds: bool = False
    """Whether the program rounds its rows itself, if `can_round`; a kernel before it does if not.
    Rows are then read once, which counts where there are few centroids."""


def can_round(n_features: int, dtype: torch.dtype) -> bool:
    """Whether a program can round its own rows, for centroids of `dtype`.

    Rows that are not aligned are loaded element by element. For many features of many rows that
    takes more registers than there are.
    """
    is_aligned = n_features % 16 == 0 or n_features < 16
    return is_aligned and n_features <= MAX_ROUNDED_D[dtype]


def is_resident(n_features: int) -> bool:
    """Whether the rows of a tile stay on the chip while all centroids pass by."""
    return n_features <= MAX_RESIDENT_D


def default_tile(n_features: int, k: int, dtype: torch.dtype, major: int) -> Tile:
    """The tile without tuning, for `k` centroids of `dtype`.

    It spills no registers on compute capability `major`, 8 or 9.
    """
    if k < MANY_CENTROIDS and can_round(n_features, dtype):
        # On capability 8 Triton 3.6.0 has no registers for more groups, or more rows.
        if major < 9:
            return Tile(rows=64, rounds=True) if n_features < 16 else Tile(fold=4, rounds=True)
        return Tile(rounds=True)
    return tiles(n_features, dtype, major)[0]


def two_tile(major: int) -> Tile:
    """The tile for the two nearest: they may share a group, so that a group is one centroid."""
    # On capability 8, code of 8 warps would get 128 registers a thread, and spill.
    return Tile(rows=64, fold=1) if major >= 9 else Tile(rows=32, fold=1, warps=4)


def tiles(n_features: int, dtype: torch.dtype, major: int) -> tuple[Tile, ...]:
    """The tiles that tuning chooses from, for many centroids of `dtype`; the default first."""
    if not is_resident(n_features):
        # A wider tile reads the rows less often. On capability 8 both factors of a product lie in
        # registers, which a wide one does not leave room for; wgmma reads shared memory.
        first = Tile(centroids=256, fold=8) if major >= 9 else Tile(centroids=64, fold=4)
        return (
            *((first,) if major >= 9 or n_features % 16 else ()),
            Tile(centroids=128, fold=4),
            Tile(centroids=128, fold=4, stages=4),
            Tile(rows=64, centroids=128, fold=4, warps=4, stages=4),
        )
    narrow, wide = Tile(centroids=64, fold=4), Tile(centroids=128, fold=4)
    # Two programs of narrow tiles fit a multiprocessor up to 64 features, and their waits overlap.
    # Beyond 128 features, wide tiles take more shared memory than there is. On capability 8 they
    # spill, at d=128 by Triton 3.6.0 alone.
    is_wide = 64 < n_features <= 128 and major >= 9
    own = (
        Tile(centroids=64, fold=4, rounds=True),
        Tile(rounds=True),
        Tile(rows=64, centroids=64, fold=4, warps=4, rounds=True),
    )
    return (
        *((wide, narrow) if is_wide else (narrow, wide) if n_features <= 64 else (narrow,)),
        Tile(centroids=64, fold=4, stages=4),
        Tile(rows=64, centroids=64, fold=4, warps=4),
        *(own if can_round(n_features, dtype) else ()),
    )


def padded_features(n_features: int) -> int:
    """Number of features that a row is padded to for the tensor cores."""
    if is_resident(n_features):
        return power_of_two(n_features)
    return -(-n_features // STREAMED_D) * STREAMED_D


def power_of_two(n: int) -> int:
    """The least power of two that is at least `n` and 16, which tensor cores need."""
    return max(1 << (n - 1).bit_length(), 16)


def fits_one_read(k: int, n_features: int, dtype: torch.dtype) -> bool:
    """Whether `TritonKernel.step` reads rows once. It decides the bits of sums: never tuned."""
    return dtype == torch.float32 and k <= MAX_ONE_READ_K and n_features <= MAX_ONE_READ_D


def one_read_blocks(block_k: int, block_d: int, major: int) -> dict[str, int]:
    """Block sizes of `one_read_kernel` on compute capability `major`, 8 or 9.

    `block_k` and `block_d` are the padded numbers of centroids and features.
    """
    return {
        "BLOCK_M": ONE_READ_ROWS,
        "BLOCK_K": block_k,
        # At other widths the assembler runs out of registers.
        "BLOCK_N": 16 if block_d == 16 or major < 9 else min(block_k, 32),
        "BLOCK_C": 16,
        "BLOCK_D": block_d,
        "SLAB_D": 16,
        "STEP_D": min(32, block_d),
    }


def one_read_options(n_features: int) -> dict[str, int]:
    """Options to compile `one_read_kernel` with, for rows of `n_features` features."""
    # Of rows that are loaded element by element, loading slabs ahead takes more registers than
    # there are. With two slabs there is no third to load ahead.
    is_ahead = n_features % 16 == 0 and n_features > 32
    return {"num_warps": 4, "maxnreg": 255, "num_stages": 3 if is_ahead else 1}


def fits_lanes(k: int, n_features: int) -> bool:
    """Whether a thread has the registers for `k` centroids, their sums and counts."""
    return (
        n_features <= MAX_LANE_FEATURES and _lanes_k(k) * (2 * n_features + 1) <= MAX_LANE_NUMBERS
    )


def lanes_blocks(k: int, n_features: int) -> dict[str, int]:
    """Block sizes of `lanes_kernel` for `k` centroids of `n_features` features."""
    return {
        "BLOCK_M": LANES_ROWS,
        "BLOCK_K": _lanes_k(k),
        "D": n_features,
        "WIDTH": 1 << (n_features - 1).bit_length(),
    }


def _lanes_k(k: int) -> int:
    """`k` rounded up to a multiple of 4, so that not every `k` is compiled anew."""
    return -(-k // 4) * 4
