"""Which K stands out: by hand-made curves, and on data with and without clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamkm import sweep
from streamkm.clustering.choosing import APART, find_elbow, recommended, recommended_by_space


def row(k: int, inertia: float, silhouette: float | None = 0.5, seed: int = 0) -> dict[str, Any]:
    return {
        "k": k,
        "seed": seed,
        "inertia": inertia,
        "explained_variance": 1 - inertia / 1000,
        "silhouette": silhouette,
        "simplified_silhouette": 0.4,
    }


#: Five clusters: each of the first takes away as much as the square of K, no further one much.
INERTIAS = {k: 1000 / k**2 if k <= 5 else 40 * (5 / k) ** 0.2 for k in range(2, 13)}


def curve(silhouettes: dict[int, float]) -> list[dict[str, Any]]:
    return [row(k, inertia, silhouettes.get(k, 0.5)) for k, inertia in INERTIAS.items()]


# Breaks when the curve is not that of logarithms, or its ends count as elbows.
def test_the_elbow_by_hand() -> None:
    # Logarithms of base 2: from (0, 6) straight to (2, 2), and on to (3, 1.5).
    elbow = find_elbow([1, 2, 4, 8], [64.0, 16.0, 4.0, 2.0**1.5])
    assert elbow is not None
    assert elbow.k == 4
    assert elbow.height == pytest.approx(4 / 4.5 - 2 / 3)
    assert elbow.ratio == pytest.approx(2 / 0.5)
    assert elbow.stands_out


# Breaks when a curve as that of uniform rows has an elbow: a straight line of logarithms.
def test_a_power_of_k_has_no_elbow() -> None:
    ks = range(1, 40)
    elbow = find_elbow(ks, [1000 * k ** (-2 / 3) for k in ks])
    assert elbow is not None
    assert not elbow.stands_out
    assert find_elbow([2, 4], [3.0, 2.0]) is None
    assert find_elbow([2, 4, 8], [3.0, 1.0, 0.0]) is None
    assert find_elbow([2, 4, 8], [3.0, 4.0, 5.0]) is None


# Breaks when rounding counts as inertia, and more clusters are asked for than there are rows.
def test_rows_on_their_centroids_have_no_inertia_left() -> None:
    inertias = {1: 1000.0, 2: 800.0, 3: 500.0, 4: 50.0, 5: 1e-22}
    found = recommended([row(k, inertia) for k, inertia in inertias.items()], [])
    assert found.k is None
    assert "until it is 0 at k 5" in found.reasons[0]
    assert found.reasons[-1] == "from k 5 on every row lies on its centroid"


# Breaks when K that lie too near to show an elbow are told to have none, or that K has no advice.
def test_what_these_k_cannot_show_is_told() -> None:
    inertias = {90: 3.10e6, 100: 1.92e6, 110: 1.91e6}
    figures = [
        {
            **row(k, inertia, 0.9 if k == 100 else 0.8),
            "explained_variance": 1 - inertia / 2.69e7,
            "simplified_silhouette": 0.7 if k == 100 else 0.6,
            "calinski_harabasz": 8000.0 if k == 100 else 7000.0,
            "davies_bouldin": 0.5 if k == 100 else 0.6,
        }
        for k, inertia in inertias.items()
    ]
    found = recommended(figures, [])
    assert found.k is None
    assert found.verdict.startswith("k 100 is the best of these by every index, but no elbow")
    assert found.reasons[0].startswith("elbow: none that these k can show: up to k 100")
    further = int(found.reasons[0].split()[-3])
    assert 110 < further < 130
    assert found.reasons[-1].startswith("best at k 100: silhouette, ")
    # As advised, with the same inertia beyond.
    beyond = {**figures[2], "k": further, "inertia": 1.90e6}
    assert recommended([*figures, beyond], []).k == 100
    figures[2]["davies_bouldin"] = 0.4
    assert recommended(figures, []).verdict.startswith("nothing stands out")
    near = recommended([row(k, 1000 * k**-0.5) for k in (98, 100, 102)], [])
    assert near.reasons[0].startswith("elbow: none that these k can show, which are too near")


# Breaks when several seeds are asked for that were given already.
def test_stability_of_many_clusters_is_not_known() -> None:
    found = recommended(
        [each for k in INERTIAS for each in (row(k, INERTIAS[k]), row(k, INERTIAS[k], seed=1))], []
    )
    assert found.k == 5
    assert "stability: not known above 4,096 clusters" in found.reasons


def test_what_agrees_is_recommended() -> None:
    found = recommended(curve({5: 0.9}), [{"k": 5, "mean": 0.99}])
    assert (found.k, found.verdict, found.silhouette_k) == (5, "recommended: k 5", 5)
    assert [reason.partition(":")[0] for reason in found.reasons] == [
        "elbow", "silhouette", "stability",
    ]  # fmt: skip
    assert "10.0 times as steeply" in found.reasons[0]


# Breaks when figures of one space decide on another, or one space speaks for all.
def test_each_space_has_a_recommendation() -> None:
    def within(scale: str, of: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**each, "scale": scale, "metric": "euclidean"} for each in of]

    two = curve({2: 0.9})
    agreed = [{"k": 5, "mean": 0.99}]
    figures = [*within("none", curve({5: 0.9})), *within("zscore", two)]
    found = recommended_by_space(figures, within("none", agreed))
    alone = [recommended(curve({5: 0.9}), agreed).as_dict(), recommended(two, []).as_dict()]
    assert [{**part, "scale": None, "metric": None} for part in found["spaces"]] == [
        {**part, "scale": None, "metric": None} for part in alone
    ]
    assert (found["k"], found["verdict"]) == (
        None,
        "no k is recommended for every scale and metric",
    )
    assert "scale none, metric euclidean: recommended: k 5" in found["reasons"]
    assert found["reasons"][-1] == APART
    both = recommended_by_space([*figures[:11], *within("l2", curve({5: 0.9}))], [])
    assert (both["k"], both["verdict"]) == (5, "recommended: k 5, for every scale and metric")
    assert recommended_by_space(two, []) == alone[1]


# Breaks when a silhouette or seeds that say otherwise are passed over.
def test_disagreement_is_told() -> None:
    apart = recommended(curve({2: 0.9}), [])
    assert apart.k is None
    assert apart.verdict.startswith("elbow and silhouette disagree, k 5 and k 2")
    unstable = recommended(curve({5: 0.9}), [{"k": 5, "mean": 0.4}])
    assert unstable.k is None
    assert unstable.verdict.startswith("k 5 is the elbow, but not stable")
    # Of two neighbours the stable one.
    beside = recommended(curve({4: 0.9}), [{"k": 4, "mean": 1.0}, {"k": 5, "mean": 0.8}])
    assert beside.k == 4
    # A hair below the greatest is no disagreement.
    assert recommended(curve({2: 0.9, 5: 0.89}), []).k == 5


# Breaks when rows that equal their centroids hide the elbow before them.
def test_an_inertia_of_0() -> None:
    rows = [*curve({5: 0.9}), row(40, 0.0)]
    found = recommended(rows, [])
    assert found.k == 5
    assert found.reasons[-1] == "from k 40 on every row lies on its centroid"
    # There are enough K to see one.
    alike = recommended([row(2, 9.0), *(row(k, 0.0) for k in range(3, 9))], [])
    said = "elbow: none can be seen, the inertia is 0 at most k or does not fall"
    assert alike.reasons[0] == said


def sized(k: int, inertia: float, sizes: list[int], silhouette: float = 0.5) -> dict[str, Any]:
    return {**row(k, inertia, silhouette), "sizes": sizes}


# Breaks when a single row far away makes two clusters of 300 rows.
def test_outliers_are_no_grouping() -> None:
    alone = [
        sized(k, 100 / k**0.5, [1, *[299 // (k - 1)] * (k - 1)], 0.99 if k == 2 else 0.3)
        for k in range(2, 9)
    ]
    found = recommended(alone, [{"k": 2, "mean": 1.0}])
    assert found.k is None
    assert found.verdict == "k 2 only sets outliers apart: no k is recommended"
    assert found.reasons[0].startswith("elbow: at k 2, which sets 1 row of 300 apart (0.33%)")
    assert found.silhouette_k != 2
    assert "leave them out if they are errors" in found.reasons[-1]
    # With three rows, of which each is one cluster.
    more = [sized(k, 100 / k**0.5 if k > 3 else 700 - 190 * k, [1] * (k - 1) + [301 - k])
            for k in range(2, 9)]  # fmt: skip
    assert recommended(more, []).k is None


# Breaks when a cluster of outliers beside real ones is passed over, or counts against them.
def test_outliers_beside_clusters_are_told() -> None:
    rows = [{**each, "sizes": [3, *[100] * (each["k"] - 1)]} for each in curve({2: 0.9, 5: 0.8})]
    rows[0]["sizes"] = [3, 597]
    found = recommended(rows, [])
    assert (found.k, found.silhouette_k) == (5, 5)
    assert "outliers: 1 of its clusters has only 3 rows" in found.reasons
    # Every one of a thousand clusters has few of the rows.
    assert "outliers" not in str(
        recommended([{**each, "sizes": [100] * each["k"]} for each in rows], [])
    )


# Breaks when K beside the elbow that nobody tried go unmentioned.
def test_what_was_not_tried_is_told() -> None:
    some = [each for each in curve({5: 0.9}) if each["k"] in (2, 5, 9, 12)]
    assert "from 2 to 9 only 5 was tried" in recommended(some, []).reasons[-1]
    steep = [row(k, 1000 / k ** (0.2 + k / 4)) for k in range(2, 8)]
    assert "try larger k" in recommended(steep, []).reasons[0]


# Breaks when figures without an exact silhouette get no recommendation.
def test_weighted_rows_have_the_simplified_silhouette() -> None:
    rows = [{**each, "silhouette": None, "simplified_silhouette": each["silhouette"]}
            for each in curve({5: 0.9})]  # fmt: skip
    found = recommended(rows, [])
    assert (found.k, found.silhouette_k) == (5, 5)
    assert found.reasons[1] == "simplified silhouette: greatest at k 5, 0.900"


# Breaks when a K that silhouette and seeds favour is not named where there is no elbow.
def test_without_an_elbow_the_other_figures_are_named() -> None:
    even = [row(k, 1000 / k, 0.4 + (k == 3) / 10, seed) for k in (2, 3, 4) for seed in (0, 1)]
    found = recommended(even, [{"k": k, "mean": 0.9 + (k == 3) / 20} for k in (2, 3, 4)])
    assert found.k is None
    assert found.reasons[1:] == [
        "silhouette: greatest at k 3, 0.500, mean of its seeds",
        "stability: greatest at k 3, 0.950",
    ]


# Breaks when a single K is called the best of all, or the one that does not stand out.
def test_one_k_is_compared_with_nothing() -> None:
    found = recommended([row(4, 100.0)], [])
    assert found.verdict == "one k alone has nothing to stand out from: no k is recommended"
    assert found.reasons == ["elbow: too few k to see one"]


# Breaks when noise gets a K, or clusters that lie apart get none.
def test_noise_gets_no_k_and_clusters_do(rng) -> None:
    for n_features in (2, 5, 12):
        noise = rng.random((1500, n_features), np.float32)
        found = sweep(noise, range(2, 16), seeds=range(2))
        assert found.recommended_k is None, str(found)
        assert "nothing stands out" in str(found)
    for k in (2, 7, 11):
        centres = rng.permutation(20)[:k, None] * 30 + rng.normal(size=(k, 4))
        rows = centres[rng.integers(k, size=1500)] + rng.normal(size=(1500, 4))
        assert sweep(rows, range(2, 16), seeds=range(2)).recommended_k == k
