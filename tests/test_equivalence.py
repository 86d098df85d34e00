"""A whole fit, from an array to centroids, against scikit-learn in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, load_iris
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler, normalize

from streamkm.config import ExecutionConfig, FitConfig
from streamkm.errors import NonFiniteError
from streamkm.runs.evaluate import evaluate
from streamkm.runs.fit import fit
from streamkm.runs.reporting.signals import StopRequest
from streamkm.sources import open_source
from streamkm.sources.weights import open_weights
from tests.data_sets import IRIS, DataSet, on_data_sets

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.runs.evaluate import Evaluation
    from streamkm.runs.storage.model import Model

DTYPES = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
DTYPES += ["float16", "bfloat16", "float32", "float64"]
CPU = ExecutionConfig(device="cpu")


@dataclass
class Runs:
    """Fits into folders of their own."""

    folder: Path
    n_runs: int = 0

    def fit(
        self,
        array: np.ndarray,
        first: np.ndarray,
        dtype: str | None = None,
        weights: np.ndarray | None = None,
        **options: Any,
    ):
        self.n_runs += 1
        init = self.folder / f"first-{self.n_runs}.npy"
        np.save(init, first)
        settings = {"algorithm": "lloyd", "tol": 0.0, "init": str(init), **options}
        return fit(
            open_source(array, dtype=dtype) if dtype else open_source(array),
            FitConfig(k=len(first), **settings),
            CPU,
            self.last,
            resume=False,
            stop_request=StopRequest(),
            weights=None if weights is None else open_weights(weights, len(array)),
        )

    @property
    def last(self) -> Path:
        return self.folder / f"run-{self.n_runs}"

    def evaluate(
        self, array: np.ndarray, weights: np.ndarray | None = None, **options: Any
    ) -> Evaluation:
        return evaluate(
            self.last,
            open_source(array),
            CPU,
            stop_request=StopRequest(),
            weights=None if weights is None else open_weights(weights, len(array)),
            **options,
        )


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def exact(model: Model) -> np.ndarray:
    """Centroids in the space of the input, without the rounding of centroids.npy."""
    centroids: np.ndarray = model.scaling.inverse(model.centroids_KD).numpy()
    return centroids


# Breaks when anything between the array and the centroids alters a value, drops a row,
# or stops a pass early; and when evaluate's inertia is another than scikit-learn's score.
@pytest.mark.parametrize("batch_rows", [None, 37])
@on_data_sets
def test_lloyd_is_scikit_learn_s(runs: Runs, data: DataSet, batch_rows: int | None) -> None:
    rows, k = data.rows, data.k
    reference = KMeans(k, init=rows[:k], n_init=1, algorithm="lloyd", tol=0).fit(rows)
    model = runs.fit(rows, rows[:k], batch_rows=batch_rows)
    np.testing.assert_allclose(exact(model), reference.cluster_centers_, rtol=1e-10, atol=1e-10)
    assert model.counts_K.tolist() == np.bincount(reference.labels_, minlength=k).tolist()
    evaluation = runs.evaluate(rows)
    assert evaluation.inertia == pytest.approx(-reference.score(rows), rel=1e-12)
    assert evaluation.sizes == np.bincount(reference.labels_, minlength=k).tolist()
    scores = calinski_harabasz_score, davies_bouldin_score
    expected = [score(rows, reference.labels_) for score in scores]
    found = [evaluation.calinski_harabasz, evaluation.davies_bouldin]
    assert found == pytest.approx(expected, rel=1e-9)
    written = np.load(runs.last / "centroids.npy")
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, reference.cluster_centers_, rtol=1e-6, atol=1e-6)


# Breaks when a kernel's second nearest is not, or the last batch is another mean.
@pytest.mark.parametrize("kernel", ["cpu", "reference"])
def test_the_silhouette_is_numpy_s(runs: Runs, kernel: str) -> None:
    rows, k = IRIS.rows, IRIS.k
    model = runs.fit(rows, rows[:k], epochs=2)
    execution = ExecutionConfig(device="cpu", kernel=kernel)
    found = evaluate(runs.last, open_source(rows), execution, stop_request=StopRequest())
    a, b, _ = np.sort(np.linalg.norm(rows[:, None] - exact(model), axis=2), axis=1).T
    assert found.silhouette == pytest.approx(float(np.mean((b - a) / b)), rel=1e-9)


# Breaks when the first centroids are counted as rows, a mini-batch moves otherwise, or the
# closing pass is no Lloyd step.
@pytest.mark.parametrize("closing_pass", [False, True])
@on_data_sets
def test_minibatch_over_one_batch_is_one_lloyd_step(
    runs: Runs, data: DataSet, closing_pass: bool
) -> None:
    rows, k = data.rows, data.k
    # The rate ``annealed`` counts the first centroids as rows.
    minibatch = runs.fit(
        rows, rows[:k], algorithm="minibatch", batch_rows=len(rows), closing_pass=closing_pass,
        rate="mean",
    )  # fmt: skip
    lloyd = runs.fit(rows, rows[:k], epochs=1 + closing_pass)
    np.testing.assert_allclose(exact(minibatch), exact(lloyd), rtol=1e-12)
    assert minibatch.counts_K.tolist() == lloyd.counts_K.tolist()


def as_stored(rows: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """`rows` as an array of `dtype` (bfloat16 as its bits), and what it holds in float64."""
    if dtype == "bfloat16":
        bits = (rows.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    stored = rows.astype(dtype)
    return stored, stored.astype(np.float64)


# Breaks when values are widened wrongly, or a type's range is overrun on the way:
# digits lie in 0..16, and the large integers need all their bits.
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_stored_dtype_gives_the_centroids_of_its_values(runs: Runs, dtype: str) -> None:
    rows = load_digits().data[:600]
    wide = dtype in {"int32", "uint32", "int64", "uint64", "float64"}
    if wide:
        rows = rows * 7919.0 + 2.0**30
    stored, values = as_stored(rows, dtype)
    reference = runs.fit(values, values[:8], epochs=4)
    model = runs.fit(stored, values[:8], dtype, epochs=4)
    assert str(model.centroids_KD.dtype) == ("torch.float64" if wide else "torch.float32")
    rtol, atol = (1e-13, 0) if wide else (1e-5, 1e-5)
    np.testing.assert_allclose(exact(model), exact(reference), rtol=rtol, atol=atol)
    assert model.counts_K.tolist() == reference.counts_K.tolist()


# Breaks when features are scaled otherwise than scikit-learn's, or the centroids are
# not brought back to the space of the input.
@pytest.mark.parametrize(
    ("scale", "scaler"), [("zscore", StandardScaler), ("minmax", MinMaxScaler)]
)
@on_data_sets
def test_scaling_is_scikit_learn_s_pipeline(runs: Runs, data: DataSet, scale: str, scaler) -> None:
    rows, k = data.rows, data.k
    first = scaler().fit(rows).transform(rows[:k])
    pipeline = make_pipeline(scaler(), KMeans(k, init=first, n_init=1, tol=0)).fit(rows)
    expected = pipeline[0].inverse_transform(pipeline[1].cluster_centers_)
    model = runs.fit(rows, rows[:k], scale=scale)
    np.testing.assert_allclose(exact(model), expected, rtol=1e-9, atol=1e-9)
    # In the scaled space, where distances were taken.
    assert runs.evaluate(rows).inertia == pytest.approx(-pipeline.score(rows), rel=1e-10)


# Breaks when rows are normalised but centroids are not, or distances are of the input.
def test_l2_is_scikit_learn_on_normalised_rows(runs: Runs) -> None:
    rows = load_digits().data
    unit = normalize(rows)
    reference = KMeans(10, init=unit[:10], n_init=1, algorithm="lloyd", tol=0).fit(unit)
    model = runs.fit(rows, rows[:10], scale="l2")
    np.testing.assert_allclose(exact(model), reference.cluster_centers_, rtol=1e-9, atol=1e-12)
    assert runs.evaluate(rows).inertia == pytest.approx(reference.inertia_, rel=1e-10)


# Breaks when the rule for rows of zeros with cosine (label 0) is taken for that of L2 scaling,
# where they lie at the origin and the shortest centroid is the nearest.
def test_rows_of_zeros_are_at_the_origin_with_l2_and_in_cluster_0_with_cosine(runs, rng) -> None:
    rows = np.concatenate((rng.normal([5, 0, 0], 0.2, (300, 3)), np.zeros((40, 3))))
    rows[150:300] = rng.normal(0, 1, (150, 3))
    first = np.array([[1.0, 0, 0], [0, 0.3, 0.3]])
    model = runs.fit(rows, first, scale="l2", epochs=20)
    lengths = np.linalg.norm(exact(model), axis=1)
    assert lengths[1] < lengths[0]
    sizes = runs.evaluate(rows).sizes
    assert sizes == model.counts_K.tolist()
    assert sizes[1] >= 40
    model = runs.fit(rows, first, metric="cosine", epochs=300)
    evaluation = runs.evaluate(rows)
    assert evaluation.sizes == model.counts_K.tolist()
    assert evaluation.inertia == pytest.approx(model.inertia, rel=1e-9)
    bare = runs.fit(rows[:300], first, metric="cosine", epochs=300)
    assert (model.counts_K - bare.counts_K).tolist() == [40, 0]
    np.testing.assert_allclose(exact(model), exact(bare), rtol=1e-12)


def test_cosine_centroids_have_unit_length(runs: Runs) -> None:
    model = runs.fit(load_digits().data, load_digits().data[:10], metric="cosine")
    np.testing.assert_allclose(np.linalg.norm(exact(model), axis=1), 1, rtol=1e-12)


# Breaks when a row without a direction is picked as one: the centroid of zeros then
# attracts zero rows only, has no sum to move it, and stays.
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_of_zeros_never_become_cosine_centroids(runs: Runs, rng, seed: int) -> None:
    rows = np.concatenate((rng.normal([5, 0, 0], 0.2, (500, 3)), np.zeros((500, 3))))
    model = runs.fit(rows, rows[:3], metric="cosine", init="k-means++", seed=seed)
    np.testing.assert_allclose(np.linalg.norm(exact(model), axis=1), 1, rtol=1e-12)


# Breaks without centring: float32 holds these values, but not their squares.
def test_float32_far_from_the_origin(runs: Runs, rng) -> None:
    centres = 1e6 + 20 * rng.normal(size=(5, 4))
    labels = np.arange(2000) % 5
    rows = (centres[labels] + rng.normal(size=(2000, 4))).astype(np.float32)
    wide = rows.astype(np.float64)
    reference = KMeans(5, init=wide[:5], n_init=1, algorithm="lloyd", tol=0).fit(wide)
    model = runs.fit(rows, wide[:5])
    assert model.counts_K.tolist() == [400] * 5
    np.testing.assert_allclose(exact(model), reference.cluster_centers_, rtol=0, atol=1e-4)
    assert runs.evaluate(rows).inertia == pytest.approx(reference.inertia_, rel=1e-5)


# Breaks when rows with NaN are counted, or refused with "drop", or passed with "error".
def test_dropped_rows_are_as_if_they_were_not_there(runs: Runs) -> None:
    rows = load_iris().data
    with_nan = np.insert(rows, [5, 50, 150], np.nan, axis=0)
    clean = runs.fit(rows, rows[:3])
    dropped = runs.fit(with_nan, rows[:3], nan="drop")
    np.testing.assert_allclose(exact(dropped), exact(clean), rtol=1e-12)
    evaluation = runs.evaluate(with_nan)
    assert (evaluation.n_rows, evaluation.n_dropped) == (150, 3)
    with pytest.raises(NonFiniteError, match="row 5 "):
        runs.fit(with_nan, rows[:3])


# Breaks when a seed, or the threads that read, leave a trace in the bits.
def test_the_same_fit_gives_the_same_bits(runs: Runs) -> None:
    rows = load_digits().data.astype(np.float32)
    settings: dict[str, Any] = {"algorithm": "minibatch", "epochs": 2, "batch_rows": 100}
    one, same, other = (
        runs.fit(rows, rows[:10], seed=seed, **settings).centroids_KD.numpy().tobytes()
        for seed in (0, 0, 1)
    )
    assert one == same != other


# ---- weights ----------------------------------------------------------------


# Breaks when weights come to other rows than theirs, or not to the inertia.
@pytest.mark.parametrize("batch_rows", [None, 37])
@on_data_sets
def test_weighted_lloyd_is_scikit_learn_s(runs: Runs, rng, data: DataSet, batch_rows) -> None:
    rows, k = data.rows, data.k
    weights = rng.exponential(size=len(rows)) * (rng.uniform(size=len(rows)) > 0.1)
    reference = KMeans(k, init=rows[:k], n_init=1, algorithm="lloyd", tol=0)
    reference.fit(rows, sample_weight=weights)
    model = runs.fit(rows, rows[:k], weights=weights, batch_rows=batch_rows)
    np.testing.assert_allclose(exact(model), reference.cluster_centers_, rtol=1e-9, atol=1e-9)
    assert model.inertia == pytest.approx(reference.inertia_, rel=1e-9)
    of_clusters = np.bincount(reference.labels_, weights, minlength=k)
    np.testing.assert_allclose(model.weights_K, of_clusters, rtol=1e-12)
    evaluation = runs.evaluate(rows, weights)
    expected = -reference.score(rows, sample_weight=weights)
    assert evaluation.inertia == pytest.approx(expected, rel=1e-9)
    assert evaluation.inertia_per_row == pytest.approx(expected / weights.sum(), rel=1e-9)
    np.testing.assert_allclose(evaluation.weights or [], of_clusters, rtol=1e-12)
    assert evaluation.sizes == model.counts_K.tolist()
    assert sum(evaluation.sizes) == evaluation.n_rows == np.count_nonzero(weights)


# Breaks when the statistics that rows are scaled by know nothing of the weights.
@on_data_sets
def test_weighted_z_scores_are_scikit_learn_s(runs: Runs, rng, data: DataSet) -> None:
    rows, k = data.rows, data.k
    weights = rng.exponential(size=len(rows))
    scaler = StandardScaler().fit(rows, sample_weight=weights)
    first = scaler.transform(rows[:k])
    reference = KMeans(k, init=first, n_init=1, tol=0)
    reference.fit(scaler.transform(rows), sample_weight=weights)
    expected = scaler.inverse_transform(reference.cluster_centers_)
    model = runs.fit(rows, rows[:k], weights=weights, scale="zscore")
    np.testing.assert_allclose(exact(model), expected, rtol=1e-8, atol=1e-8)


# Breaks when a weight of 2 is anything but the row twice, wherever it passes through.
@pytest.mark.parametrize("options", [{}, {"metric": "cosine"}, {"scale": "minmax"}], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_whole_weights_are_repetitions(runs: Runs, rng, options, dtype: str) -> None:
    rows = load_digits().data.astype(dtype)
    weights = rng.integers(0, 4, len(rows))
    repeated = np.repeat(rows, weights, axis=0)
    one = runs.fit(rows, rows[:10].astype(float), weights=weights, **options)
    other = runs.fit(repeated, rows[:10].astype(float), **options)
    np.testing.assert_allclose(exact(one), exact(other), rtol=1e-4, atol=1e-4)
    assert one.weights_K.tolist() == other.counts_K.tolist()
    assert one.inertia == pytest.approx(other.inertia, rel=1e-4)


# Breaks when rows of weight 0 are picked, or their places drawn for empty clusters.
@pytest.mark.parametrize("init", ["random", "k-means++"])
@pytest.mark.parametrize("algorithm", ["minibatch", "lloyd"])
def test_rows_of_weight_0_never_become_centroids(runs: Runs, rng, init, algorithm) -> None:
    rows = rng.normal(size=(900, 3))
    weights = rng.uniform(1, 2, 900)
    rows[::3], weights[::3] = 1e6, 0
    for seed in range(3):
        model = runs.fit(
            rows, rows[:20], weights=weights, algorithm=algorithm, init=init, seed=seed
        )
        assert np.abs(exact(model)).max() < 10
        assert model.counts_K.sum() == 600
        assert (model.counts_K > 0).all()


def test_one_weight_for_all_is_no_weight(runs: Runs) -> None:
    rows = load_digits().data
    one = runs.fit(rows, rows[:10], algorithm="minibatch", weights=np.full(len(rows), 0.25))
    other = runs.fit(rows, rows[:10], algorithm="minibatch")
    np.testing.assert_allclose(exact(one), exact(other), rtol=1e-12, atol=1e-12)
    assert one.inertia == pytest.approx(0.25 * (other.inertia or 0))
