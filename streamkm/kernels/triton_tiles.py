"""How the device's work is cut into programs: what decides speed, and never a result."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = [
    "MAX_RESIDENT_D",
    "ONE_READ_OPTIONS",
    "ONE_READ_ROWS",
    "SETTLE_WARPS",
    "TWO_TILE",
    "Tile",
    "default_tile",
    "one_read_blocks",
    "padded_features",
    "tiles",
]

#: Rows of more features than this are not kept on the chip: registers would not hold them.
MAX_RESIDENT_D = {torch.float32: 256, torch.float64: 64}
#: Of the programs that settle rows; with more, code for 8.0 spills registers.
SETTLE_WARPS = 2
#: Rows of a tile of the kernel that reads once: part of what decides the last bits of sums.
ONE_READ_ROWS = 64
#: Of the same kernel. Without a limit the assembler takes fewer registers for the sake of
#: programs that find no room beside each other anyway, and spills some.
ONE_READ_OPTIONS = {"num_warps": 4, "maxnreg": 255}
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
    registers: int | None = None
    """Of a thread, at most: fewer let more programs share a multiprocessor, but may spill."""


#: For the two nearest: they may be of one group, so that a group is one centroid.
TWO_TILE = Tile(rows=64, fold=1)


def default_tile(n_features: int, k: int, dtype: torch.dtype) -> Tile:
    """What is taken where nothing has been tuned, for `k` centroids of `dtype`."""
    if n_features > MAX_RESIDENT_D[dtype]:
        return Tile(centroids=128, fold=4, stages=3)
    if k < MANY_CENTROIDS:
        return Tile()
    # Rows of float64 leave no registers for wide tiles in code for 8.0.
    return Tile(centroids=128 if dtype == torch.float32 else 64, fold=4)


def tiles(n_features: int, dtype: torch.dtype) -> tuple[Tile, ...]:
    """What tuning chooses from, for many centroids of `dtype`."""
    if n_features > MAX_RESIDENT_D[dtype]:
        return (
            Tile(centroids=128, fold=4, stages=3),
            Tile(centroids=128, fold=4, stages=4),
            Tile(centroids=256, fold=4, stages=3),
            Tile(rows=64, centroids=128, fold=4, warps=4, stages=4),
        )
    wide = (Tile(centroids=128, fold=4),) if dtype == torch.float32 else ()
    return (
        *wide,
        Tile(),
        Tile(centroids=64, fold=4),
        Tile(centroids=64, fold=4, stages=3),
        Tile(rows=64, centroids=128, fold=4, warps=4),
        Tile(rows=64, centroids=64, fold=2, warps=4),
    )


def padded_features(n_features: int, dtype: torch.dtype) -> int:
    """Features that a row is padded to on its way to the tensor cores."""
    if n_features > MAX_RESIDENT_D[dtype]:
        return -(-n_features // 64) * 64
    return max(1 << (n_features - 1).bit_length(), 16)


def one_read_blocks(block_k: int, block_d: int) -> dict[str, int]:
    """Of the kernel that reads once, for so many centroids and features (padded)."""
    return {
        "BLOCK_M": ONE_READ_ROWS,
        "BLOCK_K": block_k,
        "BLOCK_N": min(block_k, 32),
        "BLOCK_C": 16,
        "BLOCK_D": block_d,
        "SLAB_D": 16,
        "STEP_D": min(32, block_d),
    }
