"""`streamkm.sweep`: fitted estimators and a table."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from streamkm import KMeans, MiniBatchKMeans, load_run, sweep
from streamkm.errors import ConfigError
from tests.runs.helpers import clusters

if TYPE_CHECKING:
    from pathlib import Path


# Breaks when estimators belong to other rows of the table, or cannot be used.
def test_estimators_and_table_belong_together() -> None:
    x = clusters(3000, 5)
    found = sweep(x, [8, 3], seeds=[0, 1], max_host_memory="1GiB")
    assert [row["k"] for row in found.table] == [3, 3, 8, 8]
    for estimator, row in zip(found.estimators, found.table, strict=True):
        assert isinstance(estimator, MiniBatchKMeans)
        assert estimator.n_clusters == row["k"]
        assert np.bincount(estimator.predict(x)).tolist() == row["sizes"]
        assert 0 <= row["stability"] <= 1
    assert str(found).splitlines()[0].split()[:2] == ["k", "seed"]
    assert repr(found) == str(found)


# Breaks when settings do not reach the fits, or a folder is not one of `streamkm sweep`.
def test_settings_and_a_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", clusters(2000, 5))
    out = tmp_path / "sweep"
    found = sweep(tmp_path / "x.npy", [3, 4], out=out, algorithm="lloyd", epochs=5, device="cpu")
    assert all(isinstance(estimator, KMeans) for estimator in found.estimators)
    loaded = load_run(out / "k-0004")
    assert np.array_equal(loaded.cluster_centers_, found.estimators[1].cluster_centers_)
    again = sweep(
        tmp_path / "x.npy", [3, 4], out=out, resume=True, algorithm="lloyd", epochs=5, device="cpu"
    )
    assert again.table == found.table


# Breaks when a notebook shows other numbers than the terminal, or markup of a name.
def test_a_notebook_shows_table_and_recommendation() -> None:
    found = sweep(clusters(3000, 5), [3, 8], seeds=[0, 1])
    shown = found._repr_html_()
    lines = str(found).splitlines()
    cells = [line.replace("/", " ").split() for line in lines[1:5]]
    body = shown[shown.index("<tbody>") : shown.index("</tbody>")]
    rows = [re.sub("<[^>]*>", " ", row).replace("/", " ").split() for row in body.split("</tr>")]
    assert rows == [*cells, []]
    assert f"<strong>{found.recommendation['verdict']}</strong>" in shown
    assert lines[5].replace("'", "&#x27;") in shown
    assert shown.count("<th>") == len(body.split("</tr>")[0].split("</td>")) - 1


# Breaks when estimators of several spaces cannot be told apart, or one space speaks for all.
def test_several_scales_and_metrics() -> None:
    x = clusters(2000, 5)
    found = sweep(x, [3, 4], scale=["none", "zscore"], metric="euclidean")
    assert [row["scale"] for row in found.table] == ["none", "none", "zscore", "zscore"]
    for estimator, row in zip(found.estimators, found.table, strict=True):
        assert (estimator.scale, estimator.n_clusters) == (row["scale"], row["k"])
        assert np.bincount(estimator.predict(x)).tolist() == row["sizes"]
    assert [each["scale"] for each in found.recommendation["spaces"]] == ["none", "zscore"]
    assert "scale" in str(found).splitlines()[0]
    with pytest.raises(ValueError, match="metric must be one of euclidean, cosine, not 'angle'"):
        sweep(x, [3], metric=["euclidean", "angle"])


# Breaks when a tensor is read as other rows than the array that holds its numbers.
def test_a_tensor_is_swept_like_its_array() -> None:
    x = clusters(2000, 5)
    found = [sweep(rows, [3, 6]).table for rows in (x, torch.from_numpy(x))]
    assert found[0] == found[1]


def test_wrong_arguments() -> None:
    x = clusters(50, 3)
    with pytest.raises(ValueError, match=r"^n_clusters: each must be at most .* 50, not 60;"):
        sweep(x, [3, 60])
    with pytest.raises(ValueError, match="at least one value"):
        sweep(x, [])
    with pytest.raises(
        ValueError, match=r"^seeds: each must be a whole number of at least 0, not -1"
    ):
        sweep(x, [3], seeds=[0, -1])
    with pytest.raises(
        ValueError, match=r"^n_clusters: each must be a whole number of at least 1, not 0"
    ):
        sweep(x, [0, 3])
    with pytest.raises(ValueError, match=r"a sweep takes a list, seeds=\[3\], not seed$"):
        sweep(x, [3], seed=3)


# Breaks when a keyword that there is not is told as one of a class that nobody named.
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("max_iter", "; did you mean epochs?"),
        ("random_state", "; did you mean seeds?"),
        ("batch_size", "; did you mean batch_rows?"),
        ("epoch", "; did you mean epochs?"),
        ("sample", ", open_source has"),
        ("nonsense", ""),
    ],
)
def test_unknown_keywords(given: str, said: str) -> None:
    arguments: dict[str, Any] = {given: 1}
    with pytest.raises(TypeError) as caught:
        sweep(clusters(50, 3), [3], **arguments)
    assert str(caught.value) == f"sweep has no parameter {given}{said}"


# Breaks when a fraction is cut off in silence, or the error is one of numpy's.
@pytest.mark.parametrize("given", ["4 8", ["2:4:1"], [2.5], [[2], [3]], [True]])
def test_only_whole_numbers_are_taken(given: Any) -> None:
    for name in ("n_clusters", "seeds"):
        arguments = {"n_clusters": [2], "seeds": [0]} | {name: given}
        with pytest.raises(
            ConfigError, match=rf"^{name} must be whole numbers, such as \[2, 4, 8\]"
        ):
            sweep(clusters(50, 2), **arguments)
