"""X as an iterator of batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from streamkm import KMeans, MiniBatchKMeans
from streamkm.errors import ParameterError
from tests.estimators.test_inputs import blobs

if TYPE_CHECKING:
    from collections.abc import Iterator


def batches(size: int = 150) -> Iterator[np.ndarray]:
    x = blobs().astype("float32")
    return (x[start : start + size] for start in range(0, len(x), size))


# Breaks when a batch is left out, or the batches are gathered to be cut anew.
def test_each_batch_is_one_update() -> None:
    by_hand = MiniBatchKMeans(4, random_state=0, compute_labels=False)
    for batch in batches():
        by_hand.partial_fit(batch)
    for fitted in (
        MiniBatchKMeans(4, random_state=0).fit(batches()),
        MiniBatchKMeans(4, random_state=0).partial_fit(batches()),
    ):
        np.testing.assert_array_equal(fitted.cluster_centers_, by_hand.cluster_centers_)
        assert fitted.n_steps_ == 4
        assert fitted.counts_.sum() == 600


def test_a_loader_is_read_once_a_pass() -> None:
    rows: Any = torch.from_numpy(blobs()).float()
    loader: Any = torch.utils.data.DataLoader(rows, batch_size=200)
    kmeans = MiniBatchKMeans(4, random_state=0, max_iter=3, max_no_improvement=None).fit(loader)
    assert (kmeans.n_steps_, kmeans.n_iter_, kmeans.n_features_in_) == (9, 3, 3)
    assert kmeans.stop_reason_ == "all epochs are done (3)"
    assert not hasattr(kmeans, "labels_")
    assert len(np.unique(kmeans.predict(blobs()))) == 4


# Breaks when a second fit goes on from the first, or keeps what belongs to it.
def test_a_second_fit_begins_anew() -> None:
    kmeans = MiniBatchKMeans(4, random_state=0).fit(blobs())
    assert hasattr(kmeans, "labels_")
    kmeans.fit(batches())
    assert not hasattr(kmeans, "labels_")
    fresh = MiniBatchKMeans(4, random_state=0).fit(batches())
    np.testing.assert_array_equal(kmeans.cluster_centers_, fresh.cluster_centers_)


@pytest.mark.parametrize(
    ("settings", "arguments", "says"),
    [
        ({"max_iter": 2}, {}, "can be iterated again, such as a DataLoader"),
        ({"run_dir": "run"}, {}, "run_dir='run' needs rows that can be read again"),
        ({"compute_labels": True}, {}, "compute_labels=True needs rows"),
        ({"scale": "zscore"}, {}, "statistics of all rows"),
        ({}, {"sample_weight": 2.0}, "call partial_fit for each batch"),
    ],
    ids=str,
)
def test_what_batches_cannot_give_is_refused(
    settings: dict[str, Any], arguments: dict[str, Any], says: str
) -> None:
    kmeans = MiniBatchKMeans(4, random_state=0, **settings)
    with pytest.raises(ParameterError, match=says):
        kmeans.fit(batches(), **arguments)
    assert not hasattr(kmeans, "cluster_centers_")


def test_an_iterator_without_batches_is_refused() -> None:
    with pytest.raises(ParameterError, match="yields no batch"):
        MiniBatchKMeans(4).fit(iter([]))


@pytest.mark.parametrize("method", ["predict", "transform", "score"])
def test_other_methods_refuse_batches_with_the_remedy(method: str) -> None:
    kmeans = KMeans(4, random_state=0).fit(blobs())
    for refuse in (kmeans.fit, getattr(kmeans, method)):
        with pytest.raises(ParameterError, match=r"MiniBatchKMeans take.*each batch"):
            refuse(batches())
