"""How many branches' lists there are over many clusters, and what they take; imports no torch."""

from __future__ import annotations

__all__ = [
    "LISTS_PER_LEAF",
    "LISTS_PER_SEARCHED",
    "TILE_ELEMENTS",
    "branch_bytes",
    "compared",
    "listed",
]

#: Lists that a cluster is in, at most, on average over all clusters. With 2, 4, 6 and 8 lists the
#: nearest cluster was found of 68, 84, 92 and 96 % of rows without structure (Gaussian in 8
#: dimensions; k=1,024, 64 branches), and of 80, 89, 92 and 94 % of embeddings.
LISTS_PER_LEAF = 8
#: The same for a fast search, of which a true nearest cluster is asked for: 8, 16, 24 and 32 lists
#: find that of 92, 97, 98.9 and 99.4 % of rows of 24 heavy-tailed dimensions (k=16,384, 256
#: branches). Data in groups, whose clusters are in fewer lists, are searched no slower.
LISTS_PER_SEARCHED = 32
#: Distances between clusters and branches that are in memory at once.
TILE_ELEMENTS = 1 << 20


def listed(k: int, n_branches: int, n_lists: int = LISTS_PER_LEAF) -> int:
    """Entries of the lists of all branches over `k` clusters, at most; 0 without branches.

    A cluster is in `n_lists` lists on average.
    """
    return min(n_lists, n_branches) * k


def compared(k: int, n_branches: int) -> float:
    """Comparisons of a row, about, at most: with the branches, and with the clusters of a list."""
    return n_branches + listed(k, n_branches) / n_branches if n_branches else float(k)


def branch_bytes(
    k: int,
    n_features: int,
    n_branches: int,
    batch_rows: int,
    width: int,
    n_lists: int = LISTS_PER_LEAF,
) -> int:
    """Bytes that the search takes beside the kernel, at most, in numbers of `width` bytes."""
    if not n_branches:
        return 0
    # The rows of a batch sorted by branch, and the centroids of a list, which may be all.
    searching = batch_rows * (n_features * width + 64) + k * n_features * width
    # Distances of a tile and its near pairs; the pairs so far, twice while the nearest are chosen.
    n_pairs = 2 * listed(k, n_branches, n_lists) + TILE_ELEMENTS
    finding = TILE_ELEMENTS * (4 * width + 32) + 3 * n_pairs * (width + 8)
    lists = 5 * 8 * listed(k, n_branches, n_lists) + n_branches * n_features * (3 * width + 16)
    return max(searching, finding) + lists
