"""Values at the ends of what numbers can hold, compared with float64 and scikit-learn.

Every check is made through whole fits and predictions: seeding, scaling, passes, what is
saved and what is reported each could lose, or make up, digits of their own.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sklearn.cluster import KMeans as ScikitKMeans

from streamkm import KMeans, MiniBatchKMeans
from streamkm.config import ExecutionConfig, FitConfig
from streamkm.errors import NonFiniteError, SourceError, StreamkmError
from streamkm.kernels import KernelRequest, make_kernel
from streamkm.runs.evaluate import evaluate
from streamkm.runs.fit import fit
from streamkm.runs.in_memory import distance_rows, label_rows
from streamkm.runs.predict import predict
from streamkm.runs.reporting.signals import StopRequest
from streamkm.sources import open_source
from tests.runs.helpers import Job, every

K, N, D = 4, 240, 3
TRUTH = np.arange(N) % K
KERNELS = ("cpu", "reference")
ALGORITHMS: dict[str, dict[str, Any]] = {
    "minibatch": {"epochs": 2},
    "lloyd": {"epochs": 30, "tol": 0.0},
}
SPACES = [("none", "euclidean"), ("zscore", "euclidean"), ("minmax", "euclidean"),
          ("l2", "euclidean"), ("none", "cosine")]  # fmt: skip


def blobs() -> np.ndarray:
    """Four clusters 13 apart or more, of deviation 1; float64."""
    rng = np.random.default_rng(0)
    centres = rng.permutation(np.arange(K * D).reshape(K, D) - K * D / 2) * 40 / D
    return centres[TRUTH] + rng.normal(size=(N, D))


def at_ends(dtype: str) -> np.ndarray:
    """Four clusters of integers, two of which hold the ends of the type."""
    info = np.iinfo(dtype)
    span = int(info.max) - int(info.min)
    rng = np.random.default_rng(1)
    rows = np.empty((N, D), dtype)
    for row, cluster in enumerate(TRUTH):
        steps = rng.integers(0, max(span // 60, 1), D).tolist()
        low = int(info.min) + span // 3 * int(cluster)
        ends = (info.min, low, low, info.max)
        rows[row] = [int(ends[cluster]) + (-step if cluster == 3 else step) for step in steps]
    return rows


X = blobs()


@dataclass(frozen=True)
class Case:
    """Rows of four clusters."""

    name: str
    rows: np.ndarray
    refused: tuple[str, ...] = ()
    """Scales that would be to divide by what float32 cannot hold."""


CASES = [
    *(Case(f"float32 of 1e{e}", (X * 10.0**e).astype(np.float32)) for e in (30, 15, -15, -21, -30)),
    Case("float32 of 1e-42", (X * 10.0**-42).astype(np.float32), ("zscore", "minmax")),
    *(Case(f"float64 of 1e{e}", X * 10.0**e) for e in (35, -35)),
    Case("float32 about 1e6", (X + 1e6).astype(np.float32)),
    Case("float64 about 1e9", X + 1e9),
    Case("float16 to 65504",
         np.clip(X / np.abs(X).max() * 65504, -65504, 65504).astype(np.float16)),
    *(Case(f"{dtype} at its ends", at_ends(dtype))
      for dtype in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")),
    Case("a constant column", np.c_[X, np.full(N, 1e7)].astype(np.float32)),
    Case("a constant column of 1e30", np.c_[X, np.full(N, 1e30)].astype(np.float32)),
    Case("duplicates", np.tile(X[:K], (N // K, 1))),
    Case("as many clusters as rows", X[:K].astype(np.float32)),
]  # fmt: skip


def fitted(rows, *, kernel="auto", algorithm: Any = "lloyd", k=K, **settings: Any):
    settings = {**ALGORITHMS[algorithm], **settings}
    config = FitConfig(k=k, algorithm=algorithm, seed=3, **settings)
    return fit(
        open_source(rows), config, execution(kernel), None,
        resume=False, stop_request=StopRequest(), quiet=True,
    )  # fmt: skip


def execution(kernel="auto"):
    return ExecutionConfig(device="cpu", kernel=kernel, read_threads=0)


def scaled(rows, model):
    """Rows where distances are taken, in more than float64."""
    wide = rows.astype(np.longdouble)
    if not model.scaling.normalize:
        return (wide - model.scaling.shift_D.numpy()) * model.scaling.factor_D.numpy()
    lengths = np.sqrt((wide**2).sum(axis=1, keepdims=True))
    return wide / np.where(lengths > 0, lengths, 1)


def check_labels(rows, model, kernel):
    """Labels are the nearest centroids, and the inertia is their sum, by wide arithmetic."""
    labels, inertia = label_rows(model, open_source(rows), execution(kernel), nan="error")
    wide = scaled(rows, model)
    centroids = model.centroids_KD.double().numpy()
    assert np.isfinite(centroids).all()
    assert np.isfinite(model.centroids).all()
    sq_distances = ((wide[:, None] - centroids) ** 2).sum(axis=2)
    mine = sq_distances[np.arange(len(rows)), labels]
    # What rounding a scaled row to the kernel's dtype can do; exact where nothing is scaled.
    eps = np.finfo(str(model.centroids_KD.dtype).removeprefix("torch.")).eps
    moved = 4 * eps * np.sqrt((wide**2).sum(axis=1))
    if model.scaling.keeps_units and not model.scaling.normalize:
        moved = moved * 0
    best = sq_distances.min(axis=1)
    # A row of zeros has no direction, and may have any label.
    decided = rows.any(axis=1) | (not model.scaling.normalize)
    assert (mine <= best * (1 + 1e-9) + 2 * moved * np.sqrt(best) + moved**2)[decided].all()
    expected = float(mine.sum()) / model.scaling.unit**2
    slack = float((2 * moved * np.sqrt(mine) + moved**2).sum()) / model.scaling.unit**2
    assert inertia == pytest.approx(expected, rel=1e-5, abs=slack)
    return labels


def check_means(rows, model, labels):
    """The clusters are the true ones, and each centroid the mean of its rows."""
    wide = rows.astype(np.longdouble)
    truth = TRUTH[: len(rows)]
    pairs = set(zip(truth.tolist(), labels.tolist(), strict=True))
    assert len(pairs) == K
    spread = np.abs(wide - wide.mean(axis=0)).max(axis=0)
    for cluster, label in pairs:
        mean = wide[truth == cluster].mean(axis=0)
        error = np.abs(model.centroids[label] - mean)
        # Float32 of the result, below the normal numbers too, and of the sums.
        assert (error <= 4e-6 * spread + 1.2e-7 * np.abs(mean) + 1.5e-45).all()


# WRONG wherever a square overflows or vanishes, integers wrap, a mean drowns the digits, or equal
# values are divided by their deviation: in seeding (two clusters get one centroid), in labels, in
# means, in what is reported.
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_clusters_means_and_inertia_are_those_of_wide_arithmetic(case):
    rows = case.rows
    for number, (scale, metric) in enumerate(SPACES):
        for kernel, algorithm in zip(KERNELS, sorted(ALGORITHMS, reverse=number % 2 == 0),
                                     strict=True):  # fmt: skip
            settings = {"kernel": kernel, "algorithm": algorithm, "scale": scale, "metric": metric}
            if scale in case.refused:
                with pytest.raises(SourceError, match=r"feature 0 differ by 1.*multiply the data"):
                    fitted(rows, **settings)
                continue
            model = fitted(rows, **settings)
            labels = check_labels(rows, model, kernel)
            if (scale, metric) in SPACES[:3]:
                check_means(rows, model, labels)


# WRONG when the factor is no power of two, or is left in anything that is reported.
@pytest.mark.parametrize("exponent", [-100, -60, 90, 100])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_power_of_two_times_the_data_is_the_same_clustering_to_the_bit(algorithm, exponent):
    rows = X.astype(np.float32)
    larger = rows * np.float32(2.0**exponent)
    before, after = (fitted(each, algorithm=algorithm) for each in (rows, larger))
    assert before.scaling.unit == 1 != after.scaling.unit
    assert (after.centroids == before.centroids * np.float32(2.0**exponent)).all()
    assert after.inertia == before.inertia * 4.0**exponent
    assert torch.equal(after.counts_K, before.counts_K)
    assert after.figures["epoch_inertia"] == before.figures["epoch_inertia"] * 4.0**exponent
    one, other = (
        distance_rows(model, open_source(each), execution(), nan="error")
        for model, each in ((before, rows), (after, larger))
    )
    assert (other == one * np.float32(2.0**exponent)).all()


@pytest.mark.parametrize("magnitude", [1e30, 1e-30])
def test_a_run_of_such_data_is_resumed_evaluated_and_predicted(magnitude, tmp_path):
    rows = (X * magnitude).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    settings = {"k": K, "algorithm": "lloyd", "epochs": 20, "tol": 0.0, "batch_rows": 40}
    whole = Job(tmp_path / "x.npy", tmp_path / "whole", settings)
    stopped = Job(tmp_path / "x.npy", tmp_path / "stopped", settings)
    whole.attempt(resume=False)
    for stop_at in (3, 5, 9):
        stopped.interrupted(stop_at, checkpoint_every=every(1))
    stopped.attempt()
    assert stopped.results == whole.results
    source = open_source(tmp_path / "x.npy")
    evaluation = evaluate(whole.run, source, execution(), stop_request=StopRequest())
    reference = ScikitKMeans(K, n_init=10, random_state=0).fit(X)
    assert evaluation.inertia == pytest.approx(reference.inertia_ * magnitude**2, rel=1e-5)
    predict(
        whole.run, source, execution(), labels=tmp_path / "labels.npy",
        distances=tmp_path / "distances.npy", resume=False, stop_request=StopRequest(),
    )  # fmt: skip
    nearest = reference.transform(X).min(axis=1) * magnitude
    np.testing.assert_allclose(np.load(tmp_path / "distances.npy"), nearest, rtol=1e-4)
    pairs = set(zip(np.load(tmp_path / "labels.npy"), reference.labels_, strict=True))
    assert len(pairs) == K


# WRONG when float32 decides among distances that lie below its normal numbers: there it rounds to
# a fixed step, which is no share of them.
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [1e-19, 1e-20, 1e-21, 1e-22, 1e-24])
def test_labels_of_rows_whose_squares_vanish(kernel, size):
    rng = np.random.default_rng(2)
    # (And some of ordinary size, so that a common factor cannot help.)
    scale = np.r_[np.full(300, size), np.ones(20)][:, None]
    x = torch.from_numpy((rng.normal(size=(320, 5)) * scale).astype(np.float32))
    centroids = torch.from_numpy((rng.normal(size=(24, 5)) * scale[-44:-20]).astype(np.float32))
    arithmetic = make_kernel(kernel, KernelRequest(320, 24, torch.float32, torch.device("cpu")))
    sq_norms = x.double().square().sum(dim=1).float()
    labels = arithmetic.assign(x, sq_norms, centroids).labels_B
    expected = (x.double()[:, None] - centroids.double()).square().sum(dim=2).argmin(dim=1)
    assert torch.equal(labels, expected)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (X * 1e200, {}, r"reach 8.3e\+201 .*centroids are float32.*multiply the data"),
        (X * 1e200, {"scale": "minmax"}, r"reach 8.3e\+201 .*multiply the data"),
        (X * 1e-200, {}, r"reach 8.3e-199 .*multiply the data"),
        (X * 1e-200, {"scale": "zscore"}, r"reach 8.3e-199 .*multiply the data"),
        (np.r_[X, [[np.inf, 0, 0]]], {}, r"row 240 holds inf"),
        # 70000 is no float16.
        (np.r_[X, [[-np.inf, 0, 0]]].astype(np.float16), {}, r"row 240 holds -inf \(feature 0"),
    ],
    ids=["1e200", "1e200 minmax", "1e-200", "1e-200 zscore", "inf", "float16"],
)  # fmt: skip
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_cannot_be_represented_is_refused_by_name(rows, settings, message, algorithm):
    with pytest.raises((SourceError, NonFiniteError), match=message):
        fitted(rows, algorithm=algorithm, **settings)


# WRONG when rows are refused for a length that division by it takes away.
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("settings", [{"metric": "cosine"}, {"scale": "l2"}], ids=["cosine", "l2"])
def test_directions_do_not_depend_on_lengths(settings, dtype):
    large, small = (1e30, 1e-30) if dtype == "float32" else (1e200, 1e-200)
    lengths = np.where(np.arange(N) % 3 == 0, large, np.where(np.arange(N) % 3 == 1, 1, small))
    before = fitted(X.astype(dtype), **settings)
    after = fitted((X * lengths[:, None]).astype(dtype), **settings)
    a, _ = label_rows(before, open_source(X.astype(dtype)), execution(), nan="error")
    b, _ = label_rows(
        after, open_source((X * lengths[:, None]).astype(dtype)), execution(), nan="error"
    )
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(after.centroids, before.centroids, atol=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("scale", ["none", "zscore", "minmax"])
@pytest.mark.parametrize(
    ("rows", "k", "n_clusters"),
    [
        (np.full((1, 1), 1e30, np.float32), 1, 1),
        (np.full((50, 3), 3.0, np.float32), 4, 1),
        (np.zeros((50, 3), np.float32), 4, 1),
        (np.repeat(X[:3], 20, axis=0), 5, 3),
        (np.linspace(-1e-38, 1e-38, 9, dtype=np.float32)[:, None], 9, 9),
        (np.array([[0], [2**-149]], np.float32), 2, 2),
    ],
    ids=["one row", "all equal", "all zero", "three distinct rows", "one feature", "denormal"],
)
def test_degenerate_arrays(rows, k, n_clusters, scale, algorithm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            model = fitted(rows, k=k, algorithm=algorithm, scale=scale)
        except StreamkmError as error:
            assert scale != "none"
            assert "multiply the data" in str(error)  # noqa: PT017  one of two ends
            return
    labels = check_labels(rows, model, "auto")
    assert len(set(labels.tolist())) == n_clusters
    assert int((model.counts_K > 0).sum()) == n_clusters
    # Every row lies on its centroid.
    np.testing.assert_allclose(model.centroids[labels], rows, rtol=1e-6, atol=1e-45)


# The limits that docs/reliability.md names, so that they are known to be no worse.
def test_64_bit_integers_beyond_2_to_53_are_rounded_to_float64():
    rows = np.array([[2**62], [2**62 + 1], [2**62 + 4096]], np.int64)
    model = fitted(rows, k=2)
    labels, _ = label_rows(model, open_source(rows), execution(), nan="error")
    assert labels[0] == labels[1] != labels[2]


@pytest.fixture(params=[True, False], ids=["compiled", "torch"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extension, and without it."""
    if not request.param:
        for module in ("cpu", "ops.distances", "ops.offer", "ops.move"):
            monkeypatch.setattr(f"streamkm.kernels.{module}.instruction_sets", tuple)


def far_groups(far: float, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 16 clusters 5 apart, of deviation 0.1, in two groups `far` from the origin."""
    truth = rng.integers(0, 16, n)
    centres = np.array([[side * far, 5 * place] for side in (1, -1) for place in range(8)])
    return centres[truth] + rng.normal(size=(n, 2)) * 0.1, truth


def within(rows: np.ndarray, labels: np.ndarray) -> float:
    """Sum of squared distances to the means of the labels, in float64."""
    rows = rows.astype(np.float64)
    return sum(
        float(np.square(rows[labels == label] - rows[labels == label].mean(axis=0)).sum())
        for label in np.unique(labels)
    )


# Breaks where seeding takes distances by |x|^2 - 2 x.c + |c|^2 alone: up to 3,000 times the
# inertia.
@pytest.mark.parametrize("init", ["auto", "k-means++", "k-means||"])
@pytest.mark.parametrize("far", [1e4, 3e4, 1e5])
@pytest.mark.usefixtures("compiled")
def test_seeding_of_groups_far_apart(far, init):
    rows, truth = far_groups(far, 4000, np.random.default_rng(0))
    rows = rows.astype(np.float32)
    found = KMeans(16, init=init, random_state=0).fit(rows)
    assert found.inertia_ <= 1.05 * within(rows, truth)
    if init == "auto":
        found = MiniBatchKMeans(16, random_state=0).fit(rows)
        assert found.inertia_ <= 1.05 * within(rows, truth)


# Breaks where any distance depends on where the origin is, or on the unit of the data.
@examples(max_examples=8, deadline=None)
@given(
    far=st.floats(1e2, 1e5), shift=st.sampled_from([0.0, 1e3, -1e5]),
    exponent=st.integers(-60, 60), seed=st.integers(0, 99),
)  # fmt: skip
def test_groups_far_apart_wherever_they_lie(far, shift, exponent, seed):
    rows, truth = far_groups(far, 2000, np.random.default_rng(seed))
    rows = ((rows + shift) * 2.0**exponent).astype(np.float32)
    found = KMeans(16, random_state=seed).fit(rows)
    # Another seeding than the best costs 100 times as much, noise of the data nothing.
    assert found.inertia_ <= 1.05 * within(rows, truth)


def test_seeding_of_degrees_of_latitude_and_longitude():
    rng = np.random.default_rng(0)
    cities = np.array([[48.85, 2.35], [-33.87, 151.2], [40.71, -74.0], [35.68, 139.7]])
    city, place = rng.integers(0, 4, 9000), rng.integers(0, 12, 9000)
    rows = cities[city] + place[:, None] * [0.004, 0.003] + rng.normal(size=(9000, 2)) * 2e-4
    rows = rows.astype(np.float32)
    found = KMeans(48, random_state=0).fit(rows)
    assert found.inertia_ <= 1.05 * within(rows, 12 * city + place)


# Breaks where rows near a centroid, beside their length, count as lying on it.
@pytest.mark.parametrize(("far", "dtype"), [(1e4, "f4"), (1e6, "f4"), (1e8, "f8")])
def test_empty_clusters_get_rows_of_groups_far_apart(far, dtype, capsys):
    rng = np.random.default_rng(0)
    centres = np.array([[far, 0.5], [far, -0.5], [-far, 0.5], [-far, -0.5]])
    rows = (centres[TRUTH] + rng.normal(size=(N, 2)) * 0.05).astype(dtype)
    starts = np.array([[far, 0], [-far, 0], [0, 10 * far], [0, 20 * far]])
    found = KMeans(4, init=starts, random_state=0, verbose=1).fit(rows)
    assert np.bincount(found.labels_, minlength=4).min() > 0
    assert "have no row" not in capsys.readouterr().err


# Breaks where sums of a batch, or parts of them, are float32.
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("n", [10, 1000, 30_000])
def test_equal_rows_are_their_centroid(n):
    rng = np.random.default_rng(0)
    distinct = (rng.normal(size=(3, 4)) * 37).astype(np.float32)
    rows = np.repeat(distinct, n, axis=0)[rng.permutation(3 * n)]
    found = KMeans(3, random_state=0).fit(rows)
    assert np.array_equal(found.cluster_centers_[found.labels_], rows)
    assert found.inertia_ == 0
    two = np.repeat(np.array([[1000001.0], [-1000001.0]], np.float32), n, axis=0)
    found = KMeans(2, random_state=0).fit(two[rng.permutation(2 * n)])
    assert sorted(found.cluster_centers_.ravel().tolist()) == [-1000001.0, 1000001.0]
    assert found.inertia_ == 0


# Breaks where weights are divided by the heaviest in float32: light rows then sum up to 0.
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("light", [1e-30, 1e-42, 1e-60, 1e-200])
def test_rows_of_little_weight_keep_their_centroid(light):
    weights = np.where(TRUTH == 0, 1.0, light)
    rows = X.astype(np.float32)
    found = KMeans(K, init=X[:K]).fit(rows, sample_weight=weights)
    for label in range(K):
        mean = rows[label == TRUTH].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(found.cluster_centers_[label], mean, rtol=1e-6)


# Breaks where distances are expanded: those of rows on a centroid would be a millionth of their
# length.
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_distances_to_all_centroids_keep_small_ones(dtype):
    rng = np.random.default_rng(0)
    rows = (np.array([[1e6, -2e6, 3e6], [-1e6, 2e6, 1.0]])[np.arange(40) % 2]
            + rng.normal(size=(40, 3)).round(2)).astype(dtype)  # fmt: skip
    found = KMeans(30, init=rows[:30].astype("f4"), algorithm="lloyd", max_iter=1).fit(rows)
    centroids = found.cluster_centers_.astype(np.float64)
    exact = np.sqrt(np.square(rows[:, None].astype(np.float64) - centroids).sum(axis=2))
    distances = found.transform(rows)
    np.testing.assert_allclose(distances, exact, rtol=1e-6, atol=1e-9)
    if dtype == "f4":
        assert (
            distances.min(axis=1)[(rows[:, None] == centroids).all(axis=2).any(axis=1)] == 0
        ).all()
