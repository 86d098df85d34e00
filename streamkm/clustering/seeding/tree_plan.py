"""The plan of a tree of clusters: its levels, its rounds, and what they cost.

It depends on the shape of the sample alone, as all of the seeding plan does. This module imports
neither torch nor other modules of the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

__all__ = ["HALF_LIFE", "POOL", "ROWS_PER_CHILD", "TreePlan", "plan_tree"]

#: Clusters of the first level, at most; and clusters that one cluster is divided into on average:
#: a quarter of the square root of all, but at least 16. Fewer would make many small products of
#: matrices, more would compare rows with clusters that lie far off.
FIRST_LEVEL, MIN_CHILDREN, CHILDREN_SHARE = 24, 16, 1 / 4
#: Clusters that each row is compared with: 8 times the square root of all, or 4 times if that takes
#: too long, but at least 64.
MIN_NEAR, NEAR_SHARES = 64, (8, 4)
#: Rows of a cluster that k-means++ divides it by, for each of its children.
ROWS_PER_CHILD = 256
#: A row counts half after 8 more rows of its cluster. A batch brings each cluster 10 rows, if the
#: sample holds as many; above the last level a pass has 4 batches at most.
HALF_LIFE, BATCH_ROWS_PER_CLUSTER, MAX_BATCHES, MAX_BATCHES_ABOVE = 8, 10, 16, 4
#: Exchanges at the last level, at most: with more, little is gained.
MAX_EXCHANGES = 8

#: Work in products of two numbers (see `plan`), as measured: of a call of a kernel, for itself and
#: for each number of the centroids it copies; of reading a row, for each feature; of a step of
#: k-means++; and of comparing a row with a candidate of k-means++, in comparisons in a kernel.
CALL_PRODUCTS, COPY_PRODUCTS, READ_PRODUCTS = 4 << 20, 40, 70
STEP_PRODUCTS, THIN_PAIRS = 8 << 20, 2
#: Readings of all rows by one pass and, more, by one exchange.
PASS_READS, EXCHANGE_READS = 2, 5
#: Clusters whose distances to those of a branch are found, for each near one.
POOL = 8


@dataclass(frozen=True)
class TreePlan:
    """Levels of a tree, and the exchanges at its last level."""

    levels: tuple[int, ...]
    """Clusters of each level; the last is k."""
    near: tuple[int, ...]
    """Clusters that each row is compared with, at each level."""
    batches: tuple[int, ...]
    """Batches of a pass, at each level."""
    exchanges: int
    """Exchanges at the last level."""
    epochs: float
    """Work of all steps, at most, in epochs of training."""

    def steps(self) -> list[tuple[int, str]]:
        """The steps in order: the level of each, and its kind.

        The kinds are ``divide`` (each cluster of the level above), ``forget`` (a pass with a short
        memory), ``exchange`` (such a pass, after which clusters that cost much are halved in the
        places of others that save little) and ``mean`` (a pass of Lloyd's algorithm).
        """
        steps, last = [], len(self.levels) - 1
        for level in range(last + 1):
            exchanges = ["exchange"] * self.exchanges if level == last else []
            steps += [(level, kind) for kind in ("divide", "forget", *exchanges, "mean")]
        return steps


def plan_tree(
    rows: int, n_features: int, k: int, *, exchanges: int, budget: int, epoch: int, pair: int
) -> TreePlan | None:
    """The tree with `exchanges` or more that makes the most of `budget` products, if any.

    `epoch` are the products of an epoch of training, `pair` those of comparing a row with a
    centroid.
    """
    for near_share in NEAR_SHARES:
        work, exchange, tree = _tree(rows, n_features, k, near_share, pair)
        most = min(int((budget - work) / exchange), MAX_EXCHANGES)
        if work <= budget and most >= exchanges:
            return replace(tree, exchanges=most, epochs=(work + most * exchange) / epoch)
    return None


def _tree(
    rows: int, n_features: int, k: int, near_share: int, pair: int
) -> tuple[float, float, TreePlan]:
    """A tree without exchanges, and the work of it and of each exchange, in products."""
    levels = [k]
    while levels[0] > FIRST_LEVEL:
        levels.insert(0, -(-levels[0] // _children(levels[0])))
    near = [min(n, max(MIN_NEAR, int(near_share * math.sqrt(n)))) for n in levels]
    most = [*[MAX_BATCHES_ABOVE] * (len(levels) - 1), MAX_BATCHES]
    batches = [
        min(max(rows // (BATCH_ROWS_PER_CLUSTER * n), 1), limit)
        for n, limit in zip(levels, most, strict=True)
    ]
    work, one_pass, above, read = 0.0, 0.0, 1, rows * n_features * READ_PRODUCTS
    for n, n_near, n_batches in zip(levels, near, batches, strict=True):
        children = n / above
        candidates = children * (2 + int(math.log(max(children, 1))))
        work += min(rows, ROWS_PER_CHILD * n) * candidates * THIN_PAIRS * pair + n * STEP_PRODUCTS
        call = CALL_PRODUCTS + COPY_PRODUCTS * n_near * n_features
        one_pass = (rows * n_near + n * min(POOL * n_near, n)) * pair + PASS_READS * read
        one_pass += (n_batches + 1) * above * call
        work += 2 * one_pass
        above = n
    exchange = one_pass + EXCHANGE_READS * read
    tree = TreePlan(tuple(levels), tuple(near), tuple(batches), exchanges=0, epochs=0.0)
    return work, exchange, tree


def _children(n: int) -> int:
    """Clusters that each cluster of the level above `n` is divided into, on average."""
    return max(MIN_CHILDREN, int(CHILDREN_SHARE * math.sqrt(n)))
