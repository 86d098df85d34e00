"""Figures of the model that a run ends with."""

from __future__ import annotations

import numpy as np
import pytest

from streamkm import MiniBatchKMeans
from streamkm.cli import main
from streamkm.runs.engine.summary import median_size


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
