"""The seeding plan: how many rows seeding works on, and which stages it takes.

The memory plan, the fit plan and the stages must agree on it. It depends on the shape
of the array and the settings alone: if the memory at hand decided the size of the
sample, it would decide the result. This module imports no torch, and of the package only
the plan of a tree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from streamkm.clustering.seeding.tree_plan import TreePlan, plan_tree

__all__ = [
    "CANDIDATES_PER_CLUSTER",
    "FIRST_PASSES",
    "MAX_PROPOSED",
    "N_ROUNDS",
    "PASSES_IN",
    "PASSES_OUT",
    "SCORE_PRODUCTS",
    "Refinement",
    "SeedingPlan",
    "around_step",
    "breath_size",
    "greedy_epochs",
    "greedy_trials",
    "plan_seeding",
    "rows_around",
]

#: Rows of the sample: 16 for each cluster, but at least 16,384.
SAMPLE_ROWS_PER_CLUSTER, MIN_SAMPLE_ROWS = 16, 16384
#: ``auto`` wants at least 32,768 rows, or as many as fit 64 MiB as float32 if these are fewer.
AUTO_SAMPLE_ROWS, AUTO_SAMPLE_BYTES = 32768, 64 << 20
#: From 64 clusters on ``auto`` grows a tree: from about 50 on it is the better. It wants 64 rows a
#: cluster, but at least `AUTO_SAMPLE_ROWS`. It takes as many of these as fit 96 MiB, or 16 a
#: cluster if that is more.
TREE_CLUSTERS, TREE_ROWS_PER_CLUSTER, TREE_SAMPLE_BYTES = 64, 64, 96 << 20
#: A tree may take 0.85 of the work of all epochs, of 10 at most. Where these are short it may take
#: more, up to a second of one core: Lloyd's algorithm ends only as low as its beginning allows.
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
#: of a row and a candidate takes as long as 7 products for each feature and `GREEDY_PRODUCTS` more.
THIN_FACTOR = 7
#: What a centroid of k-means++ and a pass cost on the host beside their arithmetic, as measured.
CENTROID_PRODUCTS, PASS_PRODUCTS = 10 << 20, 10 << 20
#: A breath adds one centroid for every ten, at least one, and makes 2 passes. Then it removes as
#: many and makes 2 more.
BREATH_SHARE, PASSES_IN, PASSES_OUT = 1 / 10, 2, 2
#: A centroid is added in the mean of a row and the rows around it: half as many rows as a cluster
#: has on average (1 / CLUSTERS_AROUND). Of more than 64, every n-th gives the mean as well. To find
#: them takes as long as comparing a cluster's rows with `AROUND_PAIRS` centroids.
CLUSTERS_AROUND, MOST_ROWS_AROUND, AROUND_PAIRS = 2, 64, 8
#: Greedy k-means++ is chosen if it takes at most a third of the budget. Otherwise k-means++ goes
#: in batches, which compare the sample with a quarter more centroids than they accept.
GREEDY_PRODUCTS, GREEDY_SHARE, BATCHED_FACTOR = 100, 1 / 3, 1.25

#: The budget of seeding: 0.85 of the work of one epoch, but at least that of ten starts of greedy
#: k-means++ and 20 passes each, and what 60 passes cost on the host; of that up to 4.3e10 products,
#: less than half a second of one core.
EPOCH_SHARE, FREE_PRODUCTS = 0.85, 5 << 33
FREE_STARTS, FREE_PASSES, FREE_STEPS = 10, 20, 60
#: ``auto`` prefers a sample small enough for k-means++ and 3 passes of Lloyd's algorithm.
LEAST_PASSES = 3
#: Passes are worth their time from 4 rows a cluster on; with fewer, centroids hardly move.
ROWS_WORTH_PASSES = 4
#: Passes before the first breath, and at the end, at most; of the passes that are affordable an
#: eighth are kept for the end.
FIRST_PASSES, FINAL_PASSES, FINAL_SHARE = 2, 30, 8
#: Breaths, at most; a seeding ends before if `breathing.PATIENCE` in a row were not kept, or fewer
#: where groups lie far apart.
MAX_BREATHS = 400


@dataclass(frozen=True)
class Refinement:
    """The k-means++ on a sample, the stages that follow it, and the cost of both."""

    greedy: bool
    """Whether k-means++ is greedy; otherwise it goes in batches."""
    breaths: int
    """Breaths, at most; `FIRST_PASSES` passes of Lloyd's algorithm precede them."""
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
        # Passes first: where centroids are single rows, each would seem worth a new one beside it.
        chosen = "greedy" if refinement.greedy else "batched"
        breathing = ["passes", "breathing"] if refinement.breaths else []
        final = ["final passes"] if refinement.final_passes else []
        return [chosen, *breathing, *final]

    def epochs(self, k: int, n_init: int) -> float:
        """Work of `n_init` seedings, at most, in epochs of training with `k` centroids.

        Stages of a seeding without a refinement are not counted.
        """
        chosen = self.tree or self.refinement
        seedings = n_init * chosen.epochs if chosen is not None else 0.0
        # Each pass compares the rows with the candidates of the rounds before.
        found = [1 + i * CANDIDATES_PER_CLUSTER * k for i in range(N_ROUNDS + 1)]
        return seedings + (sum(found) / k if self.candidate_rows else 0.0)


@lru_cache(maxsize=16)
def plan_seeding(
    n_rows: int, n_features: int, k: int, init: str, n_init: int, epochs: int = 1
) -> SeedingPlan:
    """The seeding plan for `k` clusters of an array of this shape, by the method `init`.

    `epochs` are those of training, at most.
    """
    sample_rows = min(n_rows, max(MIN_SAMPLE_ROWS, SAMPLE_ROWS_PER_CLUSTER * k))
    pass_per_row = k * (n_features + SCORE_PRODUCTS)
    budget = max(
        int(EPOCH_SHARE * n_rows * pass_per_row), _free(n_rows, n_features, k, FREE_PRODUCTS)
    )
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
    """Rows of the sample and the tree on it; None for few clusters, or if no tree is affordable."""
    if k < TREE_CLUSTERS:
        return None
    most = min(
        n_rows,
        max(AUTO_SAMPLE_ROWS, TREE_ROWS_PER_CLUSTER * k),
        max(TREE_SAMPLE_BYTES // (4 * n_features), SAMPLE_ROWS_PER_CLUSTER * k),
    )
    pair = n_features + SCORE_PRODUCTS
    epoch = n_rows * k * pair
    free = _free(n_rows, n_features, k, TREE_PRODUCTS)
    budget = max(int(EPOCH_SHARE * epoch * min(epochs, TREE_EPOCHS)), free)
    # Beyond 32 rows a cluster a second exchange is worth more than further rows. Below, rows are.
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


def _free(n_rows: int, n_features: int, k: int, most: int) -> int:
    """Products that seeding may take however short epochs are, `most` at most."""
    start = _greedy(n_rows, n_features, k) + FREE_PASSES * n_rows * k * (
        n_features + SCORE_PRODUCTS
    )
    return min(FREE_STARTS * start + FREE_STEPS * PASS_PRODUCTS, most)


def _greedy(rows: int, n_features: int, k: int) -> int:
    return rows * k * greedy_trials(k) * (THIN_FACTOR * n_features + GREEDY_PRODUCTS)


def _refinement(rows: int, n_features: int, k: int, n_rows: int, budget: int) -> Refinement:
    """The refinement on `rows` rows within `budget`, in products."""
    arithmetic = rows * k * (n_features + SCORE_PRODUCTS)
    one_pass = arithmetic + PASS_PRODUCTS
    plus_plus = _greedy(rows, n_features, k) + k * CENTROID_PRODUCTS
    greedy = plus_plus <= GREEDY_SHARE * budget
    if not greedy:
        plus_plus = int(BATCHED_FACTOR * arithmetic)
    passes = max(budget - plus_plus, 0) // one_pass
    added = breath_size(k)
    one_breath = (PASSES_IN + PASSES_OUT) * one_pass + added * CENTROID_PRODUCTS
    one_breath += (PASSES_IN * k + AROUND_PAIRS) * added * arithmetic // k**2
    # Breathing begins by comparing every row with all centroids: one more pass.
    final_passes = passes // FINAL_SHARE
    left = passes - final_passes - FIRST_PASSES - 1
    breaths = min(max(left, 0) * one_pass // one_breath, MAX_BREATHS) if k > 1 else 0
    before = FIRST_PASSES + 1 if breaths else 0
    final_passes = min(passes - before - -(-breaths * one_breath // one_pass), FINAL_PASSES)
    work = plus_plus + breaths * one_breath + (before + final_passes) * one_pass
    epochs = work / (n_rows * k * (n_features + SCORE_PRODUCTS))
    return Refinement(greedy, breaths, final_passes, epochs)


def breath_size(k: int) -> int:
    """Centroids that the first breath adds to `k` and removes again."""
    return max(int(BREATH_SHARE * k), 1)


def rows_around(rows: int, k: int) -> int:
    """Number of rows that are averaged with the one they lie around, of every `around_step`-th."""
    return min(max(_all_around(rows, k), 1), MOST_ROWS_AROUND)


def around_step(rows: int, k: int) -> int:
    """Step between the rows of a cluster among which those around another are sought."""
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
