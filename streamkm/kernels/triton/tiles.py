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
    "MAX_RESIDENT_D",
    "ONE_READ_ROWS",
    "SETTLE_OPTIONS",
    "Tile",
    "default_tile",
    "fits_lanes",
    "is_resident",
    "lanes_blocks",
    "one_read_blocks",
    "one_read_options",
    "padded_features",
    "power_of_two",
    "tiles",
    "two_tile",
]

#: Features of a row that is kept on the chip, at most: registers would not hold more.
MAX_RESIDENT_D = {torch.float32: 256, torch.float64: 64}
#: Bytes of such a row, at most: a tile of rows is in registers as a whole while it is rounded.
MAX_RESIDENT_BYTES = 512
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
#: members at the end.
MANY_CENTROIDS = 2048


@dataclass(frozen=True, slots=True)
class Tile:
    """Sizes of one program of `screen_kernel`; they decide speed, never labels."""

    rows: int = 128
    centroids: int = 64
    fold: int = 2
    """Scores of a tile that share a position, of which one is kept."""
    warps: int = 8
    stages: int = 2


def is_resident(n_features: int, dtype: torch.dtype, rows: torch.dtype) -> bool:
    """Whether a program keeps its rows on the chip and rounds them itself.

    Rows that are not aligned are loaded element by element. For many features of many rows that
    takes more registers than there are.
    """
    is_aligned = n_features % 16 == 0 or n_features < 16
    return (
        is_aligned
        and n_features <= MAX_RESIDENT_D[dtype]
        and n_features * rows.itemsize <= MAX_RESIDENT_BYTES
    )


def default_tile(
    n_features: int, k: int, dtype: torch.dtype, rows: torch.dtype, major: int
) -> Tile:
    """The tile without tuning, for `k` centroids of `dtype` and rows of dtype `rows`.

    It spills no registers on compute capability `major`, 8 or 9.
    """
    if k < MANY_CENTROIDS and is_resident(n_features, dtype, rows):
        return Tile(rows=64) if n_features < 16 and major < 9 else Tile()
    return tiles(n_features, dtype, rows, major)[0]


def two_tile(major: int) -> Tile:
    """The tile for the two nearest: they may share a group, so that a group is one centroid."""
    # On capability 8, code of 8 warps would get 128 registers a thread, and spill.
    return Tile(rows=64, fold=1) if major >= 9 else Tile(rows=32, fold=1, warps=4)


def tiles(n_features: int, dtype: torch.dtype, rows: torch.dtype, major: int) -> tuple[Tile, ...]:
    """The tiles that tuning chooses from, for many centroids of `dtype`; the default first."""
    if not is_resident(n_features, dtype, rows):
        # On capability 8 both factors of a product lie in registers; wgmma reads shared memory.
        needs_room = major < 9 and n_features % 16 != 0 and dtype == torch.float32
        return (
            *((Tile(centroids=64, fold=4, stages=3),) if needs_room else ()),
            Tile(centroids=128, fold=4, stages=3),
            Tile(centroids=128, fold=4, stages=4),
            Tile(centroids=256, fold=4, stages=3),
            Tile(rows=64, centroids=128, fold=4, warps=4, stages=4),
        )
    wide, narrow = Tile(centroids=128, fold=4), Tile(centroids=64, fold=4)
    first: tuple[Tile, ...]
    if n_features < 16 and major < 9:
        first = (Tile(rows=64, centroids=128, fold=4), wide, narrow)
    elif dtype == torch.float32:
        first = (wide, narrow)
    else:
        first = (narrow, wide)
    return (
        *first,
        Tile(),
        Tile(centroids=64, fold=4, stages=3),
        Tile(rows=64, centroids=128, fold=4, warps=4),
        Tile(rows=64, centroids=64, fold=2, warps=4),
    )


def padded_features(n_features: int, dtype: torch.dtype, rows: torch.dtype) -> int:
    """Number of features that a row is padded to for the tensor cores."""
    if not is_resident(n_features, dtype, rows):
        return -(-n_features // 64) * 64
    return power_of_two(n_features)


def power_of_two(n: int) -> int:
    """The least power of two that is at least `n` and 16, which tensor cores need."""
    return max(1 << (n - 1).bit_length(), 16)


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


def one_read_options(block_d: int) -> dict[str, int]:
    """Options to compile `one_read_kernel` with, for `block_d` padded features."""
    # With two slabs of features there is no third to load ahead.
    return {"num_warps": 4, "maxnreg": 255, "num_stages": 2 if block_d == 32 else 3}


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
