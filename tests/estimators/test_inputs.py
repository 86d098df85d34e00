"""Kinds of X that the estimators take, and kinds that they refuse."""

from __future__ import annotations

import tracemalloc
import warnings
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
import zarr
from sklearn import get_config
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from streamkm import (
    BisectingKMeans,
    KMeans,
    MiniBatchKMeans,
    k_means,
    kmeans_plusplus,
    load_run,
    open_source,
)
from streamkm.errors import NonFiniteError, ParameterError, SourceError
from streamkm.stream.tensor_source import TensorSource

BOTH = [KMeans, MiniBatchKMeans]


def blobs(n_rows: int = 600) -> np.ndarray:
    """Four clusters that nobody can miss, in numbers that every type holds."""
    rng = np.random.default_rng(0)
    centres = np.array([[10, 10, 90], [90, 10, 10], [10, 90, 10], [90, 90, 90]])
    return np.asarray(centres[np.arange(n_rows) % 4] + rng.integers(-4, 5, size=(n_rows, 3)))


@pytest.fixture(params=BOTH, ids=lambda estimator: estimator.__name__)
def estimator(request: pytest.FixtureRequest) -> type:
    chosen: type = request.param
    return chosen


def is_found(labels: np.ndarray) -> bool:
    """Whether labels are the clusters of `blobs`, by whatever numbers."""
    quarters = [set(labels[i::4].tolist()) for i in range(4)]
    return all(len(quarter) == 1 for quarter in quarters) and len(set.union(*quarters)) == 4


IN_MEMORY = {
    "list": lambda x: x.tolist(),
    "frame": pd.DataFrame,
    "fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, axis=1)[::1, ::2],
    "objects": lambda x: x.astype(object),
    "tensor": torch.from_numpy,
    "tensor with gradient": lambda x: torch.from_numpy(x).double().requires_grad_(),
    "bfloat16": lambda x: torch.from_numpy(x).to(torch.bfloat16),
}


# Breaks when an input is read as other rows than the array that it stands for.
@pytest.mark.parametrize("kind", IN_MEMORY)
def test_what_is_in_memory(estimator: type, kind: str) -> None:
    x = blobs()
    if kind == "bfloat16":
        x = x // 2 * 2 % 256  # even numbers up to 256 have few enough bits
    given = IN_MEMORY[kind](x)
    kmeans = estimator(4, random_state=0).fit(given)
    assert is_found(kmeans.labels_)
    np.testing.assert_array_equal(kmeans.predict(x), kmeans.labels_)
    np.testing.assert_array_equal(kmeans.predict(given), kmeans.labels_)
    assert kmeans.score(given) == pytest.approx(-kmeans.inertia_, rel=1e-6)
    assert kmeans.counts_.tolist() == np.bincount(kmeans.labels_).tolist()


# Breaks when a type is widened in memory or read wrongly: a tenth of it must be enough.
@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "float16", "float32", "float64", "int64", "bool"]
)
def test_every_dtype(estimator: type, dtype: str) -> None:
    x = (blobs() // 50 if dtype == "bool" else blobs()).astype(dtype)
    kmeans = estimator(4, random_state=0).fit(x)
    assert is_found(kmeans.labels_)
    narrow = dtype in {"uint8", "int8", "int16", "uint16", "float16", "float32"}
    assert kmeans.cluster_centers_.dtype == ("float32" if narrow else "float64")
    assert kmeans.transform(x).dtype == kmeans.cluster_centers_.dtype


def saved(folder: Path, x: np.ndarray) -> Path:
    np.save(folder / "x.npy", x)
    return folder / "x.npy"


ON_DISK = {
    "npy": saved,
    "string": lambda folder, x: str(saved(folder, x)),
    "zarr array": lambda folder, x: zarr.create_array(folder / "x.zarr", data=x, chunks=(100, 3)),
    "zarr cube": lambda folder, x: zarr.create_array(
        folder / "x.zarr", data=x.reshape(20, 30, 3), chunks=(7, 30, 3)
    ),
    "source": lambda folder, x: open_source(x),
}


@pytest.mark.parametrize("kind", ON_DISK)
def test_what_is_on_disk(estimator: type, kind: str, tmp_path: Path) -> None:
    x = blobs()
    given = ON_DISK[kind](tmp_path, x)
    kmeans = estimator(4, random_state=0).fit(given)
    assert not hasattr(kmeans, "labels_")  # they may be more than memory holds
    with pytest.raises(AttributeError, match=r"compute_labels=True; predict\(X\) gives them$"):
        _ = kmeans.labels_
    assert is_found(kmeans.predict(given))
    assert is_found(estimator(4, random_state=0).fit_predict(given))
    labelled = estimator(4, random_state=0, compute_labels=True).fit(given)
    assert is_found(labelled.labels_)
    assert labelled.inertia_ == pytest.approx(-kmeans.score(x), rel=1e-9)
    assert kmeans.transform(given).shape == (600, 4)
    assert kmeans.n_features_in_ == 3


# Breaks when a path is read into an array: 64 MB here, of which a fit may hold a window each.
def test_what_is_on_disk_is_streamed(tmp_path: Path) -> None:
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (1 << 20, 64))
    x[:] = (np.arange(1 << 20) % 4 * 50).astype(np.uint8)[:, None]
    x.flush()
    chunked = zarr.create_array(tmp_path / "x.zarr", data=np.asarray(x), chunks=(1 << 14, 64))
    tracemalloc.start()
    try:
        for given in (tmp_path / "x.npy", chunked, np.load(tmp_path / "x.npy", mmap_mode="r")):
            kmeans = MiniBatchKMeans(4, max_host_memory="200MiB")
            kmeans.fit(given)
            assert np.ptp(kmeans.counts_) == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40e6


def test_a_source_stays_open_and_a_path_does_not(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", blobs())
    source = open_source(tmp_path / "x.npy")
    kmeans = KMeans(4, random_state=0).fit(source)
    assert is_found(kmeans.predict(source))
    source.close()
    with pytest.raises(ValueError, match="closed"):
        kmeans.predict(source)


# Breaks when compute_labels=False still takes the pass, or leaves the labels of another fit.
def test_compute_labels(estimator: type) -> None:
    x = blobs()
    kmeans = estimator(4, random_state=0).fit(x)
    assert hasattr(kmeans, "labels_")
    kmeans.set_params(compute_labels=False).fit(x)
    assert not hasattr(kmeans, "labels_")
    assert kmeans.inertia_ > 0
    assert is_found(kmeans.fit_predict(x))


def test_labels_of_what_was_never_fitted(estimator: type) -> None:
    both: tuple[Any, ...] = (estimator(4), estimator)
    for unfitted in both:
        with pytest.raises(AttributeError, match=r"has no attribute 'labels_'$"):
            _ = unfitted.labels_


# scikit-learn makes numbers of bool in memory; of files only what they say is believed.
def test_bool_in_memory_is_0_and_1_and_on_disk_has_a_remedy(
    estimator: type, tmp_path: Path
) -> None:
    x = blobs() > 50
    assert is_found(estimator(4, random_state=0).fit(x).labels_)
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(SourceError, match=r"not bool; store 0 and 1 as uint8") as caught:
        estimator(4).fit(tmp_path / "x.npy")
    assert "view(numpy.uint8)" in str(caught.value)
    np.save(tmp_path / "x.npy", x.view(np.uint8))
    assert is_found(estimator(4, random_state=0).fit(tmp_path / "x.npy").predict(x))


# What a run says is read by those who wrote Python too: settings without the dashes of flags.
@pytest.mark.parametrize(
    "settings", [{}, {"tol": 1e6}, {"max_iter": 3, "scale": "minmax"}], ids=str
)
def test_what_is_said_names_no_flags(
    estimator: type, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    estimator(4, random_state=0, verbose=1, **settings).fit(blobs())
    said = capsys.readouterr().err
    assert "stopped: " in said
    assert "--" not in said


# Breaks when an array that was given is written to: scaling works in place, elsewhere.
@pytest.mark.parametrize("settings", [{}, {"scale": "zscore"}, {"metric": "cosine"}], ids=str)
def test_the_rows_are_not_changed(estimator: type, settings: dict[str, Any]) -> None:
    x = blobs() + 1e6
    before = x.copy()
    x.flags.writeable = False
    kmeans = estimator(4, random_state=0, **settings).fit(x)
    kmeans.predict(x)
    kmeans.transform(x)
    if estimator is MiniBatchKMeans:
        kmeans.partial_fit(x)
    np.testing.assert_array_equal(x, before)


# Breaks when scikit-learn's check loses the mask, and what lies beneath it is clustered.
@pytest.mark.parametrize("dtype", ["float32", "int16", "int64"])
def test_masked_rows_are_refused_or_dropped(estimator: type, dtype: str) -> None:
    masked = np.ma.array(blobs().astype(dtype))
    masked[5, 1] = masked[9] = np.ma.masked
    with pytest.raises(NonFiniteError, match=r"row 5.*drop"):
        estimator(4, random_state=0).fit(masked)
    kmeans = estimator(4, random_state=0, nan="drop").fit(masked)
    kept = np.setdiff1d(np.arange(len(masked)), [5, 9])
    assert np.flatnonzero(kmeans.labels_ < 0).tolist() == [5, 9]
    assert kmeans.counts_.sum() == len(kept)
    wanted = sorted(blobs()[kept][kept % 4 == i].mean(axis=0).tolist() for i in range(4))
    np.testing.assert_allclose(sorted(kmeans.cluster_centers_.tolist()), wanted, rtol=1e-6)
    assert np.isnan(kmeans.transform(masked)[5]).all()


# Breaks when what lies beneath a mask counts: here a row that would weigh as much as all others.
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "bool"])
def test_masked_weights_are_refused(estimator: type, dtype: str) -> None:
    x = blobs()
    weights: Any = np.ma.array(np.ones(len(x)), dtype=dtype)
    weights.data[7] = len(x)
    weights[[7, 9]] = np.ma.masked
    says = "sample_weight must hold no masked numbers, it holds 2; fill it with 0"
    with pytest.raises(ParameterError, match=says):
        estimator(4, random_state=0).fit(x, sample_weight=weights)
    kmeans = estimator(4, random_state=0).fit(x, sample_weight=weights.filled(0))
    with pytest.raises(ParameterError, match=says):
        kmeans.score(x, sample_weight=weights)
    with pytest.raises(ParameterError, match=says):
        kmeans_plusplus(x, 4, sample_weight=weights)
    weights.mask = False
    assert is_found(kmeans.fit(x, sample_weight=weights).labels_)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_masked_centroids_are_refused(estimator: type, dtype: str) -> None:
    x = blobs()
    first = np.ma.array(x[:4].astype(dtype))
    kmeans = estimator(4, init=first, n_init=1).fit(x)
    first[1, 1] = np.ma.masked
    for init in (first, lambda x, k, random_state: first):
        with pytest.raises(ParameterError, match="init must hold no masked numbers, it holds 1;"):
            estimator(4, init=init, n_init=1).fit(x)
    kmeans.cluster_centers_ = first
    with pytest.raises(ParameterError, match="cluster_centers_ must hold no masked numbers"):
        kmeans.predict(x)


# Breaks when the centroids of a data frame are taken by position, whatever its columns say.
def test_centroids_with_features_in_another_order(estimator: type) -> None:
    frame = pd.DataFrame(blobs(), columns=["a", "b", "c"])
    first = frame.iloc[:4]
    turned = first[["c", "a", "b"]]
    message = "order of those of the data, a, b, c; they are c, a, b"
    for init in (turned, lambda x, k, random_state: turned):
        with pytest.raises(ParameterError, match=message):
            estimator(4, init=init, n_init=1).fit(frame)
    kmeans = estimator(4, init=first, n_init=1).fit(frame)
    for init, x in ((first.to_numpy(), frame), (turned.set_axis([0, 1, 2], axis=1), frame)):
        assert estimator(4, init=init, n_init=1).fit(x).n_features_in_ == 3
    assert is_found(kmeans.labels_)


# Breaks when an error names nan="drop" to those who cannot give it.
def test_errors_about_nan_name_no_parameter_that_is_not_there() -> None:
    x = blobs().astype(np.float32)
    kmeans = BisectingKMeans(4, random_state=0).fit(x)
    cases: list[tuple[float, list[Any]]] = [
        (3e38, [kmeans.predict, kmeans.transform, kmeans.score]),
        (np.nan, [kmeans.predict, BisectingKMeans(4).fit, lambda x: k_means(x, 4)]),
    ]
    for value, calls in cases:
        spoiled = x.copy()
        spoiled[7] = value
        rows = "rows with NaN or infinity" if np.isnan(value) else "such rows"
        for call in calls:
            with pytest.raises(NonFiniteError, match=rf"row 7 .*; leave {rows} out$"):
                call(spoiled)


def sparse_blobs(dtype: str = "float32") -> np.ndarray:
    """Four groups of rows, half of whose features are 0."""
    x = np.tile(blobs(), 2).astype(dtype)
    x[np.random.default_rng(3).random(x.shape) < 0.5] = 0
    return x


# Breaks when a sparse row loses an entry, or takes a way of its own with weights or scaling.
@pytest.mark.parametrize(
    "settings", [{}, {"scale": "zscore"}, {"metric": "cosine"}, {"init": "k-means||"}], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
def test_sparse_rows_give_what_dense_rows_give(
    estimator: type, dtype: str, settings: dict[str, Any]
) -> None:
    dense = sparse_blobs(dtype)
    sparse = scipy.sparse.csr_matrix(dense)
    weights = np.random.default_rng(0).random(len(dense))
    one, other = (
        estimator(4, random_state=0, **settings).fit(x, sample_weight=weights)
        for x in (dense, sparse)
    )
    np.testing.assert_allclose(other.cluster_centers_, one.cluster_centers_, rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(other.labels_, one.labels_)
    np.testing.assert_array_equal(other.predict(sparse), one.labels_)
    np.testing.assert_array_equal(one.transform(sparse), one.transform(dense))
    assert one.score(sparse, sample_weight=weights) == one.score(dense, sample_weight=weights)
    assert other.inertia_ == pytest.approx(one.inertia_)


@pytest.mark.parametrize("kind", ["csc", "coo"])
def test_partial_fit_and_a_callable_init_take_sparse_rows(kind: str) -> None:
    dense = sparse_blobs()
    sparse = scipy.sparse.coo_array(dense).asformat(kind)
    seen = []

    def first(rows: Any, k: int, random_state: Any) -> np.ndarray:
        seen.append(rows.format)
        return np.asarray(rows[:k].toarray())

    kmeans = MiniBatchKMeans(4, init=first, random_state=0).partial_fit(sparse).partial_fit(sparse)
    wanted = MiniBatchKMeans(4, init=dense[:4]).partial_fit(dense).partial_fit(dense)
    assert seen == ["csr"] * 3  # scikit-learn's number of calls
    np.testing.assert_array_equal(kmeans.cluster_centers_, wanted.cluster_centers_)


# Breaks when the array in shared memory that joblib hands to its workers is taken for a file.
def test_a_memory_map_is_an_array_in_memory(estimator: type, tmp_path: Path) -> None:
    x = blobs()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    one, other = (estimator(4, random_state=0).fit(rows) for rows in (x, mapped))
    np.testing.assert_array_equal(one.labels_, other.labels_)
    estimator(4, init=lambda rows, k, random_state: rows[:k], random_state=0).fit(mapped)


def test_a_dask_array_is_streamed(estimator: type) -> None:
    dask_array = pytest.importorskip("dask.array")
    x = blobs().astype("float32")
    one, other = (
        estimator(4, random_state=0, compute_labels=True).fit(rows)
        for rows in (x, dask_array.from_array(x, chunks=(150, 3)))
    )
    np.testing.assert_allclose(other.cluster_centers_, one.cluster_centers_)
    assert not hasattr(estimator(4).fit(dask_array.from_array(x, chunks=(150, 3))), "labels_")


def test_sparse_rows_of_bool_are_numbers(estimator: type) -> None:
    dense = sparse_blobs() != 0
    one, other = (
        estimator(4, random_state=0).fit(x) for x in (dense, scipy.sparse.csr_matrix(dense))
    )
    np.testing.assert_array_equal(other.labels_, one.labels_)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones(5), ValueError, "Reshape your data"),
        (np.ones((2, 3, 4)), ValueError, "dim 3"),
        (np.ones((0, 3)), ValueError, "0 sample"),
        (np.ones((3, 0)), ValueError, "0 feature"),
        (np.ones((3, 2)) * 1j, ValueError, "[Cc]omplex"),
        ([["a", "b"]] * 9, ValueError, "could not convert"),
        (np.ones((3, 2)), ParameterError, "n_samples=3 should be >= n_clusters=4"),
        ("no-such-file.npy", SourceError, "does not exist"),
        (None, ValueError, "Expected 2D array"),
        (torch.ones(5), ValueError, "Reshape your data"),
    ],
)
def test_what_cannot_be_clustered(estimator: type, x: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        estimator(4).fit(x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_that_are_not_finite(estimator: type, bad: float, dtype: str) -> None:
    x = blobs().astype(dtype)
    clean = estimator(4, random_state=0).fit(x)
    x[7, 1] = bad
    with pytest.raises(NonFiniteError, match=r"row 7 .*feature 1.*drop"):
        estimator(4).fit(x)
    for method in ("predict", "transform", "score"):
        with pytest.raises(NonFiniteError, match="row 7 "):
            getattr(clean, method)(x)
    dropping = estimator(4, random_state=0, nan="drop").fit(x)
    assert dropping.labels_[7] == -1
    assert np.count_nonzero(dropping.labels_ < 0) == 1
    assert dropping.counts_.sum() == 599
    assert np.isnan(dropping.transform(x)[7]).all()
    if estimator is MiniBatchKMeans:
        before = clean.cluster_centers_.copy()
        with pytest.raises(NonFiniteError, match="row 7 "):
            clean.partial_fit(x)
        np.testing.assert_array_equal(clean.cluster_centers_, before)


def test_other_features_than_at_the_fit(estimator: type, tmp_path: Path) -> None:
    kmeans = estimator(4, random_state=0).fit(blobs())
    np.save(tmp_path / "x.npy", blobs()[:, :2])
    methods = ["predict", "transform", "score"]
    for given in (blobs()[:, :2], tmp_path / "x.npy", torch.ones(9, 2, dtype=torch.bfloat16)):
        for method in methods + ["partial_fit"] * (estimator is MiniBatchKMeans):
            with pytest.raises(ValueError, match=r"X has 2 features, but .* is expecting 3"):
                getattr(kmeans, method)(given)


@pytest.mark.parametrize("method", ["predict", "transform", "score", "to_sklearn"])
def test_before_it_is_fitted(estimator: type, method: str) -> None:
    with pytest.raises(NotFittedError):
        getattr(estimator(), method)(*[blobs()] * (method != "to_sklearn"))


# ---- the first centroids ---------------------------------------------------


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (np.ones((3, 3)), r"4 centroids of 3 features are needed.*shape \(3, 3\)"),
        (np.ones((4, 2)), r"4 centroids of 3 features are needed.*shape \(4, 2\)"),
        (np.full((4, 3), np.nan), "init contains NaN"),
        (np.full((4, 3), np.inf), "init contains infinity"),
        ([["a"] * 3] * 4, "could not convert"),
        ("no-such-file.npy", "no .npy file that can be read"),
        (lambda x, n_clusters, random_state: x[: n_clusters - 1], r"shape \(3, 3\)"),
    ],
)
@pytest.mark.parametrize(
    ("estimator", "method"),
    [(KMeans, "fit"), (MiniBatchKMeans, "fit"), (MiniBatchKMeans, "partial_fit")],
)
def test_wrong_centroids(estimator: type, method: str, init: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(estimator(4, init=init), method)(blobs())


# Breaks when the user is told of an array that was made of the one that was given.
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "uint8"])
def test_wrong_centroids_are_told_in_their_own_type(estimator: type, dtype: str) -> None:
    init = np.ones((3, 3), dtype)
    with pytest.raises(ValueError, match=rf"these are {dtype} of shape \(3, 3\)"):
        estimator(4, init=init).fit(blobs())


# Breaks when a run forgets its centroids because they come in another type, or were saved before.
def test_a_run_knows_its_centroids_by_their_values(estimator: type, tmp_path: Path) -> None:
    x = blobs().astype(np.float32)
    settings: dict[str, Any] = {"run_dir": tmp_path / "run", "random_state": 0}
    first = estimator(4, init=x[:4], **settings).fit(x)
    known = sha256(x[:4].astype(np.float64).tobytes()).hexdigest()[:12]
    assert known in (tmp_path / "run" / "config.json").read_text()
    again = estimator(4, init=x[:4].astype(np.float64), resume=True, **settings).fit(x)
    np.testing.assert_array_equal(again.cluster_centers_, first.cluster_centers_)


def test_zeros_have_no_direction_to_begin_from(estimator: type) -> None:
    init = np.vstack((np.zeros((1, 3)), blobs()[:3]))
    with pytest.raises(ValueError, match="a centroid of zeros has no direction"):
        estimator(4, init=init, metric="cosine").fit(blobs())


# Breaks when the same centroids begin another fit because they came another way.
def test_ways_to_give_centroids(estimator: type, tmp_path: Path) -> None:
    x = blobs()
    np.save(tmp_path / "first.npy", x[1:5])
    ways: list[Any] = [
        x[1:5],
        x[1:5].tolist(),
        pd.DataFrame(x[1:5]),
        str(tmp_path / "first.npy"),
        lambda x, n_clusters, random_state: x[1 : n_clusters + 1],
    ]
    found = [estimator(4, init=way, random_state=0, max_iter=1).fit(x) for way in ways]
    for kmeans in found:
        np.testing.assert_array_equal(kmeans.cluster_centers_, found[0].cluster_centers_)


# Breaks when a callable does not get what scikit-learn gives it, or the best is not kept.
def test_callable(estimator: type) -> None:
    x = blobs()
    calls: list[np.ndarray] = []

    def init(x: np.ndarray, n_clusters: int, random_state: np.random.RandomState) -> np.ndarray:
        # The second of three is far better than the others.
        chosen = [np.zeros(4, int), np.arange(4), random_state.randint(4) + np.zeros(4, int)]
        calls.append(x[chosen[len(calls)]] + np.arange(4)[:, None])
        return calls[-1]

    kmeans = estimator(4, init=init, n_init=3, random_state=0, max_iter=1).fit(x)
    assert len(calls) == 3
    expected = estimator(4, init=calls[1], random_state=0, max_iter=1).fit(x)
    np.testing.assert_array_equal(kmeans.cluster_centers_, expected.cluster_centers_)
    with pytest.raises(ParameterError, match="NumPy array"):
        estimator(4, init=init).fit(open_source(x))


def test_n_init_with_centroids_warns(estimator: type) -> None:
    with pytest.warns(RuntimeWarning, match="n_init=3"):
        estimator(4, init=blobs()[:4], n_init=3).fit(blobs())


# ---- data with little in it ------------------------------------------------


@pytest.mark.parametrize("max_iter", [1, 20])
def test_fewer_distinct_rows_than_clusters(estimator: type, max_iter: int) -> None:
    x = np.repeat([[0.0, 0], [5, 5], [9, 0]], 50, axis=0)
    with pytest.warns(ConvergenceWarning, match=r"distinct clusters \(3\) found .* \(5\)"):
        kmeans = estimator(5, random_state=0, max_iter=max_iter).fit(x)
    assert len(set(kmeans.labels_)) == 3
    assert kmeans.inertia_ == 0
    assert np.isfinite(kmeans.cluster_centers_).all()


def test_one_cluster_and_as_many_as_rows(estimator: type) -> None:
    x = blobs(40).astype(float)
    np.testing.assert_allclose(estimator(1).fit(x).cluster_centers_[0], x.mean(axis=0))
    distinct = np.unique(x, axis=0)
    kmeans = estimator(len(distinct), random_state=0).fit(distinct)
    assert sorted(kmeans.labels_) == list(range(len(distinct)))


# Breaks when a row without a direction moves a centroid, or is as near to one as to another.
def test_zero_rows_under_cosine(estimator: type) -> None:
    x = blobs().astype(float)
    with_zeros = np.insert(x, [0, 300], 0.0, axis=0)
    zero = np.flatnonzero(~with_zeros.any(axis=1))
    kmeans = estimator(4, metric="cosine", random_state=0).fit(with_zeros)
    assert kmeans.labels_[zero].tolist() == [0, 0]
    np.testing.assert_allclose(np.linalg.norm(kmeans.cluster_centers_, axis=1), 1)
    np.testing.assert_allclose(kmeans.transform(with_zeros)[zero], 1)
    with pytest.raises(ValueError, match="normalised, not zero"):
        estimator(4, metric="cosine").fit(np.zeros((9, 3)))


# ---- partial_fit -----------------------------------------------------------


def test_partial_fit_refuses_statistics_it_cannot_have() -> None:
    with pytest.raises(ParameterError, match="StandardScaler"):
        MiniBatchKMeans(4, scale="zscore").partial_fit(blobs())
    # After fit they are known.
    kmeans = MiniBatchKMeans(4, scale="zscore", random_state=0).fit(blobs())
    assert kmeans.partial_fit(blobs()).counts_.sum() == 1200


def test_partial_fit_begins_with_enough_rows() -> None:
    with pytest.raises(ParameterError, match="n_samples=3 should be >= n_clusters=4"):
        MiniBatchKMeans(4).partial_fit(blobs()[:3])
    kmeans = MiniBatchKMeans(4, random_state=0).partial_fit(blobs()[:10])
    assert kmeans.partial_fit(blobs()[:3]).counts_.sum() == 13  # later batches may be short


# Breaks when wider rows are rounded to the first batch's type.
def test_partial_fit_of_other_types() -> None:
    x = blobs()
    kmeans = MiniBatchKMeans(4, init=x[:4]).partial_fit(x.astype(np.uint8))
    assert kmeans.cluster_centers_.dtype == "float32"
    kmeans.partial_fit(x + 1e-9)
    assert kmeans.cluster_centers_.dtype == "float64"
    expected = MiniBatchKMeans(4, init=x[:4]).partial_fit(x.astype(float)).partial_fit(x + 1e-9)
    np.testing.assert_allclose(kmeans.cluster_centers_, expected.cluster_centers_, rtol=1e-15)


def test_partial_fit_of_a_path(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", blobs())
    one = MiniBatchKMeans(4, init=blobs()[:4]).partial_fit(tmp_path / "x.npy")
    other = MiniBatchKMeans(4, init=blobs()[:4]).partial_fit(blobs())
    np.testing.assert_array_equal(one.cluster_centers_, other.cluster_centers_)
    assert not hasattr(one, "labels_")


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_fit_then_partial_fit_goes_on(metric: str) -> None:
    kmeans = MiniBatchKMeans(4, metric=metric, random_state=0).fit(blobs())
    steps = kmeans.n_steps_
    before = kmeans.cluster_centers_.copy()
    kmeans.partial_fit(blobs())
    assert kmeans.n_steps_ == steps + 1
    assert kmeans.counts_.sum() == 1200
    # The same rows again leave their means where they are.
    np.testing.assert_allclose(kmeans.cluster_centers_, before, rtol=1e-12)


# ---- weights ---------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [np.full(600, -1.0), np.full(600, np.nan), np.zeros(600), np.ones(599), np.ones((600, 2))],
)
def test_weights_that_cannot_be(estimator: type, bad: np.ndarray) -> None:
    kmeans = estimator(4, random_state=0).fit(blobs())
    methods = ["fit", "score"] + ["partial_fit"] * (estimator is MiniBatchKMeans)
    for method in methods:
        with pytest.raises(ValueError, match="weight"):
            getattr(kmeans, method)(blobs(), sample_weight=bad)


# Breaks when weights from a file or a list are others, or a row of weight 0 leaves a trace.
def test_ways_to_give_weights(estimator: type, tmp_path: Path) -> None:
    x = blobs()
    weights = np.arange(600) % 3
    np.save(tmp_path / "w.npy", weights)
    ways: list[Any] = [weights, weights.tolist(), tmp_path / "w.npy", pd.Series(weights)]
    found = [
        estimator(4, init=x[:4], random_state=0).fit(x, sample_weight=way).cluster_centers_
        for way in ways
    ]
    for centroids in found:
        np.testing.assert_array_equal(centroids, found[0])
    expected = [np.average(x[i::4], axis=0, weights=weights[i::4]) for i in range(4)]
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)


@pytest.fixture
def named(tmp_path: Path) -> tuple[pd.DataFrame, Path, Path]:
    """A frame, the same as a file, and one with the columns in another order."""
    frame = pd.DataFrame(blobs().astype(np.float64), columns=list("abc"))
    frame.to_parquet(tmp_path / "x.parquet")
    frame[list("cab")].to_parquet(tmp_path / "turned.parquet")
    return frame, tmp_path / "x.parquet", tmp_path / "turned.parquet"


# Breaks when a frame and a file of the same columns are not the same features.
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fitted_on", ["frame", "file", "run of a frame", "run of a file"])
def test_features_have_their_names(estimator: type, fitted_on: str, named, tmp_path: Path) -> None:
    frame, x, turned = named
    fitted = estimator(4, random_state=0)
    if "run" in fitted_on:
        fitted.set_params(run_dir=tmp_path / "run")
    fitted.fit(frame if "frame" in fitted_on else x)
    if "run" in fitted_on:
        fitted = load_run(tmp_path / "run")
    assert fitted.feature_names_in_.tolist() == ["a", "b", "c"]
    labels = fitted.predict(frame)
    assert is_found(labels)
    for path in (x, turned):
        assert np.array_equal(fitted.predict(path), labels)
        assert np.array_equal(fitted.transform(path), fitted.transform(frame))
        assert fitted.score(path) == fitted.score(frame)
    frame.rename(columns={"c": "d"}).to_parquet(x)
    for method in (fitted.predict, fitted.transform, fitted.score):
        with pytest.raises(ValueError, match=rf"has a, b, c, {x} has a, b, d"):
            method(x)
    if hasattr(fitted, "partial_fit"):
        again = deepcopy(fitted).partial_fit(frame)
        assert np.array_equal(fitted.partial_fit(turned).cluster_centers_, again.cluster_centers_)
        with pytest.raises(ValueError, match="has a, b, c, "):
            fitted.partial_fit(x)


# Breaks when centroids that were set, or lie in a hierarchy, meet columns in another order.
def test_centroids_that_no_run_found_have_names(estimator: type, named) -> None:
    frame, _, turned = named
    bisecting = BisectingKMeans(4, random_state=0).fit(frame)
    given = estimator(4)
    for name in ("cluster_centers_", "n_features_in_", "feature_names_in_"):
        setattr(given, name, getattr(bisecting, name))
    for fitted in (bisecting, given):
        assert np.array_equal(fitted.transform(turned), fitted.transform(frame))
        assert fitted.score(turned) == fitted.score(frame)


def test_features_lose_their_names_with_the_next_fit(estimator: type, named) -> None:
    frame, x, _ = named
    fitted = estimator(4, random_state=0).fit(x)
    fitted.fit(frame.to_numpy())
    assert not hasattr(fitted, "feature_names_in_")
    assert is_found(fitted.predict(x))
    fitted.fit(x)
    assert fitted.feature_names_in_.tolist() == ["a", "b", "c"]


# Breaks when NaN of a frame, which pandas stores as null, is another row in a file of it.
def test_nulls_are_dropped_as_nan_is(estimator: type, tmp_path: Path) -> None:
    x = blobs().astype(np.float64)
    x[::100, 1] = np.nan
    frame = pd.DataFrame(x, columns=list("abc"))
    frame.to_parquet(tmp_path / "x.parquet")
    frame.astype("Int64").to_parquet(tmp_path / "whole.parquet")
    for name in ("x", "whole"):
        fitted = estimator(4, nan="drop", random_state=0).fit(tmp_path / f"{name}.parquet")
        assert fitted.counts_.sum() == 594
        labels = fitted.predict(tmp_path / f"{name}.parquet")
        assert np.array_equal(labels == -1, np.isnan(x[:, 1]))
        assert np.array_equal(labels, fitted.predict(frame))
        with pytest.raises(NonFiniteError, match=r"row 0 holds nan \(feature 1, 'b'; .*nan='drop'"):
            estimator(4).fit(tmp_path / f"{name}.parquet")


def test_records_are_refused(estimator: type) -> None:
    records = np.zeros((5, 1), [("mass", "f4"), ("charge", "f4")])
    with pytest.raises(ValueError, match="X: elements are records of mass, charge; store them as"):
        estimator(2).fit(records)


CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)


# Breaks when tensors come back as arrays, or are copied on the way in.
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_tensors_come_back_as_tensors(
    estimator: type, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.from_numpy(blobs()).to(device)
    plain = estimator(4, random_state=0).fit(x)
    assert isinstance(plain.predict(x), np.ndarray)
    with monkeypatch.context() as patched:
        # config_context would ask for a variable that SciPy reads when it is imported.
        told = {**get_config(), "array_api_dispatch": True}
        patched.setattr("streamkm.estimators.inputs.get_config", lambda: told)
        kmeans = estimator(4, random_state=0).fit(x)
        given = [kmeans.cluster_centers_, kmeans.labels_, kmeans.predict(x), kmeans.transform(x)]
        kmeans.cluster_centers_[:] = kmeans.cluster_centers_.flip(0)
        flipped = kmeans.predict(x)
    assert all(isinstance(tensor, torch.Tensor) for tensor in given)
    assert {tensor.device for tensor in given} == {x.device}
    np.testing.assert_array_equal(given[2].cpu(), plain.labels_)
    np.testing.assert_array_equal(given[3].cpu(), plain.transform(x))
    np.testing.assert_array_equal(3 - flipped.cpu(), plain.labels_)
    np.testing.assert_array_equal(kmeans.to_sklearn().predict(blobs()), flipped.cpu())
    assert isinstance(kmeans.fit(blobs()).cluster_centers_, np.ndarray)


def on_gpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no row go through the host; for a tensor on the CPU, take that for a GPU."""
    if device == "cpu":
        monkeypatch.setattr("streamkm.estimators.inputs.is_host", lambda device: False)

    def fail(source: TensorSource, rows: object, out: np.ndarray) -> None:
        raise AssertionError(f"{rows} of {source} went through the host")

    monkeypatch.setattr(TensorSource, "read", fail)


# Breaks when rows that lie on the device go through the host, are changed, or count otherwise.
@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "uint8", "int16", "uint16"])
def test_rows_on_a_gpu_stay_there(
    estimator: type, dtype: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = blobs() // 2 * 2
    x = torch.from_numpy(array).to(getattr(torch, dtype))
    options = {"n_clusters": 4, "random_state": 0, "scale": "zscore"}
    weights = np.arange(600) % 3
    wanted = estimator(**options, device=device).fit(x, sample_weight=weights)
    distances, score = wanted.transform(x), wanted.score(x)
    x = x.to(device)
    on_gpu(device, monkeypatch)
    for name in ("auto", device):
        found = estimator(**options, device=name).fit(
            x, sample_weight=torch.from_numpy(weights).to(device)
        )
        np.testing.assert_allclose(found.cluster_centers_, wanted.cluster_centers_, rtol=1e-5)
        np.testing.assert_array_equal(found.labels_, wanted.labels_)
        np.testing.assert_array_equal(found.predict(x), wanted.labels_)
        np.testing.assert_allclose(found.transform(x), distances, rtol=1e-5)
        assert found.score(x) == pytest.approx(score, rel=1e-5)
        assert (found.n_features_in_, found.counts_.sum()) == (3, 400)
    np.testing.assert_array_equal(x.cpu().double(), array)
    with pytest.raises(ValueError, match=r"X has 2 features, but .* is expecting 3"):
        wanted.predict(x[:, :2])
    if estimator is MiniBatchKMeans:
        online = MiniBatchKMeans(4, random_state=0, device=device).partial_fit(x).partial_fit(x)
        assert is_found(online.labels_)


# Breaks when what only an array has (a callable's argument, an index of rows, an error in
# scikit-learn's words, a bool widened) is asked of a tensor on a GPU.
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_what_takes_an_array_gets_one_of_a_tensor(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu(device, monkeypatch)
    x = torch.from_numpy(blobs()).to(device)
    first = KMeans(4, init=lambda rows, k, random_state: rows[:k]).fit(x)
    assert is_found(first.labels_)
    assert is_found(BisectingKMeans(4, random_state=0).fit(x).predict(x))
    for wrong, says in (
        (x[0], "Expected 2D array, got 1D array instead"),
        (x[:0], r"Found array with 0 sample\(s\)"),
        (x[:, :0], r"0 feature\(s\)"),
    ):
        with pytest.raises(ValueError, match=says):
            KMeans(4).fit(wrong)
    assert KMeans(2, random_state=0).fit(x > 50).counts_.sum() == 600


# Breaks when a fit scales, normalises or blanks rows where they lie in the caller's array.
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "how", [{}, {"metric": "cosine"}, {"scale": "zscore"}, {"scale": "l2"}, {"nan": "drop"}]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_arrays_stay_as_they_are(how, weighted, dtype, rng):
    x = rng.normal(3, 2, size=(2_000, 4)).astype(dtype)
    if how.get("nan") == "drop":
        x[5], x[700] = np.nan, np.inf
    weights = rng.uniform(0, 2, size=len(x)) if weighted else None
    # The first lies as it is read, the second does not, and has to be copied.
    found = []
    for given in (x.copy(), np.asfortranarray(x)):
        for estimator in (KMeans, MiniBatchKMeans):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fitted = estimator(5, random_state=0, max_iter=3, **how)
                fitted.fit(given, sample_weight=weights)
                found.append(
                    (fitted.cluster_centers_.tobytes(), fitted.labels_.tobytes(), fitted.inertia_)
                )
                fitted.predict(given)
        assert given.tobytes() == x.tobytes()
    assert found[:2] == found[2:]
