"""The sizes of what bounded clusters take: bins of counts, and bytes. Imports no torch."""

from __future__ import annotations

__all__ = [
    "BIN_BITS",
    "MOST_PASSES",
    "N_BINS",
    "OCTAVES_ABOVE",
    "pool_places",
    "priced_bytes",
    "size_state_bytes",
    "sizing_bytes",
]

#: Passes before the last, at most. Where sizes settle, each lowers what is too much by a third.
MOST_PASSES = 24
#: Bins of an octave as a power of two, and octaves, of the counts of what rows would lose.
BIN_BITS, OCTAVES = 2, 24
N_BINS = OCTAVES << BIN_BITS
#: How far above the mean squared distance bins reach, in octaves.
OCTAVES_ABOVE = 4


def pool_places(k: int) -> int:
    """Rows that may be named to go elsewhere than prices say."""
    return 16 * k + 1024


def priced_bytes(k: int, n_features: int, batch_rows: int, width: int) -> int:
    """Bytes of the copies of rows and centroids that have a price as one more feature."""
    return (batch_rows + 2 * k) * (n_features + 1) * width + 64 * batch_rows


def sizing_bytes(k: int) -> int:
    """Bytes of the counts of all clusters: so far, of a batch, summed up, and in a checkpoint."""
    # What is gathered is sorted, in a few copies.
    return k * (4 * 8 * N_BINS + 112) + 7 * 32 * pool_places(k)


def size_state_bytes(k: int) -> int:
    """Bytes of the state of the sizes, as a checkpoint has it."""
    return k * (8 * N_BINS + 64) + 56 + 32 * pool_places(k)
