"""Figures of the model that a run ends with."""

from __future__ import annotations

import numpy as np
import pytest

from streamkm import MiniBatchKMeans
from streamkm.cli import main
from streamkm.config import FitConfig
from streamkm.runs.engine.summary import median_size, result_lines


@pytest.mark.parametrize(
    ("sizes", "median", "said"),
    [
        ([7], 7, "7"),
        ([198, 302], 250, "250"),
        ([198, 303], 250.5, "250.5"),
        ([1, 5000, 9000], 5000, "5,000"),
        ([0, 2**53, 2**53 + 2, 2**60], 2**53 + 1, "9,007,199,254,740,993"),
    ],
)
def test_the_median_of_sizes_is_between_the_middle_two(sizes, median, said):
    assert median_size(sizes) == median
    assert f"{median_size(sizes):,}" == said


# Breaks when one of the places that say it takes the upper of the two in the middle.
def test_every_face_says_the_same_median(tmp_path, capsys):
    x = np.repeat([[0.0, 0.0], [9.0, 9.0]], [198, 303], axis=0)
    np.save(tmp_path / "x.npy", x)
    run = str(tmp_path / "run")
    assert main(["fit", str(tmp_path / "x.npy"), "--k", "2", "--out", run]) == 0
    assert "clusters of 198 to 303 rows, 250.5 in the median" in capsys.readouterr().err
    assert main(["info", run]) == main(["evaluate", run, str(tmp_path / "x.npy")]) == 0
    out = capsys.readouterr().out
    assert out.count("198 least, 250.5 median, 303 most") == 2
    MiniBatchKMeans(2, random_state=0, verbose=1).fit(x)
    assert "250.5 in the median" in capsys.readouterr().err


# Breaks when a reason is given that is not known: rows off their centroids are distinct rows.
@pytest.mark.parametrize(
    ("phase", "all_on_centroids", "said"),
    [
        ("close", True, "the data has fewer than 3 distinct rows"),
        ("close", False, "each row that is off its centroid is the only row of its cluster"),
        ("train", False, "more epochs may give them some, and a closing pass would"),
    ],
)
def test_why_clusters_stay_empty(phase, all_on_centroids, said):
    figures = {
        "inertia": 1.0, "inertia_per_row": 0.5, "last_gain": 0.0, "empty": 1,
        "least_rows": 0, "median_rows": 1, "most_rows": 1,
    }  # fmt: skip
    config = FitConfig(k=3).resolved(100, 2)
    *_, note = result_lines(figures, config, phase, all_on_centroids=all_on_centroids)
    assert note.startswith(f"note: 1 of 3 clusters have no row: {said}")


# Breaks when the noise that a closing pass takes away is told as a sign that more passes would pay.
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rate": "mean"}, "the passes of algorithm lloyd may lower it further"),
        ({"algorithm": "lloyd"}, "more epochs may lower it further"),
        ({}, ""),
    ],
    ids=str,
)
def test_what_the_gain_of_the_last_pass_promises(settings, said):
    figures = {
        "inertia": 1.0, "inertia_per_row": 0.5, "last_gain": 0.02, "empty": 0,
        "least_rows": 1, "median_rows": 1, "most_rows": 1,
    }  # fmt: skip
    config = FitConfig(k=3, **settings).resolved(100, 2)
    _, *notes = result_lines(figures, config, "close", all_on_centroids=False)
    assert [said in note for note in notes] == ([True] if said else [])
