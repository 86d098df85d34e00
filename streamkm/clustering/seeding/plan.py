"""Sizes that both the memory plan and the arithmetic must agree on; imports nothing.

All of them are functions of the array's shape and of the settings alone: were the
sample sized by the memory at hand, so would be the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = [
    "CANDIDATES",
    "CANDIDATES_PER_CLUSTER",
    "MAX_PROPOSED",
    "N_ROUNDS",
    "PASSES_BETWEEN",
    "SCORE_PRODUCTS",
    "Refinement",
    "SeedingPlan",
    "around_step",
    "greedy_epochs",
    "greedy_trials",
    "plan_seeding",
    "rows_around",
]

#: Rows of the sample that seeding works on: per cluster, and at least.
SAMPLE_ROWS_PER_CLUSTER, MIN_SAMPLE_ROWS = 16, 16384
#: ``auto`` takes more where that is little, as float32.
AUTO_SAMPLE_ROWS, AUTO_SAMPLE_BYTES = 32768, 64 << 20
#: Of several seedings the best is the one that costs least on another sample, smaller by this.
JUDGED_FRACTION = 2

#: k-means||: passes that draw candidates, and candidates of each per cluster.
N_ROUNDS, CANDIDATES_PER_CLUSTER = 5, 2

#: Rows that one round of k-means++ in batches proposes, at most.
MAX_PROPOSED = 1024

#: Work is counted in products of two numbers, about 1e11 a second on a core. Comparing
#: a row with a centroid costs one for each feature, and so many for the score itself.
SCORE_PRODUCTS = 64
#: A few candidates against the sample are bound by memory, not by arithmetic: so many
#: products for each feature, and for each pair.
THIN_FACTOR, THIN_PRODUCTS = 7, 480
#: Candidates of one draw of the local search, and what a draw costs beside its rows.
CANDIDATES, DRAW_PRODUCTS = 4, 20 << 20
#: What a draw offers is the mean of a row and those around it: one in so many of what a cluster
#: has on average, of which so many tell the mean well enough.
CLUSTERS_AROUND, MOST_ROWS_AROUND = 2, 64
#: Greedy k-means++ has less to do for each pair. It is chosen if it takes no more than this
#: share of the budget; else k-means++ in batches, which compares with a quarter more centroids
#: than it accepts.
GREEDY_PRODUCTS, GREEDY_SHARE, BATCHED_FACTOR = 100, 1 / 3, 1.25

#: Seeding may cost this share of one epoch's work, and so much in any case: less than
#: half a second of one core.
EPOCH_SHARE, FREE_PRODUCTS = 0.85, 5 << 33
#: The sample is small enough for k-means++ and so many passes of Lloyd's algorithm.
LEAST_PASSES = 3
#: So many rows a cluster are worth passes; those of fewer leave the centroids where they are.
ROWS_WORTH_PASSES = 4
#: Passes that end the refinement, at most, and those before each local search.
FINAL_PASSES, PASSES_BETWEEN = 30, 2
#: Local searches, at most, and draws of one of them, at least: so many, and a share of k.
SEARCHES, MIN_DRAWS, CLUSTERS_PER_DRAW = 4, 8, 16
#: Draws of all of them, at most: as many as repaired the worst seeds, or some a cluster.
MAX_DRAWS, MAX_DRAWS_PER_CLUSTER = 288, 2


@dataclass(frozen=True)
class Refinement:
    """What follows k-means++ on a sample, and what all of it costs."""

    greedy: bool
    """Whether k-means++ is greedy, or goes in batches."""
    searches: int
    """How often a few passes of Lloyd's algorithm are followed by a local search."""
    draws: int
    """Draws of each local search."""
    final_passes: int
    """Passes of Lloyd's algorithm at the end, at most."""
    epochs: float
    """Work of k-means++ and all this, at most, in epochs of training."""


@dataclass(frozen=True)
class SeedingPlan:
    """On how many rows a way of seeding works, and what it does there."""

    sample_rows: int
    """Rows drawn from all over the array."""
    judged_rows: int
    """Rows drawn beside them, which several seedings are compared on; 0 to use the sample."""
    candidate_rows: int = 0
    """Rows, at most, that the rounds of k-means|| find in the whole array; 0 without them."""
    refinement: Refinement | None = None
    """None where it is not asked for, or not affordable: ``auto`` then takes random rows."""

    def stages(self, init: str) -> list[str]:
        """The kinds of the stages of one seeding by the method `init`, in order."""
        refinement = self.refinement
        if refinement is None:
            return ["greedy" if init == "k-means++" else "random"]
        # Passes first: beside centroids that are single rows the means that a search offers would
        # look better by the noise alone that a pass takes away.
        chosen = "greedy" if refinement.greedy else "batched"
        final = ["final passes"] if refinement.final_passes else []
        return [chosen, *["passes", "search"] * refinement.searches, *final]

    def epochs(self, k: int, n_init: int) -> float:
        """Work of all of it, at most, in epochs of training with `k` centroids."""
        seedings = n_init * self.refinement.epochs if self.refinement is not None else 0.0
        # Each pass compares with the candidates of the rounds before.
        found = [1 + i * CANDIDATES_PER_CLUSTER * k for i in range(N_ROUNDS + 1)]
        return seedings + (sum(found) / k if self.candidate_rows else 0.0)


def plan_seeding(n_rows: int, n_features: int, k: int, init: str, n_init: int) -> SeedingPlan:
    """How to seed `k` clusters of an array of the given shape by the method `init`."""
    sample_rows = min(n_rows, max(MIN_SAMPLE_ROWS, SAMPLE_ROWS_PER_CLUSTER * k))
    pass_per_row = k * (n_features + SCORE_PRODUCTS)
    budget = max(int(EPOCH_SHARE * n_rows * pass_per_row), FREE_PRODUCTS)
    if init == "auto":
        ample = min(AUTO_SAMPLE_ROWS, AUTO_SAMPLE_BYTES // (4 * n_features))
        wanted = min(n_rows, max(ample, SAMPLE_ROWS_PER_CLUSTER * k))
        # Where a sample that is worth Lloyd's algorithm (rows for every cluster) takes too long,
        # one that k-means++ alone can choose from, and at the least random rows.
        for passes in (LEAST_PASSES, 0):
            affordable = int(budget / ((BATCHED_FACTOR + passes) * pass_per_row))
            enough = ROWS_WORTH_PASSES * k if passes else k + 1
            if affordable < min(enough, n_rows):
                continue
            sample_rows = min(wanted, affordable)
            refinement = _refinement(sample_rows, n_features, k, n_rows, budget)
            return SeedingPlan(
                sample_rows, _judged(n_rows, sample_rows, n_init), refinement=refinement
            )
    judged_rows = _judged(n_rows, sample_rows, n_init)
    if init != "k-means||":
        return SeedingPlan(sample_rows, judged_rows)
    candidates = 1 + N_ROUNDS * CANDIDATES_PER_CLUSTER * k
    refinement = _refinement(candidates, n_features, k, n_rows, budget)
    return SeedingPlan(sample_rows, judged_rows, candidates, refinement)


def _judged(n_rows: int, sample_rows: int, n_init: int) -> int:
    """Rows beside the sample; none where the sample is the array, on which costs are exact."""
    return min(n_rows - sample_rows, sample_rows // JUDGED_FRACTION) if n_init > 1 else 0


def _refinement(rows: int, n_features: int, k: int, n_rows: int, budget: int) -> Refinement:
    """Searches, draws and passes on so many rows that cost no more than the budget."""
    one_pass = rows * k * (n_features + SCORE_PRODUCTS)
    pairs = rows * (CANDIDATES + 1) + rows // around_step(rows, k) * CANDIDATES
    one_draw = DRAW_PRODUCTS + pairs * (THIN_FACTOR * n_features + THIN_PRODUCTS)
    pair = THIN_FACTOR * n_features + GREEDY_PRODUCTS
    plus_plus = rows * k * greedy_trials(k) * pair
    greedy = plus_plus <= GREEDY_SHARE * budget
    if not greedy:
        plus_plus = int(BATCHED_FACTOR * one_pass)
    # The first few passes do most; of more, a third of what k-means++ leaves, and the rest is
    # for draws. A search begins by comparing every row with all centroids: a pass by itself.
    left, between = max(budget - plus_plus, 0), PASSES_BETWEEN + 1
    passes = max(min(left // one_pass, LEAST_PASSES), left // (3 * one_pass))
    passes = min(passes, SEARCHES * between + FINAL_PASSES)
    draws = min((left - passes * one_pass) // one_draw, max(MAX_DRAWS, MAX_DRAWS_PER_CLUSTER * k))
    # A few draws among many clusters change nothing.
    searches = 0
    if k > 1 and passes > 0:
        searches = min(
            draws * CLUSTERS_PER_DRAW // k, draws // MIN_DRAWS, (passes - 1) // between, SEARCHES
        )
    draws = draws // searches if searches else 0
    final_passes = min(passes - searches * between, FINAL_PASSES)
    work = plus_plus + searches * draws * one_draw + (searches * between + final_passes) * one_pass
    epochs = work / (n_rows * k * (n_features + SCORE_PRODUCTS))
    return Refinement(greedy, searches, draws, final_passes, epochs)


def rows_around(rows: int, k: int) -> int:
    """How many of the rows around another its mean is taken with."""
    return min(max(_all_around(rows, k), 1), MOST_ROWS_AROUND)


def around_step(rows: int, k: int) -> int:
    """Every how many-th row is looked at, to find as many."""
    return max(_all_around(rows, k) // MOST_ROWS_AROUND, 1)


def _all_around(rows: int, k: int) -> int:
    return rows // (CLUSTERS_AROUND * k)


def greedy_epochs(sample_rows: int, n_features: int, k: int, n_rows: int) -> float:
    """Work of greedy k-means++ on a sample, in epochs of training on `n_rows`."""
    work = sample_rows * greedy_trials(k) * (THIN_FACTOR * n_features + GREEDY_PRODUCTS)
    return work / (n_rows * (n_features + SCORE_PRODUCTS))


def greedy_trials(k: int) -> int:
    """Rows that greedy k-means++ draws for each of `k` centroids."""
    return 2 + int(math.log(k))
