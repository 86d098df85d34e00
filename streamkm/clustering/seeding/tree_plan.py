"""The plan of a tree of clusters: its levels, its exchanges, and what they cost.

Like the rest of the seeding plan it depends on shapes and settings alone. This module imports
neither torch nor other modules of the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

__all__ = ["HALF_LIFE", "POOL", "ROWS_PER_CHILD", "TreePlan", "deal", "plan_tree"]

#: Clusters of the first level, at most; and clusters that one cluster is divided into, on average:
#: a quarter of the square root of all clusters of the level, but at least 16. Fewer would make many
#: small products of matrices. More would compare rows with clusters that lie far off.
FIRST_LEVEL, MIN_CHILDREN, CHILDREN_SHARE = 24, 16, 1 / 4
#: Clusters that each row is compared with: 8 times the square root of all, or 4 times if that takes
#: too long, but at least 64. More than 256 leave seeds as they are (bench/LOG.md).
MIN_NEAR, MAX_NEAR, NEAR_SHARES = 64, 256, (8, 4)
#: Rows of a cluster that k-means++ divides it by, for each of its children.
ROWS_PER_CHILD = 256
#: A row counts half after 8 more rows of its cluster. A batch brings each cluster 10 rows, if the
#: sample holds as many; above the last level a pass has 4 batches at most.
HALF_LIFE, BATCH_ROWS_PER_CLUSTER, MAX_BATCHES, MAX_BATCHES_ABOVE = 8, 10, 16, 4
#: Exchanges at the last level, at most: with more, little is gained.
MAX_EXCHANGES = 8

#: Work in products of two numbers (see `plan`), as measured: a call of a kernel, and in it each
#: number of the centroids that it copies; reading one feature of one row; and a step of k-means++.
#: Comparing a row with a candidate of k-means++ takes as long as 2 comparisons in a kernel.
CALL_PRODUCTS, COPY_PRODUCTS, READ_PRODUCTS = 4 << 20, 40, 70
STEP_PRODUCTS, THIN_PAIRS = 8 << 20, 2
#: How often a pass reads all rows, and how often an exchange reads them on top of its pass.
PASS_READS, EXCHANGE_READS = 2, 5
#: The near clusters of a branch are chosen among 4 times as many.
POOL = 4


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
    """Work of all steps in epochs of training, at most."""

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
    """The widest tree with at least `exchanges` that `budget` products pay for; None if none is.

    Wide is how many clusters a row is compared with. `epoch` is the work of an epoch of training,
    `pair` that of comparing a row with a centroid, both in products.
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
    """The work of a tree without exchanges, that of one exchange, both in products; the tree."""
    levels = [k]
    while levels[0] > FIRST_LEVEL:
        levels.insert(0, -(-levels[0] // _children(levels[0])))
    near = [min(n, max(MIN_NEAR, min(int(near_share * math.sqrt(n)), MAX_NEAR))) for n in levels]
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
    # Both halves of each cluster are compared with the clusters near it.
    exchange = one_pass + EXCHANGE_READS * read + 2 * k * near[-1] * pair
    tree = TreePlan(tuple(levels), tuple(near), tuple(batches), exchanges=0, epochs=0.0)
    return work, exchange, tree


def _children(n: int) -> int:
    """Clusters that each cluster of the level above `n` is divided into, on average."""
    return max(MIN_CHILDREN, int(CHILDREN_SHARE * math.sqrt(n)))


def deal(costs: list[float], rows: list[int], k: int, n_features: int) -> list[int]:
    """Deal `k` children to clusters by their costs: at least 1 and at most their rows.

    Children are dealt in proportion to ``cost^(D / (D + 2))``, which ends lowest where the density
    within each cluster is even (Zador 1982; Gersho 1979), and rounded by largest remainders. A
    cluster without rows gets none.
    """
    power = n_features / (n_features + 2)
    shares = [cost**power if cost > 0 else 0.0 for cost in costs]
    total = sum(shares) or 1.0
    quotas = [k * share / total for share in shares]
    dealt = [min(max(int(quota), 1), n) for quota, n in zip(quotas, rows, strict=True)]
    while (lacking := k - sum(dealt)) != 0:
        # A round gives or takes one from each, those furthest from their quota first.
        sign = 1 if lacking > 0 else -1
        open_ = [i for i, n in enumerate(dealt) if (n < rows[i] if sign > 0 else n > 1)]
        open_.sort(key=lambda i: (sign * (dealt[i] - quotas[i]), i))
        for i in open_[: abs(lacking)]:
            dealt[i] += sign
    return dealt
