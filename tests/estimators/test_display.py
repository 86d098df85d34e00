"""What a notebook shows of an estimator."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import config_context

from streamkm import BisectingKMeans, KMeans, MiniBatchKMeans


@pytest.mark.parametrize("kind", [KMeans, MiniBatchKMeans, BisectingKMeans])
def test_a_fitted_estimator_shows_what_it_has_found(kind, rng) -> None:
    estimator = kind(3, random_state=0)
    assert "<th style='text-align:left'>clusters</th>" not in estimator._repr_html_()
    estimator.fit(rng.normal(size=(60, 2)))
    for shown in (estimator._repr_html_(), estimator._repr_mimebundle_()["text/html"]):
        assert "3 of 2 features" in shown
        assert f"{estimator.inertia_:.9g}" in shown
        assert "sk-container-id" in shown  # scikit-learn's own picture is there too.


# Breaks when a user's option of scikit-learn is passed over.
def test_text_is_shown_where_the_user_asked_for_text(rng) -> None:
    estimator = KMeans(2).fit(rng.normal(size=(9, 2)))
    with config_context(display="text"):
        assert not hasattr(estimator, "_repr_html_")
        assert set(estimator._repr_mimebundle_()) == {"text/plain"}


def test_what_is_shown_is_escaped() -> None:
    estimator = KMeans(2).fit(np.array([[0.0], [1.0], [5.0]]))
    estimator.stop_reason_ = "<script>"
    shown = estimator._repr_html_()
    assert "&lt;script&gt;" in shown
