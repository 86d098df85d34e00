"""Rows of a batch, and branches of a tree, where the user names none."""

from __future__ import annotations

import math

__all__ = [
    "MAX_BATCH_BYTES",
    "MAX_BATCH_ROWS",
    "MIN_BATCH_ROWS",
    "default_batch_rows",
    "default_branches",
    "largest_batch_rows",
]

#: Rows of a batch at most: few enough that a batch stays in cache.
MAX_BATCH_ROWS = 16384
#: Rows of a batch at least, unless the array is small: enough that a step's fixed costs vanish.
MIN_BATCH_ROWS = 1024
#: Steps of an epoch, about, between these two bounds.
STEPS_PER_EPOCH = 64
#: Rows of a batch for each branch of a tree: each branch is a call of the kernel. An epoch has 32
#: steps all the same; with 16 the inertia ends up to 0.3 % higher.
ROWS_PER_BRANCH, STEPS_OF_TREE = 256, 32
#: Bytes of a batch widened to float32, at most, whatever the number of features.
MAX_BATCH_BYTES = 64 << 20
#: Rows of a batch at most where only speed depends on them, of few features, and bytes of such a
#: batch widened to float32: what a batch takes beside its arithmetic is a fifth of 200,000 x 16.
MOST_SHORT_ROWS, SHORT_ROWS_BYTES = 65536, 8 << 20


def default_batch_rows(n_rows: int, n_features: int, n_branches: int = 0) -> int:
    """Rows of a batch where the user names none: about `STEPS_PER_EPOCH` steps an epoch."""
    of_branches = min(ROWS_PER_BRANCH * n_branches, n_rows // STEPS_OF_TREE)
    wanted = min(max(n_rows // STEPS_PER_EPOCH, MIN_BATCH_ROWS), MAX_BATCH_ROWS)
    return min(max(wanted, of_branches), largest_batch_rows(n_rows, n_features, n_branches))


def largest_batch_rows(n_rows: int, n_features: int, n_branches: int = 0) -> int:
    """Rows of a batch where only speed depends on them."""
    short = min(SHORT_ROWS_BYTES // (4 * n_features), MOST_SHORT_ROWS)
    fitting = MAX_BATCH_BYTES // (4 * n_features)
    wanted = max(short, MAX_BATCH_ROWS, ROWS_PER_BRANCH * n_branches)
    return min(max(min(wanted, fitting), 1), n_rows)


def default_branches(k: int) -> int:
    """Branches over `k` clusters where the user names none: their lists are about as long."""
    return min(round(2 * math.sqrt(k)), k)
