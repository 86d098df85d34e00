"""Programs as users of scikit-learn write them, of which only the import changes.

Each is one function of the classes, run with scikit-learn's and with streamkm's. They are after the
themes of scikit-learn's gallery, on data that is made or comes with it.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn import cluster
from sklearn.datasets import load_digits, load_sample_image, make_blobs
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.image import extract_patches_2d
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.metrics import (
    adjusted_rand_score,
    pairwise_distances_argmin,
    silhouette_samples,
    silhouette_score,
    v_measure_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils import shuffle

import streamkm

LIBRARIES = [pytest.param(cluster, id="scikit-learn"), pytest.param(streamkm, id="streamkm")]
each_library = pytest.mark.parametrize("library", LIBRARIES)

THEMES = {
    "kitchen": "pan oven salt pepper onion garlic simmer boil taste knife flour butter recipe",
    "sea": "sail harbour tide mast wind anchor wave captain deck rope storm crew island",
    "garden": "soil seed prune rose hedge spade compost bloom weed lawn pot root shade",
}


def texts(n_each: int) -> tuple[list[str], np.ndarray]:
    """Texts of three themes, with words that all have in common."""
    rng = np.random.default_rng(0)
    common = ["the", "a", "of", "and", "in", "to", "with", "for", "was", "it"]
    found = [
        " ".join(rng.choice(words.split(), 12)) + " " + " ".join(rng.choice(common, 15))
        for words in THEMES.values()
        for _ in range(n_each)
    ]
    return found, np.repeat(np.arange(len(THEMES)), n_each)


# Text: sparse tf-idf, with both estimators, and after a projection that makes it dense.
@each_library
def test_texts_by_theme(library: Any) -> None:
    documents, themes = texts(120)
    tfidf = TfidfVectorizer(max_df=0.5, min_df=3, stop_words="english").fit_transform(documents)
    for seed in range(3):
        kmeans = library.KMeans(n_clusters=3, max_iter=100, n_init=5, random_state=seed).fit(tfidf)
        assert v_measure_score(themes, kmeans.labels_) > 0.95
        assert silhouette_score(tfidf, kmeans.labels_, sample_size=200, random_state=0) > 0
    hashed = make_pipeline(HashingVectorizer(n_features=500), TfidfTransformer())
    lsa = make_pipeline(hashed, TruncatedSVD(20, random_state=0), Normalizer(copy=False))
    minibatch = library.MiniBatchKMeans(
        n_clusters=3, n_init=5, init_size=300, batch_size=100, random_state=0
    )
    # The one warning that streamkm adds.
    warnings.filterwarnings("ignore", "without effect in streamkm: init_size=300")
    assert v_measure_score(themes, minibatch.fit_predict(lsa.fit_transform(documents))) > 0.9
    # The words that say most about each cluster.
    vectorizer = TfidfVectorizer(stop_words="english").fit(documents)
    kmeans = library.KMeans(n_clusters=3, n_init=5, random_state=0)
    kmeans.fit(vectorizer.transform(documents))
    words = vectorizer.get_feature_names_out()
    order = kmeans.cluster_centers_.argsort(axis=1)[:, ::-1]
    for line in order:
        tops = {words[i] for i in line[:8]}
        assert any(tops <= set(of_theme.split()) for of_theme in THEMES.values())


# Comparison of both: their centroids in pairs, and the rows that they place otherwise.
@each_library
def test_both_estimators_agree(library: Any) -> None:
    x, _ = make_blobs(3000, centers=[[1, 1], [-1, -1], [1, -1]], cluster_std=0.7, random_state=0)
    k_means = library.KMeans(init="k-means++", n_clusters=3, n_init=10, random_state=0)
    mbk = library.MiniBatchKMeans(
        init="k-means++",
        n_clusters=3,
        batch_size=256,
        n_init=10,
        max_no_improvement=10,
        verbose=0,
        random_state=0,
    )
    k_means.fit(x)
    mbk.fit(x)
    order = pairwise_distances_argmin(k_means.cluster_centers_, mbk.cluster_centers_)
    assert sorted(order) == [0, 1, 2]
    mbk_centers = mbk.cluster_centers_[order]
    k_means_labels = pairwise_distances_argmin(x, k_means.cluster_centers_)
    np.testing.assert_array_equal(k_means_labels, k_means.labels_)
    assert (k_means_labels != pairwise_distances_argmin(x, mbk_centers)).mean() < 0.05


# Silhouettes: how many clusters there are.
@each_library
def test_the_number_of_clusters_by_silhouettes(library: Any) -> None:
    x, _ = make_blobs(
        500, centers=4, cluster_std=1, center_box=(-10, 10), shuffle=True, random_state=1
    )
    scores = {}
    for n_clusters in (2, 3, 4, 5, 6):
        clusterer = library.KMeans(n_clusters=n_clusters, random_state=10)
        labels = clusterer.fit_predict(x)
        scores[n_clusters] = silhouette_score(x, labels)
        assert np.bincount(labels, minlength=n_clusters).min() > 0
        assert silhouette_samples(x, labels).mean() == pytest.approx(scores[n_clusters])
    assert scores[4] > 0.6
    assert max(scores, key=lambda n: scores[n]) in (2, 4)


# An online dictionary of patches: partial_fit on what comes.
@each_library
def test_a_dictionary_of_patches(library: Any) -> None:
    rng = np.random.RandomState(0)
    images = load_digits().images
    kmeans = library.MiniBatchKMeans(n_clusters=16, random_state=rng, verbose=True, n_init=3)
    buffer = []
    errors = []
    held_out = np.concatenate(
        [extract_patches_2d(image, (4, 4)).reshape(-1, 16) for image in images[-50:]]
    )
    held_out -= held_out.mean(axis=1, keepdims=True)
    for index, image in enumerate(images[:600]):
        patches = extract_patches_2d(image, (4, 4), max_patches=20, random_state=rng)
        buffer.append(patches.reshape(-1, 16))
        if index % 50 == 49:
            data = np.concatenate(buffer)
            data -= data.mean(axis=1, keepdims=True)
            kmeans.partial_fit(data)
            buffer = []
            errors.append(-kmeans.score(held_out) / len(held_out))
    assert kmeans.cluster_centers_.reshape(16, 4, 4).shape == (16, 4, 4)
    assert kmeans.n_steps_ == 12
    assert errors[-1] < 0.45 * np.square(held_out).sum(axis=1).mean()
    assert errors[-1] <= errors[0]


# Colour quantisation: a photograph in 32 colours.
@each_library
def test_a_photograph_in_few_colours(library: Any) -> None:
    china = np.array(load_sample_image("china.jpg"), dtype=np.float64)[::4, ::4] / 255
    height, width, depth = china.shape
    pixels = np.reshape(china, (height * width, depth))
    some = shuffle(pixels, random_state=0, n_samples=1000)
    kmeans = library.KMeans(n_clusters=32, random_state=0).fit(some)
    labels = kmeans.predict(pixels)
    painted = kmeans.cluster_centers_[labels].reshape(height, width, -1)
    codebook_random = shuffle(pixels, random_state=0, n_samples=32)
    labels_random = pairwise_distances_argmin(codebook_random, pixels, axis=0)
    painted_random = codebook_random[labels_random].reshape(height, width, -1)
    error, error_random = (np.square(p - china).mean() for p in (painted, painted_random))
    assert error < 0.8 * error_random
    assert error < 0.002


# Stability of the initialisation: of many starts, how far the results lie apart.
@each_library
def test_how_stable_a_start_is(library: Any) -> None:
    rng = np.random.RandomState(0)
    centers = np.array([[i, j] for i in range(3) for j in range(3)])
    noise = rng.normal(scale=0.1, size=(9 * 50, 2))
    x = np.concatenate([np.tile(center, (50, 1)) for center in centers]) + noise
    cases = [
        (library.KMeans, "k-means++", {}),
        (library.KMeans, "random", {}),
        (library.MiniBatchKMeans, "k-means++", {"max_no_improvement": 3}),
        (library.MiniBatchKMeans, "random", {"max_no_improvement": 3}),
    ]
    mean = SimpleNamespace()
    for factory, init, params in cases:
        inertia = [
            factory(n_clusters=9, init=init, random_state=run, n_init=n_init, **params)
            .fit(x)
            .inertia_
            for run in range(5)
            for n_init in (1, 10)
        ]
        one, several = np.mean(inertia[::2]), np.mean(inertia[1::2])
        # Of mini-batches, several seedings are compared and not several ends.
        assert several <= one * (1.01 if factory is library.KMeans else 1.3)
        setattr(mean, f"{factory.__name__}_{init[0]}", several)
    assert mean.KMeans_k == pytest.approx(np.square(noise).sum(), rel=0.1)


# Digits: named in the end by how well the clusters match them, through a scaler.
@each_library
def test_digits(library: Any) -> None:
    data, labels = load_digits(return_X_y=True)
    kmeans = library.KMeans(init="k-means++", n_clusters=10, n_init=4, random_state=0)
    estimator = make_pipeline(StandardScaler(), kmeans).fit(data)
    assert adjusted_rand_score(labels, estimator[-1].labels_) > 0.4
    bisecting = library.BisectingKMeans(n_clusters=10, random_state=0).fit(data)
    assert bisecting.inertia_ < 1.3 * library.KMeans(10, random_state=0).fit(data).inertia_
