"""What a report says first, case by case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamkm.reports.facts import RunFacts, read_run
from streamkm.reports.verdict import Verdict, judge, listed, number, percent, tiny
from tests.reports.helpers import report


@pytest.fixture(scope="module")
def facts(blobs: Path) -> RunFacts:
    return read_run(blobs / "run")


def verdict_of(facts: RunFacts, sizes: list[int], **more: object) -> Verdict:
    given = {"explained": 0.5, "survey": None, "odd_K": None} | more
    return judge(facts, np.array(sizes), **given)  # type: ignore[arg-type]


def looks(verdict: Verdict) -> str:
    return " | ".join(f.text for f in verdict.findings if f.is_worth_a_look)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([100] * 6, ""),
        ([100] * 5 + [0], "1 cluster has no row: 5."),
        ([1000] * 4 + [9, 3], "2 clusters are tiny, below 5.0 % of the mean size: 5 and 4."),
        ([900, 50, 50], "Cluster 0 holds 90 % of the rows"),
        ([900, 100], ""),  # One of two holds half of necessity.
        ([10] * 3, "A cluster has 10 rows in the mean"),
        ([2500] + [100] * 99, "Cluster 0 is 20 times the mean size"),
        ([0, 0, 0], ""),
    ],
)
def test_sizes_worth_a_look_are_named(facts: RunFacts, sizes, expected: str) -> None:
    said = looks(verdict_of(replace(facts, metrics=[]), sizes))
    assert said.startswith(expected) if expected else not said


def test_what_is_worth_a_look_comes_first(facts: RunFacts) -> None:
    found = verdict_of(facts, [1000, 1000, 1, 0]).findings
    worth = [f.is_worth_a_look for f in found]
    assert worth == sorted(worth, reverse=True)
    assert any(worth)


def test_the_end_of_training_is_judged(facts: RunFacts) -> None:
    end = {"phase": "end", "last_gain": 0.04, "dropped": 3}
    said = looks(verdict_of(replace(facts, metrics=[end]), [100] * 5))
    assert "The last pass still lowered the inertia by 4.0 %" in said
    assert "3 rows with NaN or infinity were dropped." in said


def test_centroids_that_are_equal_are_counted(facts: RunFacts) -> None:
    assert facts.clusters is not None
    twice_KD = facts.clusters.centroids_KD.copy()
    twice_KD[3] = twice_KD[0]
    same = replace(facts, clusters=replace(facts.clusters, centroids_KD=twice_KD))
    assert "1 centroid is equal to another one" in looks(verdict_of(same, [100] * 5))


def test_odd_clusters_are_named(facts: RunFacts) -> None:
    odd_K = np.array([False, True, False, False, True])
    said = looks(verdict_of(facts, [100] * 5, odd_K=odd_K))
    assert "2 clusters are far wider or narrower than the others: 1 and 4." in said


# Breaks when figures of the pass pass for those of a fit that counted rows in another way.
@pytest.mark.parametrize(
    ("in_fit", "in_pass", "said"),
    [
        (
            "abc",
            None,
            "Silhouette, distances and sizes here count every row once; give the weights",
        ),
        ("abc", "abd", "The fit counted rows by other weights; silhouette, distances and sizes"),
        (None, "abd", "The fit counted every row once; silhouette, distances and sizes here are"),
        ("abc", "abc", ""),
        (None, None, ""),
    ],
)
def test_weights_of_the_pass_and_of_the_fit_are_compared(
    blobs: Path, facts: RunFacts, in_fit: str | None, in_pass: str | None, said: str
) -> None:
    record = facts.record | {"data": facts.record["data"] | {"weights": in_fit}}
    seen = report(blobs / "run").seen
    assert seen is not None
    survey = replace(seen, weights=in_pass)
    found = verdict_of(replace(facts, record=record), [100] * 5, survey=survey)
    assert said in looks(found)
    assert ("weights" in looks(found)) == bool(said)


@pytest.mark.parametrize(
    ("share", "said"),
    [(0, "0.00 %"), (1e-6, "less than 0.01 %"), (0.002, "0.20 %"), (0.05, "5.0 %"), (0.126, "13 %"),
     (0.999, "more than 99 %"), (1, "100 %")],
)  # fmt: skip
def test_shares_are_rounded_but_never_to_all(share: float, said: str) -> None:
    assert percent(share) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (1234567, "1,234,567"), (0.12345, "0.1235"), (1e-9, "1e-09"), (3e15, "3e+15")],
)  # fmt: skip
def test_numbers_have_four_digits(value: float, said: str) -> None:
    assert number(value) == said


@pytest.mark.parametrize(
    ("clusters", "said"),
    [([3], "3"), ([3, 1], "3 and 1"), ([1, 2, 3], "1, 2 and 3"),
     (range(10), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more")],
)  # fmt: skip
def test_clusters_are_listed(clusters, said: str) -> None:
    assert listed(clusters) == said


def test_tiny_is_less_than_a_twentieth_of_the_mean() -> None:
    assert tiny(np.array([100, 100, 2, 4, 0])).tolist() == [False, False, True, False, False]
