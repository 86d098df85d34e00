"""How the device's work is cut into programs: what decides speed, and never a result."""

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

#: Rows of more features than this are not kept on the chip: registers would not hold them.
MAX_RESIDENT_D = {torch.float32: 256, torch.float64: 64}
#: Nor longer ones, which are rounded while all of a tile is in registers.
MAX_RESIDENT_BYTES = 512
#: Rows of a tile of the kernel that reads once: part of what decides the last bits of sums.
ONE_READ_ROWS = 64
#: Rows of a tile of the kernel that has a row in a lane, and how that is compiled: a row
#: to each thread. Part of what decides the last bits of sums.
LANES_ROWS, LANES_OPTIONS = 256, {"num_warps": 8, "maxnreg": 255}
#: Where it is used: numbers of centroids, sums and counts that a thread holds, and features.
MAX_LANE_NUMBERS, MAX_LANE_FEATURES = 176, 16
#: Without a limit on registers the assembler takes fewer than it needs, so that another
#: program fits beside, and spills some.
SETTLE_OPTIONS = {"num_warps": 2, "maxnreg": 255}
#: From so many centroids on, comparing the members of a group at the end costs less than
#: a wider group saves on every score.
MANY_CENTROIDS = 2048


@dataclass(frozen=True, slots=True)
class Tile:
    """How a program of the screening kernel is cut out; decides speed, never labels."""

    rows: int = 128
    centroids: int = 64
    fold: int = 2
    """How many times wider a tile of scores is than what is kept of it."""
    warps: int = 8
    stages: int = 2


def is_resident(n_features: int, dtype: torch.dtype, rows: torch.dtype) -> bool:
    """Whether a program keeps its rows on the chip, and rounds them itself.

    Where rows begin at any address they are loaded number by number, and many features of
    many rows in that order take more registers than there are.
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
    """What is taken where nothing has been tuned, for rows and `k` centroids of these dtypes.

    None of them spills registers on the architecture of compute capability `major`, 8 or 9.
    """
    if k < MANY_CENTROIDS and is_resident(n_features, dtype, rows):
        return Tile(rows=64) if n_features < 16 and major < 9 else Tile()
    return tiles(n_features, dtype, rows, major)[0]


def two_tile(major: int) -> Tile:
    """What finds the two nearest: they may be of one group, so that a group is one centroid."""
    # Of 8 warps code for 8 would get 128 registers a thread, and spill.
    return Tile(rows=64, fold=1) if major >= 9 else Tile(rows=32, fold=1, warps=4)


def tiles(n_features: int, dtype: torch.dtype, rows: torch.dtype, major: int) -> tuple[Tile, ...]:
    """What tuning chooses from, for many centroids of `dtype`: the default first."""
    if not is_resident(n_features, dtype, rows):
        # Code for 8 holds both factors of a product in registers, wgmma reads them from elsewhere.
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
    """Features that a row is padded to on its way to the tensor cores."""
    if not is_resident(n_features, dtype, rows):
        return -(-n_features // 64) * 64
    return power_of_two(n_features)


def power_of_two(n: int) -> int:
    """The least power of two, and multiple of what tensor cores take, that is not below `n`."""
    return max(1 << (n - 1).bit_length(), 16)


def one_read_blocks(block_k: int, block_d: int, major: int) -> dict[str, int]:
    """Of the kernel that reads once, for so many centroids and features (padded).

    On compute capability `major`, 8 or 9.
    """
    return {
        "BLOCK_M": ONE_READ_ROWS,
        "BLOCK_K": block_k,
        # With other widths the assembler runs out of registers.
        "BLOCK_N": 16 if block_d == 16 or major < 9 else min(block_k, 32),
        "BLOCK_C": 16,
        "BLOCK_D": block_d,
        "SLAB_D": 16,
        "STEP_D": min(32, block_d),
    }


def one_read_options(block_d: int) -> dict[str, int]:
    """How that kernel is compiled, for so many features (padded)."""
    # Of two slabs of features no third is there to be loaded ahead.
    return {"num_warps": 4, "maxnreg": 255, "num_stages": 2 if block_d == 32 else 3}


def fits_lanes(k: int, n_features: int) -> bool:
    """Whether a thread has the registers for all of `k` centroids and their sums."""
    return (
        n_features <= MAX_LANE_FEATURES and _lanes_k(k) * (2 * n_features + 1) <= MAX_LANE_NUMBERS
    )


def lanes_blocks(k: int, n_features: int) -> dict[str, int]:
    """Of the kernel that has a row in a lane, for so many centroids and features."""
    return {
        "BLOCK_M": LANES_ROWS,
        "BLOCK_K": _lanes_k(k),
        "D": n_features,
        "WIDTH": 1 << (n_features - 1).bit_length(),
    }


def _lanes_k(k: int) -> int:
    """A few numbers of centroids, so that not every one is compiled anew."""
    return -(-k // 4) * 4
