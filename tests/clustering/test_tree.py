"""Mini-batches that compare each row with the clusters of one branch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from streamkm.clustering.algorithm import closing_algorithm, make_algorithm
from streamkm.clustering.state import KMeansState, initial_state
from streamkm.config import FitConfig
from streamkm.kernels.reference import ReferenceKernel
from tests.clustering.contract import AlgorithmContract
from tests.clustering.streams import CPU, batch_of, bits, cut, inertia_of, run_epoch


class TestTree(AlgorithmContract):
    name = "tree"
    on_gpus = False
    remembers_all = False


class TestRememberingTree(AlgorithmContract):
    name = "tree"
    on_gpus = False

    @pytest.fixture
    def settings(self) -> dict[str, Any]:
        return {"rate": "mean", "branching": "1"}


def rows_on_three_scales(rng: np.random.Generator, n_rows: int) -> np.ndarray:
    """Rows in 216 groups, in 36 groups of groups, in 6 groups of those."""
    places = np.zeros((1, 8))
    for spread in (30.0, 8.0, 2.0):
        places = (places[:, None] + spread * rng.normal(size=(len(places), 6, 8))).reshape(-1, 8)
    drawn: np.ndarray = places[rng.integers(len(places), size=n_rows)]
    return drawn + 0.5 * rng.normal(size=(n_rows, 8))


def trained(rows: np.ndarray, start_KD: np.ndarray, size: int, **settings: Any) -> KMeansState:
    """A run of one epoch and one closing pass."""
    k = len(start_KD)
    config = FitConfig(k=k, batch_rows=size, **settings).resolved(*rows.shape)
    state = initial_state(torch.tensor(start_KD), 0.0, n_branches=config.n_branches)
    kernel = ReferenceKernel(size, k, torch.float64, CPU)
    batches = cut(rows, size)
    run_epoch(make_algorithm(kernel, config, len(rows)), state, batches, 0)
    run_epoch(closing_algorithm(kernel, config), state, batches, 1)
    return state


# Breaks when lists are so short, or so old, that rows end in clusters that they are far from.
@pytest.mark.parametrize(("structured", "most"), [(True, 1.001), (False, 1.01)])
def test_inertia_is_near_that_of_flat_mini_batches(rng, structured, most) -> None:
    rows = rows_on_three_scales(rng, 8000) if structured else rng.normal(size=(8000, 8))
    rows = rng.permutation(rows)
    flat, tree = (trained(rows, rows[:400], 500, algorithm=name) for name in ("minibatch", "tree"))
    assert inertia_of(rows, tree) <= most * inertia_of(rows, flat)
    # What the run reports is of the clusters that the search found: an upper bound.
    assert inertia_of(rows, tree) <= float(tree.settled_inertia)
    assert float(tree.settled_inertia) <= 1.02 * float(flat.settled_inertia)
    assert int(tree.counts_K.sum()) == 8000


# Breaks when the search leaves a trace where every list has every cluster.
def test_one_branch_is_flat_to_the_bit(rng) -> None:
    rows = rng.normal(size=(600, 4))
    flat = trained(rows, rows[:20], 100, algorithm="minibatch")
    tree = trained(rows, rows[:20], 100, algorithm="tree", branching="1")
    found = bits(tree)
    for name, value in bits(flat).items():
        if name not in ("branches_JD", "listed_P", "n_listed_J"):
            assert found[name] == value, name


# Breaks when branches stay where the seeds were, or move within a pass, which a run that is
# resumed there could not repeat.
def test_branches_are_found_when_a_pass_begins(rng) -> None:
    config = FitConfig(k=30, algorithm="tree").resolved(200, 4)
    rows = rng.normal(size=(200, 4))
    state = initial_state(torch.tensor(rows[:30]), 0.0, n_branches=config.n_branches)
    algorithm = make_algorithm(ReferenceKernel(200, 30, torch.float64, CPU), config, 200)
    algorithm.begin_epoch_(state)
    first = bits(state)
    algorithm.update_(state, batch_of(rows[:100]), epoch=0, index=0)
    names = ("branches_JD", "listed_P", "n_listed_J")
    assert [bits(state)[name] for name in names] == [first[name] for name in names]
    algorithm.finish_epoch_(state)
    algorithm.begin_epoch_(state)
    assert bits(state)["branches_JD"] != first["branches_JD"]
