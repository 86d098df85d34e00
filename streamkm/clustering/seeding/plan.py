"""The seeding plan: how many rows seeding works on, and which stages it takes.

The memory plan, the fit plan and the stages must agree on it. It depends on the shape
of the array and the settings alone: if the memory at hand decided the size of the
sample, it would decide the result. This module imports no torch, and of the package only
the plan of a tree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from streamkm.clustering.seeding.tree_plan import TreePlan, plan_tree

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

#: Rows of the sample: 16 for each cluster, but at least 16,384.
SAMPLE_ROWS_PER_CLUSTER, MIN_SAMPLE_ROWS = 16, 16384
#: ``auto`` wants at least 32,768 rows, or as many as fit 64 MiB as float32 if these are fewer.
AUTO_SAMPLE_ROWS, AUTO_SAMPLE_BYTES = 32768, 64 << 20
#: From this number of clusters on, ``auto`` grows a tree. It wants 64 rows a cluster, but at least
#: `AUTO_SAMPLE_ROWS`, and of these as many as fit 96 MiB, or 16 a cluster if these are more.
TREE_CLUSTERS, TREE_ROWS_PER_CLUSTER, TREE_SAMPLE_BYTES = 64, 64, 96 << 20
#: It may take 0.85 of the work of all epochs, but of 10 at most; or a second of one core if that is
#: more, since the passes of a fit by Lloyd's algorithm are only as good as what they begin with.
TREE_EPOCHS, TREE_PRODUCTS = 10, 10 << 33
#: Several seedings are compared by their costs on other rows, half as many as the sample has.
JUDGED_FRACTION = 2

#: k-means||: passes that draw candidates, and candidates of each pass for each cluster.
N_ROUNDS, CANDIDATES_PER_CLUSTER = 5, 2

#: Rows that one step of k-means++ in batches proposes, at most.
MAX_PROPOSED = 1024

#: Work is counted in products of two numbers; a core does about 1e11 a second. To compare a
#: row with a centroid takes one product for each feature, and the work of 64 for the score.
SCORE_PRODUCTS = 64
#: To compare the sample with a few candidates is bound by memory, not by arithmetic: each pair
#: of a row and a candidate takes as long as 7 products for each feature, and 480 more.
THIN_FACTOR, THIN_PRODUCTS = 7, 480
#: Candidates of one draw of the local search, and the cost of a draw beside that of its rows.
CANDIDATES, DRAW_PRODUCTS = 4, 20 << 20
#: A candidate is the mean of a row and the rows around it. These are half as many as a cluster
#: has on average (1 / CLUSTERS_AROUND); of more than 64, an even choice gives the mean as well.
CLUSTERS_AROUND, MOST_ROWS_AROUND = 2, 64
#: Greedy k-means++ does less for each pair than the local search. It is chosen if it takes at
#: most a third of the budget. Otherwise k-means++ goes in batches, which compare the sample
#: with a quarter more centroids than they accept.
GREEDY_PRODUCTS, GREEDY_SHARE, BATCHED_FACTOR = 100, 1 / 3, 1.25

#: The budget of seeding: 0.85 of the work of one epoch, but at least 4.3e10 products, which
#: take less than half a second of one core.
EPOCH_SHARE, FREE_PRODUCTS = 0.85, 5 << 33
#: ``auto`` prefers a sample small enough for k-means++ and 3 passes of Lloyd's algorithm.
LEAST_PASSES = 3
#: Passes are worth their time from 4 rows a cluster on; with fewer, centroids hardly move.
ROWS_WORTH_PASSES = 4
#: Passes at the end of the refinement, at most, and passes before each local search.
FINAL_PASSES, PASSES_BETWEEN = 30, 2
#: Local searches, at most; draws of each, at least 8 and at least one for every 16 clusters.
SEARCHES, MIN_DRAWS, CLUSTERS_PER_DRAW = 4, 8, 16
#: Draws of all searches, at most: 288, which repaired the worst seeds, or 2 a cluster if more.
MAX_DRAWS, MAX_DRAWS_PER_CLUSTER = 288, 2


@dataclass(frozen=True)
class Refinement:
    """The k-means++ on a sample, the stages that follow it, and the cost of both."""

    greedy: bool
    """Whether k-means++ is greedy; otherwise it goes in batches."""
    searches: int
    """Number of local searches; `PASSES_BETWEEN` passes of Lloyd's algorithm precede each."""
    draws: int
    """Draws of each local search."""
    final_passes: int
    """Passes of Lloyd's algorithm at the end, at most."""
    epochs: float
    """Work of one seeding, at most, in epochs of training."""


@dataclass(frozen=True)
class SeedingPlan:
    """The number of rows that seeding works on, and its stages."""

    sample_rows: int
    """Rows of the sample, drawn from all over the array."""
    judged_rows: int
    """Other rows, on which several seedings are compared; 0 to compare them on the sample."""
    candidate_rows: int = 0
    """Candidates that the rounds of k-means|| find, at most; 0 for other methods."""
    refinement: Refinement | None = None
    """None if the method has none, or if ``auto`` grows a tree or can afford neither."""
    tree: TreePlan | None = None
    """The tree that ``auto`` grows for many clusters."""

    def stages(self, init: str) -> list[str]:
        """Kinds of the stages of one seeding by the method `init`, in order."""
        refinement = self.refinement
        if self.tree is not None:
            return ["tree"]
        if refinement is None:
            return ["greedy" if init == "k-means++" else "random"]
        # Passes first: a centroid that is a single row carries the noise of that row. A search
        # would replace it by a mean for that reason alone, and one pass mends it at less cost.
        chosen = "greedy" if refinement.greedy else "batched"
        final = ["final passes"] if refinement.final_passes else []
        return [chosen, *["passes", "search"] * refinement.searches, *final]

    def epochs(self, k: int, n_init: int) -> float:
        """Work of `n_init` seedings, at most, in epochs of training with `k` centroids.

        Stages of a seeding without a refinement are not counted.
        """
        chosen = self.tree or self.refinement
        seedings = n_init * chosen.epochs if chosen is not None else 0.0
        # Each pass compares the rows with the candidates of the rounds before.
        found = [1 + i * CANDIDATES_PER_CLUSTER * k for i in range(N_ROUNDS + 1)]
        return seedings + (sum(found) / k if self.candidate_rows else 0.0)


def plan_seeding(
    n_rows: int, n_features: int, k: int, init: str, n_init: int, epochs: int = 1
) -> SeedingPlan:
    """The seeding plan for `k` clusters of an array of this shape, by the method `init`.

    `epochs` are those of training, at most.
    """
    sample_rows = min(n_rows, max(MIN_SAMPLE_ROWS, SAMPLE_ROWS_PER_CLUSTER * k))
    pass_per_row = k * (n_features + SCORE_PRODUCTS)
    budget = max(int(EPOCH_SHARE * n_rows * pass_per_row), FREE_PRODUCTS)
    if init == "auto":
        found = _tree(n_rows, n_features, k, epochs)
        if found is not None:
            sample_rows, tree = found
            return SeedingPlan(sample_rows, _judged(n_rows, sample_rows, n_init), tree=tree)
        ample = min(AUTO_SAMPLE_ROWS, AUTO_SAMPLE_BYTES // (4 * n_features))
        wanted = min(n_rows, max(ample, SAMPLE_ROWS_PER_CLUSTER * k))
        # First a sample with enough rows a cluster for passes of Lloyd's algorithm. If that takes
        # too long, a sample for k-means++ alone; if that does too, random rows.
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
    """Rows to compare seedings on; 0 if the sample is the array and so gives exact costs."""
    return min(n_rows - sample_rows, sample_rows // JUDGED_FRACTION) if n_init > 1 else 0


def _tree(n_rows: int, n_features: int, k: int, epochs: int) -> tuple[int, TreePlan] | None:
    """Rows of the sample and the tree on it; None for few clusters, or clusters of few rows."""
    if k < TREE_CLUSTERS:
        return None
    most = min(
        n_rows,
        max(AUTO_SAMPLE_ROWS, TREE_ROWS_PER_CLUSTER * k),
        max(TREE_SAMPLE_BYTES // (4 * n_features), SAMPLE_ROWS_PER_CLUSTER * k),
    )
    pair = n_features + SCORE_PRODUCTS
    epoch = n_rows * k * pair
    budget = max(int(EPOCH_SHARE * epoch * min(epochs, TREE_EPOCHS)), TREE_PRODUCTS)
    # A second exchange is worth more than rows beyond 32 a cluster; of fewer rows, a row is.
    for least_rows, wanted in ((TREE_ROWS_PER_CLUSTER // 2, (2,)), (ROWS_WORTH_PASSES, (1, 0))):
        rows = most
        while rows >= least_rows * k:
            for exchanges in wanted:
                tree = plan_tree(
                    rows, n_features, k,
                    exchanges=exchanges, budget=budget, epoch=epoch, pair=pair,
                )  # fmt: skip
                if tree is not None:
                    return rows, tree
            rows = rows * 3 // 4
    return None


def _refinement(rows: int, n_features: int, k: int, n_rows: int, budget: int) -> Refinement:
    """The refinement on `rows` rows within `budget`, in products."""
    one_pass = rows * k * (n_features + SCORE_PRODUCTS)
    pairs = rows * (CANDIDATES + 1) + rows // around_step(rows, k) * CANDIDATES
    one_draw = DRAW_PRODUCTS + pairs * (THIN_FACTOR * n_features + THIN_PRODUCTS)
    pair = THIN_FACTOR * n_features + GREEDY_PRODUCTS
    plus_plus = rows * k * greedy_trials(k) * pair
    greedy = plus_plus <= GREEDY_SHARE * budget
    if not greedy:
        plus_plus = int(BATCHED_FACTOR * one_pass)
    # The first passes gain most. Beyond them, passes get a third of what k-means++ leaves, and
    # draws the rest. A search begins by comparing every row with all centroids: one more pass.
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
    """Number of rows around another that are averaged with it, of the rows looked at."""
    return min(max(_all_around(rows, k), 1), MOST_ROWS_AROUND)


def around_step(rows: int, k: int) -> int:
    """Step between the rows looked at, so that `rows_around` of them represent all around."""
    return max(_all_around(rows, k) // MOST_ROWS_AROUND, 1)


def _all_around(rows: int, k: int) -> int:
    return rows // (CLUSTERS_AROUND * k)


def greedy_epochs(sample_rows: int, n_features: int, k: int, n_rows: int) -> float:
    """Work of greedy k-means++ on a sample, in epochs of training on `n_rows` rows."""
    work = sample_rows * greedy_trials(k) * (THIN_FACTOR * n_features + GREEDY_PRODUCTS)
    return work / (n_rows * (n_features + SCORE_PRODUCTS))


def greedy_trials(k: int) -> int:
    """Rows that greedy k-means++ draws for each of `k` centroids."""
    return 2 + int(math.log(k))
