"""The several nearest centroids, beside those of scikit-learn's NearestNeighbors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from streamkm import KMeans, MiniBatchKMeans
from tests.runs.helpers import clusters


# Breaks when a distance is of another centroid, or the order is not that of the distances.
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m", [1, 2, 6])
def test_kneighbors_are_scikit_learn_s(dtype: str, m: int, tmp_path: Path) -> None:
    x = clusters(400, 5).astype(dtype)
    kmeans = MiniBatchKMeans(6, random_state=0).fit(x)
    theirs = NearestNeighbors(algorithm="brute").fit(kmeans.cluster_centers_.astype(np.float64))
    wanted, indices = theirs.kneighbors(x.astype(np.float64), m)
    distances_NM, labels_NM = kmeans.kneighbors(x, m)
    assert (distances_NM.dtype, labels_NM.dtype) == (np.dtype(dtype), np.int64)
    np.testing.assert_array_equal(labels_NM, indices)
    np.testing.assert_allclose(distances_NM, wanted, rtol=1e-5)
    np.testing.assert_array_equal(labels_NM[:, 0], kmeans.predict(x))
    # From disk they are streamed, and those of the fit that wrote it.
    np.save(tmp_path / "x.npy", x)
    np.testing.assert_array_equal(
        kmeans.kneighbors(tmp_path / "x.npy", m, return_distance=False), labels_NM
    )


def test_rows_that_were_dropped_have_none() -> None:
    x = clusters(100, 3)
    kmeans = KMeans(4, nan="drop", random_state=0).fit(x)
    x[5, 1] = np.nan
    distances_NM, labels_NM = kmeans.kneighbors(x, 2)
    assert labels_NM[5].tolist() == [-1, -1]
    assert np.isnan(distances_NM[5]).all()
    assert (labels_NM[6:] >= 0).all()
    with pytest.raises(ValueError, match="row 5 holds nan"):
        kmeans.set_params(nan="error").kneighbors(x, 2)


# Breaks when distances are those of the scaled space's own unit.
def test_distances_are_those_of_transform() -> None:
    x = clusters(200, 4) * np.float32(1e-3)
    every: list[dict[str, Any]] = [{"scale": "zscore"}, {"metric": "cosine"}, {"scale": "none"}]
    for settings in every:
        kmeans = KMeans(5, random_state=0, **settings).fit(x)
        distances_NM, labels_NM = kmeans.kneighbors(x, 5)
        found_NK = np.take_along_axis(kmeans.transform(x), labels_NM, axis=1)
        np.testing.assert_allclose(distances_NM, found_NK, rtol=1e-4)


@pytest.mark.parametrize("m", [0, 5, -1, 2.0, True, None])
def test_what_is_no_number_of_centroids_is_refused(m: Any) -> None:
    kmeans = KMeans(4, random_state=0).fit(clusters(50, 2))
    with pytest.raises(ValueError, match=rf"n_neighbors={m} must be a whole number from 1 to 4"):
        kmeans.kneighbors(clusters(50, 2), m)


# Breaks when rows of a tensor are taken for another array.
def test_tensors_are_rows() -> None:
    x = clusters(50, 2)
    kmeans = KMeans(4, random_state=0).fit(x)
    for ours, theirs in zip(
        kmeans.kneighbors(torch.from_numpy(x), 2), kmeans.kneighbors(x, 2), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


# Breaks when one row is taken for many rows of one feature, or an index error comes of it.
def test_one_row_without_a_second_axis_is_refused() -> None:
    x = clusters(50, 2)
    kmeans = KMeans(4, random_state=0).fit(x)
    for one_row in (x[0], x[0].tolist(), torch.from_numpy(x[0])):
        with pytest.raises(
            ValueError, match=r"Expected 2D array, got 1D array[\s\S]*reshape\(1, -1\)"
        ):
            kmeans.kneighbors(one_row, 2)


# Breaks when pixels of 0 to 255 are labelled by centroids of 0 to 1, and nobody is told.
def test_bytes_given_to_a_model_of_floats_get_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    x = clusters(50, 2)
    kmeans, pixels = KMeans(4, random_state=0).fit(x), (x - x.min()).astype(np.uint8)
    for method in (kmeans.predict, kmeans.transform, lambda x: kmeans.kneighbors(x, 2)):
        with pytest.warns(UserWarning, match="rows are uint8, and the centroids are of float32"):
            method(pixels)
    recwarn.clear()
    kmeans.predict(pixels.astype(np.int64))
    KMeans(4, random_state=0).fit(pixels).predict(pixels)
    assert not recwarn
