"""How the device's work is cut into programs: what decides speed, and never a result."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["MAX_RESIDENT_D", "TWO_TILE", "Tile", "default_tile", "padded_features", "tiles"]

#: Rows of more features than this are not kept on the chip: registers would not hold them.
MAX_RESIDENT_D = {torch.float32: 256, torch.float64: 64}
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
TWO_TILE = Tile(fold=1)


def default_tile(n_features: int, k: int, dtype: torch.dtype) -> Tile:
    """What is taken where nothing has been tuned, for `k` centroids of `dtype`."""
    if n_features > MAX_RESIDENT_D[dtype]:
        return Tile(centroids=128, fold=4, stages=3)
    return Tile(centroids=128, fold=4) if k >= MANY_CENTROIDS else Tile()


def tiles(n_features: int, dtype: torch.dtype) -> tuple[Tile, ...]:
    """What tuning chooses from, for many centroids of `dtype`."""
    if n_features > MAX_RESIDENT_D[dtype]:
        return (
            Tile(centroids=128, fold=4, stages=3),
            Tile(centroids=128, fold=4, stages=4),
            Tile(centroids=256, fold=4, stages=3),
            Tile(rows=64, centroids=128, fold=4, warps=4, stages=4),
        )
    return (
        Tile(centroids=128, fold=4),
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
