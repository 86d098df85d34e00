"""The contract of algorithms; each algorithm's test class inherits it.

It is called as the engine calls it: on batches that a run's own `Preparation` makes of a window,
from rows in order in one epoch and by position in the next, with the kernel in plain torch and
with the compiled one, which takes rows where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from streamkm.clustering.algorithm import Algorithm, make_algorithm
from streamkm.clustering.batch import Batch
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import RunningMoments, Scaling, compute_dtype
from streamkm.clustering.state import RUNNING, KMeansState, initial_state
from streamkm.config import FitConfig
from streamkm.kernels import Kernel, KernelRequest, make_kernel
from streamkm.kernels.extension import instruction_sets
from tests.clustering.meta import META, MetaKernel
from tests.clustering.streams import CPU

N_EPOCHS = 2


@dataclass(frozen=True)
class Case:
    """Rows, and the clusters that are looked for in them."""

    name: str
    x_ND: np.ndarray
    start_KD: np.ndarray
    dtype: torch.dtype = torch.float32
    metric: str = "euclidean"
    weights_N: np.ndarray | None = None
    batch_rows: int = 20
    seed: int = 3
    kernel: str = "reference"

    @property
    def counted_N(self) -> np.ndarray:
        """Rows that are finite and have a weight."""
        finite_N: np.ndarray = np.isfinite(self.x_ND).all(axis=1)
        return finite_N if self.weights_N is None else finite_N & (self.weights_N > 0)


def cases() -> Iterator[Case]:
    draws = np.random.default_rng(0)
    x_ND = draws.normal(size=(90, 4))
    start_KD = x_ND[:6] + 0.1
    far_KD = start_KD.copy()
    far_KD[2:4] += 1000
    bad_ND = x_ND.copy()
    bad_ND[[0, 41, 89], [0, 3, 1]] = [np.nan, np.inf, -np.inf]
    weights_N = draws.integers(0, 4, 90) / 3
    few_ND = x_ND[draws.integers(5, size=90)]
    yield Case("float32", x_ND, start_KD)
    yield Case("float64", x_ND, start_KD, dtype=torch.float64)
    yield Case("one cluster", x_ND, start_KD[:1])
    yield Case("empty clusters", x_ND, far_KD)
    yield Case("fewer distinct rows than clusters", few_ND, far_KD)
    yield Case("one row a batch", x_ND[:7], start_KD, batch_rows=1)
    yield Case("spherical", x_ND, start_KD, metric="cosine")
    yield Case("spherical, empty clusters", np.abs(x_ND), -np.abs(start_KD), metric="cosine")
    yield Case("dropped rows", bad_ND, start_KD)
    yield Case("nothing but dropped rows", np.full((30, 4), np.nan), start_KD)
    yield Case("weighted", x_ND, far_KD, weights_N=weights_N)
    yield Case(
        "weighted, dropped rows, float64", bad_ND, far_KD, torch.float64, "euclidean", weights_N
    )
    yield Case("weighted, spherical", x_ND, start_KD, metric="cosine", weights_N=weights_N)


CASES = [
    replace(case, name=f"{case.name}, {kernel} kernel", kernel=kernel)
    for case in cases()
    for kernel in (("reference", "cpu") if instruction_sets() else ("reference",))
]


@dataclass
class Engine:
    """Calls an algorithm as a run does, and can do with another in its place at any moment."""

    name: str
    case: Case
    settings: dict[str, Any] = field(default_factory=dict)
    n_rows: int | None = None
    """What the algorithm is told of the array's length, where it is not that."""

    def __post_init__(self) -> None:
        case = self.case
        self.window_ND = torch.as_tensor(case.x_ND).to(case.dtype)
        self.weights_N = None
        if case.weights_N is not None:
            self.weights_N = torch.as_tensor(case.weights_N, dtype=torch.float64)
        # As many as a batch has by `algorithm`; here batches are shorter.
        most_rows = self.n_rows or len(self.window_ND)
        request = KernelRequest(most_rows, len(case.start_KD), case.dtype, CPU)
        self.kernel = make_kernel(case.kernel, request)
        moments = RunningMoments.empty(self.window_ND.shape[1], CPU)
        self.prepare = Preparation.for_kernel(
            Scaling.fit("none", case.metric, moments, case.dtype), self.algorithm().kernel,
            batch_rows=case.batch_rows, stored=case.dtype, dtype=case.dtype,
        )  # fmt: skip

    def begin(self, tolerance: float = 0.0) -> KMeansState:
        """The state before the first row."""
        start_KD = torch.as_tensor(self.case.start_KD)
        if self.case.metric == "cosine":
            start_KD = torch.nn.functional.normalize(start_KD)
        start_KD = start_KD.to(self.case.dtype, copy=True)
        config = FitConfig(k=len(start_KD), algorithm=self.name, **self.settings)
        return initial_state(
            start_KD, tolerance, weighted=self.weights_N is not None, n_branches=config.n_branches
        )

    def algorithm(self) -> Algorithm:
        return made(
            self.name, self.kernel, self.n_rows or len(self.window_ND), k=len(self.case.start_KD),
            metric=self.case.metric, seed=self.case.seed, **self.settings,
        )  # fmt: skip

    def batch(self, epoch: int, rows: torch.Tensor) -> Batch:
        """The batch of `rows`, which are consecutive in even epochs."""
        chosen = rows if epoch % 2 else slice(int(rows[0]), int(rows[-1]) + 1)
        # A copy: rows may be prepared where they lie, and those of a window are used once.
        return self.prepare(self.window_ND.clone(), chosen, self.weights_N)

    def rows(self, epoch: int) -> list[torch.Tensor]:
        """Positions of the rows of each batch."""
        n_rows = len(self.window_ND)
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(n_rows, generator=generator) if epoch % 2 else torch.arange(n_rows)
        return list(order.int().split(self.case.batch_rows))

    def steps(self, state: KMeansState, n_epochs: int = N_EPOCHS) -> Iterator[tuple[int, int]]:
        """Take one step after the other, after each of which a run may save `state` and end.

        Yields (epoch, batches of it that were applied); (epoch + 1, 0) when one is finished.
        """
        yield from self.steps_from(state, (0, 0), n_epochs)

    def steps_from(
        self, state: KMeansState, cursor: tuple[int, int], n_epochs: int = N_EPOCHS
    ) -> Iterator[tuple[int, int]]:
        """The steps that are left at `cursor`, by an algorithm that is made there."""
        algorithm = self.algorithm()
        for epoch in range(cursor[0], n_epochs):
            n_done = cursor[1] if epoch == cursor[0] else 0
            if n_done == 0:
                if int(state.stop) != RUNNING:
                    return  # The host learns of it after an epoch at the latest.
                algorithm.begin_epoch_(state)
            for index, rows in enumerate(self.rows(epoch)):
                if index >= n_done:
                    algorithm.update_(state, self.batch(epoch, rows), epoch=epoch, index=index)
                    yield epoch, index + 1
            algorithm.finish_epoch_(state)
            yield epoch + 1, 0

    def end(self, n_epochs: int = N_EPOCHS) -> KMeansState:
        """The state after all steps."""
        state = self.begin()
        for _ in self.steps(state, n_epochs):
            pass
        return state


def made(name: str, kernel: Kernel, n_rows: int, **settings: Any) -> Algorithm:
    """The algorithm of that name, as a run makes it."""
    config = FitConfig(algorithm=name, **settings).resolved(n_rows, 4)  # type: ignore[arg-type]
    return make_algorithm(kernel, config, n_rows)


def saved(state: KMeansState) -> dict[str, np.ndarray]:
    """What a checkpoint holds of it."""
    return {name: tensor.numpy().copy() for name, tensor in state.tensors().items()}


def resumed(tensors: dict[str, np.ndarray]) -> KMeansState:
    return KMeansState(**{name: torch.from_numpy(array) for name, array in tensors.items()})


def differing(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
    """Names of tensors that differ in a bit, so that a failure names them."""
    return [name for name, array in one.items() if array.tobytes() != other[name].tobytes()]


class AlgorithmContract:
    """Subclasses give the algorithm's name in `streamkm.tables.ALGORITHMS`."""

    name: ClassVar[str]
    #: Whether it runs on a GPU.
    on_gpus: ClassVar[bool] = True
    #: Whether a centroid is the mean of all rows of the pass, or of the run.
    remembers_all: ClassVar[bool] = True

    @pytest.fixture
    def settings(self) -> dict[str, Any]:
        """Settings of a fit that the algorithm knows beside those that all do."""
        return {}

    @pytest.fixture(params=CASES, ids=lambda case: case.name)
    def engine(self, request: pytest.FixtureRequest, settings: dict[str, Any]) -> Engine:
        return Engine(self.name, request.param, settings)

    @pytest.fixture
    def plain(self, settings: dict[str, Any]) -> Engine:
        return Engine(self.name, CASES[0], settings)

    # ---- what it is for -----------------------------------------------------

    # Breaks when centroids do not move, move elsewhere, or by the rows of one epoch only.
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_finds_three_clusters_that_lie_apart(self, settings, dtype) -> None:
        draws = np.random.default_rng(1)
        labels_N = draws.integers(3, size=300)
        x_ND = 100.0 * np.eye(3)[labels_N] + draws.normal(size=(300, 3))
        start_KD = np.stack([x_ND[labels_N == j][0] for j in range(3)])
        case = Case("apart", x_ND, start_KD, dtype, batch_rows=40)
        state = Engine(self.name, case, settings).end(n_epochs=3)
        expected_KD = np.stack([x_ND[labels_N == j].mean(axis=0) for j in range(3)])
        # Of few rows, a mean is as far from that of all as they are from one another.
        atol = 0.1 if self.remembers_all else 1.0
        np.testing.assert_allclose(state.centroids_KD.numpy(), expected_KD, atol=atol)
        assert state.epoch_counts_K.tolist() == np.bincount(labels_N).tolist()
        assert int(state.n_reseeded) == 0

    # ---- counts and sums ----------------------------------------------------

    # Breaks when a row is counted twice or not at all, dropped or of no weight and counted, or
    # taken from one cluster for another and left in both.
    def test_counts_and_sums_are_those_of_the_rows_that_count(self, engine: Engine) -> None:
        case, state, n_reseeded = engine.case, engine.begin(), 0
        n_counted = int(case.counted_N.sum())
        for epoch, n_done in engine.steps(state):
            if n_done:
                continue
            assert state.counts_K.dtype == state.epoch_counts_K.dtype == torch.int64
            assert int(state.epoch_counts_K.sum()) == n_counted
            # Those of the pass, or those of the run, less what reseeded clusters had before.
            n_epochs = int(state.counts_K.sum()) / max(n_counted, 1)
            assert (1 if n_counted else 0) <= n_epochs <= epoch
            if epoch > 1 and int(state.n_reseeded) > n_reseeded:
                continue
            n_reseeded = int(state.n_reseeded)
            assert n_epochs in ((1, epoch) if n_counted else (0,))
            assert (state.counts_K >= 0).all()
            assert int(state.n_dropped) == (~np.isfinite(case.x_ND).all(axis=1)).sum()
            x_ND, weights_N = case.x_ND[case.counted_N], np.ones(n_counted)
            if case.metric == "cosine":
                x_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
            if case.weights_N is not None:
                weights_N = case.weights_N[case.counted_N]
                total = n_epochs * weights_N.sum()
                np.testing.assert_allclose(state.weights_K.sum(), total, rtol=1e-12)
                np.testing.assert_allclose(state.epoch_weights_K.sum(), weights_N.sum(), rtol=1e-12)
            if self.remembers_all:
                torch.testing.assert_close(state.mass_K, state.whole_mass_K.double())
                np.testing.assert_allclose(
                    state.sums_KD.sum(dim=0), n_epochs * weights_N @ x_ND, rtol=1e-4, atol=1e-4
                )

    # Breaks when a cluster without a row is divided by its count, when a mean of unit rows is
    # left as it is, or the dtypes of a state, which a checkpoint is checked against, change.
    def test_a_state_stays_one_that_can_be_saved(self, engine: Engine) -> None:
        state = engine.begin()
        rtol = 1e-6 if engine.case.dtype == torch.float32 else 1e-12
        before = {name: (t.dtype, t.shape, t.data_ptr()) for name, t in state.tensors().items()}
        for _, n_done in engine.steps(state):
            assert state.centroids_KD.isfinite().all()
            assert state.sums_KD.isfinite().all()
            assert float(state.inertia) >= 0
            assert (state.mass_K >= 0).all()
            if engine.case.metric == "euclidean" and not n_done:
                means_KD = (
                    state.sums_KD / torch.where(state.mass_K > 0, state.mass_K, torch.nan)[:, None]
                )
                known_K = means_KD[:, 0].isfinite() & (state.epoch_counts_K > 0)
                torch.testing.assert_close(
                    state.centroids_KD[known_K].double(), means_KD[known_K], rtol=rtol, atol=1e-5
                )
            if engine.case.metric == "cosine":
                lengths_K = torch.linalg.vector_norm(state.centroids_KD, dim=1)
                torch.testing.assert_close(lengths_K, torch.ones_like(lengths_K))
        after = {name: (t.dtype, t.shape, t.data_ptr()) for name, t in state.tensors().items()}
        assert after == before

    # Breaks when zeros that stand for dropped rows, or rows of weight 0 wherever they lie, are
    # summed, counted, drawn, or decide when to stop.
    @pytest.mark.parametrize("what", ["dropped", "weight 0"])
    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    @pytest.mark.parametrize(
        "kernel", ["reference", "cpu"] if instruction_sets() else ["reference"]
    )
    def test_rows_that_do_not_count_leave_no_trace(self, settings, what, metric, kernel) -> None:
        draws = np.random.default_rng(2)
        x_ND, start_KD = draws.normal(2, 1, (80, 4)), draws.normal(2, 1, (6, 4))
        start_KD[4:] *= -50
        weights_N = draws.uniform(1, 2, 80) if what == "weight 0" else None
        # Behind the others in each batch of an epoch in order: the others' draws are the same.
        more_ND = np.full((80, 4), np.nan) if what == "dropped" else draws.normal(99, 99, (80, 4))
        both_ND = np.concatenate((x_ND.reshape(4, 20, 4), more_ND.reshape(4, 20, 4)), axis=1)
        both_N = None
        if weights_N is not None:
            both_N = np.concatenate((weights_N.reshape(4, 20), np.zeros((4, 20))), axis=1).ravel()
        without = Case("without", x_ND, start_KD, torch.float64, metric, weights_N, kernel=kernel)
        beside = replace(without, x_ND=both_ND.reshape(160, 4), weights_N=both_N, batch_rows=40)
        one, other = (
            saved(Engine(self.name, case, settings, n_rows=160).end(n_epochs=1))
            for case in (without, beside)
        )
        assert int(other.pop("n_dropped")) == (80 if what == "dropped" else 0)
        for name, array in other.items():
            np.testing.assert_allclose(array, one[name], rtol=1e-11, atol=1e-11, err_msg=name)

    # ---- the same again -----------------------------------------------------

    # Breaks when the object remembers what the state does not hold, also between the last batch
    # and the end of an epoch: a run that is stopped there goes on with a new one.
    def test_going_on_from_any_step_gives_the_same_bits(self, engine: Engine) -> None:
        state = engine.begin()
        at = {cursor: saved(state) for cursor in engine.steps(state)}
        assert int(state.stop) != RUNNING or len(at) == N_EPOCHS * (len(engine.rows(0)) + 1)
        expected = saved(state)
        for cursor, tensors in at.items():
            again = resumed(tensors)
            for _ in engine.steps_from(again, cursor):
                pass
            assert not differing(saved(again), expected), f"resumed at {cursor}"

    # Breaks when draws come from a global generator, which belongs to the program around this.
    def test_no_global_generator_is_used_or_touched(self, engine: Engine) -> None:
        expected = saved(engine.end())
        state = engine.begin()
        for _ in engine.steps(state):
            before = torch.random.get_rng_state()
            torch.rand(7)
            assert not torch.equal(torch.random.get_rng_state(), before)
        assert not differing(saved(state), expected)
        before = torch.random.get_rng_state()
        engine.end()
        assert torch.equal(torch.random.get_rng_state(), before)

    # Breaks when two steps, or two runs, draw the same numbers because a coordinate is left out.
    # (An algorithm that draws no rows has nothing to show here.)
    def test_what_is_drawn_depends_on_seed_epoch_and_index(self, plain: Engine) -> None:
        def keys(seed: int, epoch: int, index: int) -> list[float]:
            engine = replace(plain, case=replace(plain.case, seed=seed))
            state, algorithm = engine.begin(), engine.algorithm()
            algorithm.begin_epoch_(state)
            batch = engine.batch(0, engine.rows(0)[0])
            algorithm.update_(state, batch, epoch=epoch, index=index)
            found: list[float] = state.reservoir_keys_R.tolist()
            return found

        first = keys(0, 0, 0)
        assert keys(0, 0, 0) == first
        if np.isfinite(first).any():
            for coordinates in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
                assert keys(*coordinates) != first, coordinates

    # ---- the end ------------------------------------------------------------

    # Breaks when anything is written after the verdict: the host learns of it at a report, after
    # the epoch at the latest, and what it has queued by then must not matter.
    # Where asking costs nothing an algorithm may return at once; a GPU is not asked.
    @pytest.mark.parametrize("asks", [True, False], ids=["asking", "as on a GPU"])
    def test_a_state_that_stopped_is_left_to_the_bit(
        self, monkeypatch: pytest.MonkeyPatch, engine: Engine, asks: bool
    ) -> None:
        if not asks:
            module = type(engine.algorithm()).__module__
            monkeypatch.setattr(f"{module}.is_host", lambda _: False, raising=False)
        state, frozen = engine.begin(tolerance=1e12), None
        for _ in engine.steps(state, n_epochs=9):
            if frozen is not None:
                assert not differing(saved(state), frozen)
            elif int(state.stop) != RUNNING:
                frozen = saved(state)
        # Where there is no row nothing need be said.
        assert frozen or not engine.case.counted_N.any(), "moves of less than tol did not stop it"

    # Breaks when a tolerance of 0, which is off or asks for centroids that stand still, stops it.
    def test_goes_on_while_centroids_move(self, plain: Engine) -> None:
        state = plain.begin(tolerance=0.0)
        for _ in plain.steps(state, n_epochs=1):
            assert int(state.stop) == RUNNING

    # ---- on a device --------------------------------------------------------

    # A GPU runs behind the host, which must never ask it for a value between two batches. Tensors
    # on torch's device ``meta`` have shapes and dtypes and no values to ask for.
    @pytest.mark.usefixtures("generators_of_the_host")
    @pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
    @pytest.mark.parametrize("space", ["as stored", "moved", "spherical"])
    @pytest.mark.parametrize(
        "dtype", [torch.float32, torch.float16, torch.uint8, torch.float64], ids=str
    )
    def test_a_step_asks_for_no_value(
        self, monkeypatch: pytest.MonkeyPatch, settings, weighted, space, dtype
    ) -> None:
        if not self.on_gpus:
            pytest.skip("it runs on the CPU, which may be asked")
        # Whether rows are moved is asked once a run.
        monkeypatch.setattr(Scaling, "is_affine", space == "moved")
        spherical, wide, n_features = space == "spherical", compute_dtype(dtype), 5
        kernel, k, n_rows = MetaKernel(), 7, 60
        zeros_D = torch.zeros(n_features, dtype=torch.float64, device=META)
        scaling = Scaling(zeros_D, zeros_D + 1, normalize=spherical)
        prepare = Preparation.for_kernel(
            scaling, kernel, batch_rows=n_rows, stored=dtype, dtype=wide
        )
        window_ND = torch.empty((2 * n_rows, n_features), dtype=dtype, device=META)
        weights_N = zeros_D.new_empty(2 * n_rows) if weighted else None
        centroids_KD = torch.empty((k, n_features), dtype=wide, device=META)
        state = initial_state(centroids_KD, 0.1, weighted=weighted)
        metric = "cosine" if spherical else "euclidean"
        algorithm = made(self.name, kernel, 1000, k=k, metric=metric, **settings)
        algorithm.begin_epoch_(state)
        for rows in (torch.empty(n_rows, dtype=torch.int32, device=META), slice(0, n_rows)):
            algorithm.update_(state, prepare(window_ND, rows, weights_N), epoch=0, index=0)
        assert all(tensor.device == META for tensor in state.tensors().values())
