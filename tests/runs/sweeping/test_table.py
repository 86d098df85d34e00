"""The table of a sweep on the terminal."""

from __future__ import annotations

from typing import Any

from streamkm.runs.sweeping.table import stability_figures, table_lines

ROW: dict[str, Any] = {
    "rows": 100, "inertia": 12.5, "explained_variance": 0.5, "silhouette": 0.25,
    "silhouette_rows": 100, "simplified_silhouette": 0.2, "calinski_harabasz": 99.5,
    "davies_bouldin": 0.9, "least_rows": 3, "median_rows": 7.5, "most_rows": 10,
    "empty_clusters": 0,
}  # fmt: skip


# Breaks when a column is not aligned, the wrong value is marked, or a lower one counts as better.
def test_the_best_of_each_column_is_marked() -> None:
    better = {"silhouette": 0.5, "davies_bouldin": 1.25, "calinski_harabasz": 7.0}
    rows = [
        {**ROW, "k": 8, "seed": 0},
        {**ROW, "k": 1000, "seed": 0, **better, "simplified_silhouette": None},
    ]
    lines = table_lines(rows, [])
    assert lines[0].split("  ")[-1] == " rows: least / median / most"
    assert len({len(line) for line in lines[:3]}) == 1
    assert [line.split()[:8] for line in lines[1:3]] == [
        ["8", "12.5", "50.0%", "0.2500", "0.2000", "99.5*", "0.9000*", "3"],
        ["1,000", "12.5", "50.0%", "0.5000*", "-", "7", "1.2500", "3"],
    ]
    assert lines[3] == "* the best of its column; silhouette: by squared distances, of all rows"


# Breaks when the last line explains marks or a silhouette that the table has not.
def test_the_last_line_is_about_this_table() -> None:
    without = {"silhouette": None, "silhouette_rows": 0, "k": 4, "seed": 0}
    # (As earlier versions had it of rows with weights.)
    simplified = table_lines([ROW | without], [])[-1]
    assert simplified == "silhouette: only the simplified one"
    one = table_lines([ROW | without | {"simplified_silhouette": None}], [])[-1]
    assert one == "silhouette: none of fewer than two clusters with rows"


# Breaks when seeds cannot be told apart, or the agreement of one K is shown at another.
def test_seeds_and_stability_have_columns_of_their_own() -> None:
    rows = [{**ROW, "k": k, "seed": seed} for k in (2, 3) for seed in (0, 1)]
    agreed = [stability_figures(2, [1.0]), stability_figures(3, [0.5])]
    cells = [line.split() for line in table_lines(rows, agreed)]
    assert cells[0][:2] == ["k", "seed"]
    assert [row[8] for row in cells[1:5]] == ["1.0000*", "1.0000*", "0.5000", "0.5000"]


# Breaks when a fit in one space is the best of those in another, or has the stability of one.
def test_each_space_has_its_own_best() -> None:
    rows = [
        {**ROW, "k": k, "seed": 0, "scale": scale, "metric": "euclidean", "silhouette": silhouette}
        for scale, k, silhouette in (
            ("none", 2, 0.9), ("none", 3, 0.8), ("zscore", 2, 0.1), ("zscore", 3, 0.2),
        )
    ]  # fmt: skip
    agreed = [{"k": 3, "scale": "zscore", "metric": "euclidean", "mean": 0.5}]
    head, *lines = [line.split() for line in table_lines(rows, agreed)]
    assert head[:2] == ["k", "scale"]
    assert [line[4] for line in lines[:4]] == ["0.9000*", "0.8000", "0.1000", "0.2000*"]
    assert [line[8] for line in lines[:4]] == ["-", "-", "-", "0.5000"]
    said = table_lines(rows, agreed)[-1]
    assert said.startswith("* the best of its column, for each scale and metric; silhouette: ")


# Breaks when a table does not say which of its figures are those of a sample.
def test_a_sample_is_named() -> None:
    row = {**ROW, "k": 2, "seed": 0, "silhouette_rows": 60, "sampled_rows": 60}
    one, other = table_lines([row], [])[-2:]
    assert one == "silhouette: by squared distances, of 60 rows, among all 100"
    assert other.startswith("simplified silhouette, Davies-Bouldin and stability: of the same 60 r")


def test_stability_is_the_mean_of_all_pairs() -> None:
    found = stability_figures(4, [0.5, 1.0, 0.75])
    assert (found["mean"], found["least"]) == (0.75, 0.5)
