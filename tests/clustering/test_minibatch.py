"""Mini-batch k-means, by hand and against scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.datasets import load_digits, load_iris

from streamkm.clustering import minibatch as module
from streamkm.clustering import step_sums
from streamkm.clustering.minibatch import ANNEALED_EPOCHS, MiniBatch
from streamkm.clustering.reservoir import Reseeding
from streamkm.clustering.state import (
    BY_MIN_GAIN,
    BY_NO_IMPROVEMENT,
    BY_TOL,
    RUNNING,
    KMeansState,
    initial_state,
)
from streamkm.config import FitConfig
from streamkm.kernels import instruction_sets
from streamkm.runs.storage.run_folder import setting_differences
from tests.clustering.contract import CASES, AlgorithmContract, Case, Engine
from tests.clustering.streams import (
    batch_of,
    bits,
    cut,
    inertia_of,
    minibatch,
    run_epoch,
    state_from,
)


class TestMiniBatch(AlgorithmContract):
    name = "minibatch"

    @pytest.fixture
    def settings(self) -> dict[str, Any]:
        """Watching the inertia, but not so that it ends a run here."""
        return {"max_no_improvement": 1000, "rate": "mean"}


class TestAnnealed(AlgorithmContract):
    name = "minibatch"
    remembers_all = False


# Breaks when the compiled end of a step has other bits than the operations of torch have.
@pytest.mark.skipif(not instruction_sets(), reason="the extension was not built")
@pytest.mark.parametrize("rate", ["mean", "annealed"])
@pytest.mark.parametrize("case", [c for c in CASES if c.kernel == "cpu"], ids=lambda c: c.name)
def test_the_compiled_end_of_a_step_changes_nothing(
    case: Case, rate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_no_improvement": 3, "rate": rate, "min_gain": 0.0}
    found = []
    for is_compiled in (True, False):
        if not is_compiled:
            monkeypatch.setattr(module, "can_finish", lambda state: False)
            monkeypatch.setattr(step_sums, "instruction_sets", lambda: ())
        engine = Engine("minibatch", case, settings)
        state = engine.begin(tolerance=1e-3)
        found.append([bits(state) for _ in engine.steps(state, 3)])
    assert found[0] == found[1]


def annealed(k: int, n_rows: int, **options: Any) -> MiniBatch:
    return minibatch(k, n_rows, rate="annealed", **options)


# Breaks when the seed has another mass, the memory is not 8 rows at first, or a cluster that
# gets more rows than it may remember forgets some of the new ones.
def test_annealed_batches_by_hand() -> None:
    state = state_from([[0.0], [100.0]])
    algorithm = annealed(2, 128, batch_rows=64)
    state.begin_epoch_()
    algorithm.update_(state, batch_of([[4.0], [108.0], [108.0], [108.0]]), epoch=0, index=0)
    # Of the first centroids remain the rows that fill the memory of 8: seven, and five.
    assert state.mass_K.tolist() == [8.0, 8.0]
    assert state.centroids_KD[:, 0].tolist() == [0.5, 103.0]
    assert state.counts_K.tolist() == [1, 3]
    # Halfway through a run of 64 rows a cluster: from 8 to 4 * 64 ** (1 / 2).
    assert algorithm.memory(2, 0, 1) == 16
    algorithm.update_(state, batch_of([[6.0]] * 19 + [[103.0]]), epoch=0, index=1)
    # 19 rows are more than the memory; one row fits beside the eight.
    assert state.mass_K.tolist() == [19.0, 9.0]
    assert state.centroids_KD[:, 0].tolist() == [6.0, 103.0]
    algorithm.update_(state, batch_of([[6.0], [119.0]] + [[103.0]] * 9), epoch=0, index=1)
    # The first cluster has more than the memory now, and forgets: so does the second.
    assert state.mass_K.tolist() == pytest.approx([16, 16])
    assert state.centroids_KD[:, 0].tolist() == pytest.approx([6.0, 104.0])
    assert state.counts_K.tolist() == [21, 14]


# Breaks when the memory depends on the number of batches, falls, does not end at 4 times the
# square root of the rows a cluster gets, or forgets rows after ten epochs: no centroid would rest.
def test_memory_rises_in_geometric_progression() -> None:
    one, four = annealed(10, 1000, epochs=1, batch_rows=10), annealed(10, 1000, epochs=4)
    assert one.memory(10, 0, 0) == four.memory(10, 0, 0) == 8
    steps = [one.memory(10, 0, index) for index in range(100)]
    ratios = [after / before for before, after in pairwise(steps)]
    assert ratios == pytest.approx([ratios[0]] * 99)
    assert steps[-1] == pytest.approx(8 * 5**0.99)
    assert four.memory(10, 3, 999) == pytest.approx(4 * 400**0.5, rel=1e-2)
    many = annealed(10, 1000, epochs=10**6)
    assert many.memory(10, 9, 999) == pytest.approx(4 * 1000**0.5, rel=1e-2)
    assert many.memory(10, 10, 0) == many.memory(10, 999, 0) == math.inf
    few = annealed(10, 30)
    assert few.memory(10, 0, 0) == few.memory(10, 0, 29) == 8


# Breaks when short memories throw away good seeds: converged ones ended higher by 4 rows at first.
def test_annealed_keeps_what_is_good_in_a_beginning(rng) -> None:
    rows = rng.normal(size=(6000, 8))
    start_KD = KMeans(60, n_init=1, random_state=0).fit(rows).cluster_centers_
    state = state_from(start_KD.tolist())
    before = inertia_of(rows, state)
    algorithm = annealed(60, len(rows), batch_rows=200, epochs=3)
    for epoch in range(3):
        run_epoch(algorithm, state, cut(rng.permutation(rows), 200), epoch)
    assert inertia_of(rows, state) < before


# Breaks when m rows are m units of weight: with all weights a thousand times as large, nothing
# would be forgotten, or all.
@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_annealing_does_not_depend_on_the_unit_of_weights(rng, factor: float) -> None:
    rows, weights_B = rng.normal(size=(60, 3)), torch.as_tensor(rng.uniform(1, 3, 60))
    start_KD = torch.as_tensor(rows[:5] + 0.1)
    states = []
    for unit in (1.0, factor):
        state = initial_state(start_KD.clone(), 0.0, weighted=True)
        algorithm = annealed(5, 600, batch_rows=60)
        for index in range(6):
            batch = replace(batch_of(rows), weights_B=weights_B * unit)
            algorithm.update_(state, batch, epoch=0, index=index)
        states.append(state)
    one, other = states
    assert torch.equal(one.centroids_KD, other.centroids_KD)
    assert torch.equal(one.mass_K * factor, other.mass_K)
    assert (one.mass_K < 0.9 * one.weights_K).any()


# Breaks when more epochs hardly help, as with `mean`, which remembers what came while the
# centroids were still wrong: both begin from two seeds in one group.
def test_annealed_leaves_a_wrong_beginning_behind(rng) -> None:
    rows = rng.permutation(np.concatenate([rng.normal(5 * i, 1, (500, 2)) for i in range(4)]))
    start = [[0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [0.1, 0.1]]
    inertias = {}
    for rate in ("mean", "annealed"):
        state = state_from(start)
        algorithm = minibatch(4, 2000, rate=rate, batch_rows=50, epochs=2)
        for epoch in range(2):
            run_epoch(algorithm, state, cut(rows, 50), epoch)
        inertias[rate] = inertia_of(rows, state)
    assert inertias["annealed"] < 0.9 * inertias["mean"]


# Breaks when a run of the old rule goes on by the new one: two rules would have made its sums.
def test_a_run_without_a_rate_was_of_means() -> None:
    config = FitConfig(k=3).resolved(100, 4).as_dict()
    before = {name: value for name, value in config.items() if name != "rate"}
    assert setting_differences(before, config) == ["rate: mean -> annealed"]
    assert not setting_differences(before, config | {"rate": "mean"})
    lloyd = FitConfig(k=3, algorithm="lloyd").resolved(100, 4).as_dict()
    assert not setting_differences({n: v for n, v in lloyd.items() if n != "rate"}, lloyd)


# Breaks when a rate is not 1 / count, the seed is counted as a row, or inertia is
# taken after the move.
def test_two_batches_by_hand() -> None:
    state = state_from([[0.0], [10.0]])
    algorithm = minibatch(2, 7)
    state.begin_epoch_()
    algorithm.update_(state, batch_of([[1.0], [3.0], [9.0]]), epoch=0, index=0)
    assert state.centroids_KD[:, 0].tolist() == [2.0, 9.0]
    assert state.counts_K.tolist() == [2, 1]
    assert state.sums_KD[:, 0].tolist() == [4.0, 9.0]
    assert float(state.inertia) == 1 + 9 + 1
    assert float(state.batch_inertia) == pytest.approx(11 / 3)
    assert float(state.shift) == 4 + 1
    algorithm.update_(state, batch_of([[5.0], [7.0], [13.0], [5.0]]), epoch=0, index=1)
    # 5 is nearer to 2 than to 9; 7 is not.
    assert state.counts_K.tolist() == [4, 3]
    assert state.centroids_KD[:, 0].tolist() == [14 / 4, 29 / 3]
    assert float(state.inertia) == 11 + (9 + 4 + 16 + 9)
    assert float(state.shift) == pytest.approx((3.5 - 2) ** 2 + (29 / 3 - 9) ** 2)
    assert state.epoch_counts_K.tolist() == [4, 3]
    assert int(state.n_steps) == 2


# Breaks when assignment, rate or order differ from partial_fit's.
def test_digits_is_scikit_learn_s_partial_fit() -> None:
    rows = load_digits().data
    state = state_from(rows[:10])
    algorithm = minibatch(10, len(rows))
    inertias = []
    for epoch in range(3):
        run_epoch(algorithm, state, cut(rows, 100), epoch)
        inertias.append(inertia_of(rows, state))
    assert inertias == pytest.approx([1202321.806222, 1188222.625317, 1181455.439692], abs=1e-5)
    assert int(state.n_steps) == 54
    assert int(state.n_reseeded) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_iris_is_scikit_learn_s_partial_fit(rng, dtype) -> None:
    rows = rng.permutation(load_iris().data)
    reference = MiniBatchKMeans(3, init=rows[:3], n_init=1, reassignment_ratio=0)
    state = state_from(rows[:3], dtype=dtype)
    algorithm = minibatch(3, len(rows), dtype)
    state.begin_epoch_()
    for index in range(15):
        part = rows[10 * index : 10 * index + 10]
        reference.partial_fit(part)
        algorithm.update_(state, batch_of(part, dtype), epoch=0, index=index)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        np.testing.assert_allclose(state.centroids_KD, reference.cluster_centers_, rtol=tolerance)
    assert state.counts_K.tolist() == reference._counts.tolist()


# Breaks when counts pass through float32, or sums do: one row more would be lost.
def test_the_row_after_2_to_the_24_still_counts() -> None:
    n = 2**24
    state = state_from([[1.0]], dtype=torch.float32)
    state.counts_K.fill_(n)
    state.sums_KD.fill_(n)
    algorithm = minibatch(1, 2 * n, torch.float32)
    state.begin_epoch_()
    for index in range(3):
        algorithm.update_(state, batch_of([[2.0]], torch.float32), epoch=0, index=index)
    assert state.counts_K.tolist() == [n + 3]
    assert state.sums_KD.tolist() == [[n + 6.0]]


# ---- dropped rows -----------------------------------------------------------


# Breaks when zeros that stand for dropped rows are counted, summed or drawn.
def test_dropped_rows_do_not_count() -> None:
    rows = [[1.0, 2.0], [4.0, 4.0], [-7.0, 3.0]]
    with_nan = [[np.nan, 1.0], rows[0], [np.inf, 0.0], *rows[1:]]
    one, other = (state_from([[0.0, 1.0], [3.0, 3.0]], tolerance=1e-9) for _ in range(2))
    minibatch(2, 5).update_(one, batch_of(rows), epoch=0, index=0)
    minibatch(2, 5).update_(other, batch_of(with_nan), epoch=0, index=0)
    assert int(other.n_dropped) == 2
    alike = [name for name, value in bits(one).items() if bits(other)[name] == value]
    # The draws are other numbers, because the rows stand elsewhere.
    assert {*one.tensors()} - {*alike} <= {
        "n_dropped",
        "reservoir_RD",
        "reservoir_keys_R",
        "reservoir_labels_R",
    }


# Breaks when a batch without a row counts as one that moved nothing (tol) or improved
# nothing, or as an inertia of 0 that no batch will ever beat.
def test_a_batch_of_dropped_rows_says_nothing() -> None:
    nothing = batch_of(np.full((4, 1), np.nan))
    algorithm = minibatch(2, 100, max_no_improvement=2)
    state = state_from([[0.0], [10.0]], tolerance=1e-3)
    state.begin_epoch_()
    for index in range(5):
        algorithm.update_(state, nothing, epoch=0, index=index)
    assert int(state.stop) == RUNNING
    assert state.smoothed_inertia.isnan()
    assert state.counts_K.tolist() == [0, 0]
    assert state.centroids_KD[:, 0].tolist() == [0.0, 10.0]
    assert int(state.n_dropped) == 20
    algorithm.finish_epoch_(state)
    assert int(state.n_reseeded) == 0


# ---- stopping ---------------------------------------------------------------


# Breaks when the shift is not squared, or compared with a strict sign.
@pytest.mark.parametrize(("tolerance", "stop"), [(1.0, BY_TOL), (0.99, RUNNING), (0.0, RUNNING)])
def test_stops_when_the_squared_shift_is_at_most_tol(tolerance: float, stop: int) -> None:
    state = state_from([[0.0], [10.0]], tolerance)
    minibatch(2, 2).update_(state, batch_of([[1.0], [10.0]]), epoch=0, index=0)
    assert float(state.shift) == 1.0
    assert int(state.stop) == stop


# Breaks when tol 0, which is off, stops a batch that moves nothing.
def test_tol_0_never_stops() -> None:
    state = state_from([[1.0]], 0.0)
    minibatch(1, 1).update_(state, batch_of([[1.0]]), epoch=0, index=0)
    assert float(state.shift) == 0
    assert int(state.stop) == RUNNING


# Breaks at the first step whose smoothing, minimum or count differs from
# scikit-learn's `_mini_batch_convergence`, written out here.
@pytest.mark.parametrize("n_rows", [40, 400, 10**6])
def test_no_improvement_is_scikit_learn_s_step_by_step(rng, n_rows: int) -> None:
    state = state_from([[0.0], [5.0]])
    algorithm = minibatch(2, n_rows, max_no_improvement=4)
    average = least = None
    waited, stopped_at = 0, None
    for index in range(60):
        size = int(rng.integers(20, 41))
        rows = rng.normal(0, 3, (size, 1))
        before = bits(state)
        algorithm.update_(state, batch_of(rows), epoch=0, index=index)
        if stopped_at is not None:
            assert bits(state) == before
            continue
        inertia = float(state.batch_inertia)
        if index > 0:
            if average is None:
                average = inertia
            else:
                alpha = min(size * 2.0 / (n_rows + 1), 1.0)
                average = average * (1 - alpha) + inertia * alpha
            if least is None or average < least:
                waited, least = 0, average
            else:
                waited += 1
            assert float(state.smoothed_inertia) == pytest.approx(average, rel=1e-13)
            assert float(state.best_inertia) == pytest.approx(least, rel=1e-13)
            assert int(state.no_improvement) == waited
        else:
            assert state.smoothed_inertia.isnan()
        if waited >= 4:
            stopped_at = index
        assert int(state.stop) == (BY_NO_IMPROVEMENT if waited >= 4 else RUNNING)
    assert stopped_at is not None


def epochs_of(
    algorithm: MiniBatch, state: KMeansState, *passes: list[list[float]], first: int = 0
) -> list[int]:
    """Codes of why the state has stopped, after each epoch of one batch."""
    found = []
    for epoch, rows in enumerate(passes, first):
        run_epoch(algorithm, state, [batch_of(rows)], epoch)
        found.append(int(state.stop))
    return found


# Breaks when the gain is not a share of the former inertia, inertia is not per row, or the sign is
# strict. With means of all rows: 5 a row at first (0, 10 against 1, 7), then 1 (1, 9 against 0, 10)
# of twice as many rows, which is a gain of 0.8.
@pytest.mark.parametrize(
    ("min_gain", "stop"), [(0.81, BY_MIN_GAIN), (0.79, RUNNING), (0.0, RUNNING)]
)
def test_stops_when_an_epoch_gained_no_more_than_a_share(min_gain: float, stop: int) -> None:
    state = state_from([[1.0], [7.0]])
    algorithm = minibatch(2, 2, min_gain=min_gain)
    passes = [[0.0], [10.0]], [[1.0], [9.0], [1.0], [9.0]]
    assert epochs_of(algorithm, state, *passes) == [RUNNING, stop]
    if min_gain:
        assert float(state.former_inertia) == 1.0
    else:
        assert state.former_inertia.isnan()


# Breaks when rows of weight count as rows: 16 and 4 of weights 3 and 1 are 13 per unit of weight.
def test_the_inertia_of_an_epoch_is_per_unit_of_weight() -> None:
    state = initial_state(torch.tensor([[0.0]], dtype=torch.float64), 0.0, weighted=True)
    weights_B = torch.tensor([3.0, 1.0], dtype=torch.float64)
    batch = replace(batch_of([[4.0], [2.0]]), weights_B=weights_B)
    run_epoch(minibatch(1, 2, min_gain=0.5), state, [batch], 0)
    assert float(state.former_inertia) == 13.0


# Breaks when an inertia of 0, which cannot fall, is asked to.
def test_rows_on_their_centroids_end_the_run() -> None:
    rows, state = [[1.0], [8.0]], state_from([[1.0], [8.0]])
    assert epochs_of(minibatch(2, 2, min_gain=1e-4), state, rows, rows) == [RUNNING, BY_MIN_GAIN]


# Breaks when epochs in which memories grow, or the first after them and the last of them, are
# compared: the inertia rises while short memories shake the centroids.
def test_annealed_compares_epochs_without_forgetting() -> None:
    rows, state = [[0.0], [2.0]], state_from([[1.0]])
    algorithm = annealed(1, 2, epochs=100, batch_rows=2, min_gain=1e-4)
    stops = epochs_of(algorithm, state, *([rows] * 13))
    assert ANNEALED_EPOCHS == 10
    assert stops == [RUNNING] * 11 + [BY_MIN_GAIN] * 2
    assert int(state.n_steps) == 12


# Breaks when rows that are dropped count as an inertia of 0, or are no gain over the epoch before.
def test_an_epoch_of_dropped_rows_decides_nothing() -> None:
    rows, nothing = [[0.0], [2.0]], [[np.nan], [np.nan]]
    state = state_from([[1.0]])
    algorithm = minibatch(1, 2, min_gain=1e-4)
    assert epochs_of(algorithm, state, nothing, rows, nothing) == [RUNNING] * 3
    assert float(state.former_inertia) == 1.0
    assert epochs_of(algorithm, state, rows, first=3) == [BY_MIN_GAIN]


# Breaks when a run ends with a centroid that has just been put elsewhere.
def test_an_epoch_that_reseeded_is_not_the_last() -> None:
    rows, state = [[0.0], [2.0]], state_from([[1.0], [99.0]])
    algorithm = minibatch(2, 2, min_gain=1e-4)
    state.former_inertia.fill_(1.0)
    assert epochs_of(algorithm, state, rows) == [RUNNING]
    assert int(state.n_reseeded) == 1
    state.epoch_counts_K.fill_(1)
    algorithm.finish_epoch_(state)
    assert int(state.stop) == BY_MIN_GAIN


# Breaks when the verdict is asked for on the host: torch's device ``meta`` has no values.
@pytest.mark.parametrize("weighted", [False, True])
def test_comparing_epochs_asks_for_no_value(monkeypatch: pytest.MonkeyPatch, weighted) -> None:
    # Reseeding alone does, and it does not decide here.
    monkeypatch.setattr(module, "reseed_", lambda state, at_K: Reseeding(at_K, at_K, state.inertia))
    state = initial_state(torch.empty((3, 2), device="meta"), 0.0, weighted=weighted)
    monkeypatch.setattr(type(state), "move_", lambda *_, **__: None)
    minibatch(3, 9, min_gain=0.5).finish_epoch_(state)
    assert state.former_inertia.is_meta


# Breaks when anything at all is written after the verdict: the host learns of it late,
# at a time that depends on the machine.
@pytest.mark.parametrize("n_before", [0, 1, 3])
def test_a_stopped_state_stays_as_it_is_to_the_bit(rng, n_before: int) -> None:
    state = state_from(rng.normal(size=(40, 3)), tolerance=0.0)
    algorithm = minibatch(40, 30, max_no_improvement=3, min_gain=0.5)
    state.begin_epoch_()
    for index in range(n_before):
        algorithm.update_(state, batch_of(rng.normal(size=(5, 3))), epoch=0, index=index)
    state.stop.fill_(BY_TOL)
    before = bits(state)
    for index in range(3):
        rows = rng.normal(size=(30, 3))
        rows[index] = np.nan
        algorithm.update_(state, batch_of(rows), epoch=0, index=index)
    algorithm.finish_epoch_(state)
    state.begin_epoch_()
    algorithm.update_(state, batch_of(rng.normal(size=(30, 3))), epoch=1, index=0)
    assert bits(state) == before


# ---- empty clusters ---------------------------------------------------------


# Breaks when an epoch ends with a centroid that no row has, though rows lie far away.
def test_a_cluster_without_a_row_gets_a_far_one(rng) -> None:
    rows = np.concatenate((rng.normal(0, 0.1, (500, 2)), rng.normal(9, 0.1, (500, 2))))
    state = state_from([[0.0, 0.0], [500.0, 500.0], [600.0, 0.0]])
    run_epoch(minibatch(3, 1000), state, cut(rng.permutation(rows), 100), 0)
    assert int(state.n_reseeded) == 2
    assert (state.centroids_KD[1:].abs() < 20).all()
    run_epoch(minibatch(3, 1000), state, cut(rng.permutation(rows), 100), 1)
    assert inertia_of(rows, state) < 1000


# Breaks when few rows are taken for too few: 20 of 10,000 a thousand units away are
# worth a centroid more than all the rest.
def test_a_small_far_cluster_keeps_its_centroid(rng) -> None:
    rows = np.concatenate(
        [rng.normal(0, 1, (5000, 2)), rng.normal(20, 1, (4980, 2)), rng.normal(1000, 1, (20, 2))]
    )
    state = state_from([[0.0, 0.0], [20.0, 20.0], [1000.0, 1000.0]])
    run_epoch(minibatch(3, 10000), state, cut(rng.permutation(rows), 1000), 0)
    assert int(state.n_reseeded) == 0
    assert inertia_of(rows, state) < 25000


# Breaks when the draws come from a global generator, or the seed is not used.
def test_reseeding_depends_on_the_seed_alone(rng) -> None:
    rows = rng.normal(size=(300, 2))

    def centroids(seed: int) -> bytes:
        state = state_from([[0.0, 0.0], [500.0, 500.0], [600.0, 0.0]])
        run_epoch(minibatch(3, 300, seed=seed), state, cut(rows, 100), 0)
        return bits(state)["centroids_KD"]

    assert centroids(1) == centroids(1)
    assert len({centroids(seed) for seed in range(5)}) > 1


# Breaks with an OverflowError when the number is compared as it is.
def test_patience_may_be_longer_than_int64() -> None:
    state = state_from([[0.0], [10.0]])
    for index in range(2):
        algorithm = minibatch(2, 2, max_no_improvement=10**30)
        algorithm.update_(state, batch_of([[1.0], [10.0]]), epoch=0, index=index)
    assert int(state.stop) == RUNNING
