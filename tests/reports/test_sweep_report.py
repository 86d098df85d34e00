"""Reports of sweeps: their page, and one for each fit."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamkm
from streamkm.errors import RunError
from streamkm.reports import SweepReport
from streamkm.runs.storage.run_folder import read_config
from streamkm.sealed import seal
from tests.reports.browser import Browser, needs_browser
from tests.runs.helpers import cli, clusters

KS = (2, 3, 5)


def figures_of(name: str, k: int, seed: int, evaluated: dict[str, Any]) -> dict[str, Any]:
    sizes = sorted(evaluated["sizes"])
    return {
        "name": name, "k": k, "seed": seed, "rows": 400, "inertia": evaluated["inertia"],
        "inertia_per_row": evaluated["inertia_per_row"], "explained_variance": k / 10,
        "silhouette": evaluated["silhouette"], "simplified_silhouette": evaluated["silhouette"],
        "least_rows": sizes[0], "median_rows": sizes[k // 2], "most_rows": sizes[-1],
        "empty_clusters": 0,
    }  # fmt: skip


@pytest.fixture
def sweep(made: Path, tmp_path: Path) -> Path:
    """A folder such as a sweep writes, for one test to change."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "sweep"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``x.npy`` and ``sweep``: a run for each K and seed, and its record."""
    place = tmp_path_factory.mktemp("made")
    np.save(place / "x.npy", clusters(400, 3))
    folder = place / "sweep"
    runs, figures = [], []
    for k in KS:
        for seed in (0, 1):
            name = f"k-{k:04}" + f"-seed-{seed}" * (seed > 0)
            fit = ("fit", place / "x.npy", "--k", k, "--seed", seed, "--out", folder / name)
            assert cli(*fit) == 0
            with contextlib.redirect_stdout(io.StringIO()) as said:
                assert cli("evaluate", folder / name, place / "x.npy", "--json") == 0
            evaluated = json.loads(said.getvalue())
            runs.append({"name": name, "k": k, "seed": seed})
            figures.append(figures_of(name, k, seed, evaluated))
    config = read_config(folder / "k-0002")
    record = {
        "source": config["source"], "fit": config["fit"], "data": config["data"],
        "first_seed": 0, "runs": runs, "figures": figures,
        "stability": [{"k": k, "pairs": [0.9], "mean": 0.9, "least": 0.8} for k in KS],
        "recommendation": {
            "k": 3, "verdict": "recommended: k 3", "reasons": ["elbow: at k 3 <b>", "stability: x"],
            "elbow": None, "silhouette_k": 3,
        },
    }  # fmt: skip
    write(folder, record)
    return place


def write(folder: Path, record: dict[str, Any]) -> None:
    (folder / "sweep.json").write_bytes(seal(record))


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    del found["sha256"]
    return found


class Links(HTMLParser):
    """Where the links of a page lead."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        if tag == "a" and not dict(attrs)["href"].startswith("#"):
            self.found.append(dict(attrs)["href"])


def test_a_sweep_is_compared_and_its_fits_have_pages(sweep: Path) -> None:
    out = sweep.parent / "my report.html"
    assert cli("report", sweep, "-o", out) == 0
    page = out.read_text()
    assert "<h1>3 clusters stand out</h1>" in page
    assert "of K 2, 3, 5, 2 seeds each" in page
    assert "Elbow: at k 3 &lt;b&gt;." in page
    assert re.findall(r'<section id="([a-z]+)"', page) == ["verdict", "comparison", "tree", "fits"]
    links = Links(page).found
    assert len(links) == 6
    assert '<td><a href="my%20report-runs/k-0005-seed-1.html">k-0005-seed-1</a></td>' in page
    for link in links:
        target = out.parent / link.replace("%20", " ")
        assert "streamkm report" in target.read_text()[:200]
        # Rows are read only if they are named: once for each fit would be much.
        assert "Rows were not read, as was asked for." in target.read_text()


# Breaks when the lines of six passes cannot be told apart, or a long report is silent.
def test_rows_that_are_named_are_read_for_each_fit(sweep: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("streamkm.reports.sweep_report.LINE_EVERY_S", 0.0)
    made = streamkm.report(sweep, sweep.parent / "x.npy", verbose=True)
    assert isinstance(made, SweepReport)
    assert repr(made) == f"<SweepReport of {sweep}: 3 clusters stand out>"
    assert list(made.figures) == ["comparison", "tree"]
    assert all(page.seen is not None for page in made.pages.values())
    made.save(sweep.parent / "r.html")
    said = capsys.readouterr().err
    assert "reporting k-0005-seed-1, 6 of 6\n" in said
    assert "writing the page of k-0002, 1 of 6\n" in said
    assert "3 clusters stand out" in made._repr_html_()


# Breaks when a SOURCE after an option is refused, or a list is passed over where no rows are read.
def test_a_list_needs_rows_and_they_may_be_named_last(sweep: Path, capsys) -> None:
    out, texts = sweep.parent / "r.html", sweep.parent / "texts.txt"
    texts.write_text("".join(f"text {row}\n" for row in range(400)))
    assert cli("report", sweep, "--texts", texts, "-o", out) == 2
    said = "--texts says how rows are shown, and no rows are read; of a sweep name SOURCE for that"
    assert capsys.readouterr().err == f"streamkm: {said}\n"
    assert cli("report", sweep, "--texts", texts, "-o", out, sweep.parent / "x.npy") == 0
    assert "text 3" in (sweep.parent / "r-runs/k-0003.html").read_text()


def test_a_report_is_replaced_and_nothing_else(sweep: Path, capsys) -> None:
    out = sweep.parent / "r.html"
    for _ in range(2):
        assert cli("report", sweep, "-o", out) == 0
    before = out.read_bytes()
    (sweep.parent / "r-runs/k-0003.html").write_text("mine")
    assert cli("report", sweep, "-o", out) == 2
    assert "r-runs/k-0003.html exists and is no report" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_sweep_under_way_shows_the_fits_that_there_are(sweep: Path) -> None:
    record = record_of(sweep)
    for key in ("figures", "stability", "recommendation"):
        del record[key]
    record["runs"].append({"name": "k-0009", "k": 9, "seed": 0})
    write(sweep, record)
    made = streamkm.report(sweep)
    assert isinstance(made, SweepReport)
    assert made.verdict.findings[0].text.startswith("The sweep is not finished")
    assert len(made.pages) == 6
    assert not made.figures
    made.save(sweep.parent / "r.html")


# Breaks when one lucky seed makes the page name another K than the reasons do.
def test_the_greatest_silhouette_is_a_mean_of_seeds(sweep: Path) -> None:
    record = record_of(sweep)
    for row, silhouette in zip(record["figures"], (0.1, 0.1, 0.5, 0.6, 0.7, 0.2), strict=True):
        row["silhouette"] = silhouette
    write(sweep, record)
    page = streamkm.report(sweep).html()
    assert "0.550" in page
    assert "At 3 clusters, the mean of its seeds." in page


# Breaks when a damaged fit is left out of the page without a word.
def test_a_fit_without_a_page_is_told(sweep: Path) -> None:
    (sweep / "k-0003" / "model.safetensors").write_bytes(b"x")
    made = streamkm.report(sweep)
    assert isinstance(made, SweepReport)
    assert list(made.missing) == ["k-0003"]
    assert "model.safetensors" in made.missing["k-0003"]
    assert "--resume" in made.missing["k-0003"]
    assert "k-0003 has no page: " in made.html()


def test_where_nothing_stands_out_that_is_the_headline(sweep: Path) -> None:
    record = record_of(sweep)
    record["recommendation"] |= {"k": None, "verdict": "nothing stands out: no k is recommended"}
    record["stability"] = []
    for row in record["figures"]:
        row["silhouette"] = None
    write(sweep, record)
    page = streamkm.report(sweep).html()
    assert "<h1>No number of clusters stands out</h1>" in page
    assert "No K is recommended." in page
    assert "The silhouette is the simplified one." in page


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-9],
        lambda text: text.replace('"k": 3', '"k": 4', 1),
        lambda text: "[]",
    ],
)
def test_a_damaged_record_is_refused(damage, sweep: Path, capsys) -> None:
    file = sweep / "sweep.json"
    file.write_text(damage(file.read_text()))
    assert cli("report", sweep, "-o", sweep.parent / "r.html") == 2
    error = capsys.readouterr().err
    assert f"{file} is damaged" in error
    assert error.count("\n") == 1


def test_a_record_without_what_a_sweep_has_is_refused(sweep: Path) -> None:
    write(sweep, {"runs": []})
    with pytest.raises(RunError, match=r"sweep\.json is damaged: .*; restore it"):
        streamkm.report(sweep)


def test_one_k_is_a_sweep_too(sweep: Path) -> None:
    record = record_of(sweep)
    record["runs"] = record["runs"][:1]
    record["figures"] = record["figures"][:1]
    record["stability"] = []
    write(sweep, record)
    made = streamkm.report(sweep)
    assert list(made.figures) == ["comparison"]
    made.html()


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it(width: int, sweep: Path, browser: Browser) -> None:
    out = sweep.parent / "r.html"
    assert cli("report", sweep, "-o", out) == 0
    page = browser.open(out)
    page.resize(width)
    assert not page.console
    assert [r for r in page.requests if not r.startswith("data:")] == [out.resolve().as_uri()]
    assert page.look("document.documentElement.scrollWidth") <= width


# Breaks when fits of different scales are drawn into one curve, or share a tree or a silhouette.
def test_each_scale_and_metric_has_its_own_comparison(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", clusters(400, 3))
    folder = tmp_path / "sweep"
    words = ("--k", 2, 3, 5, "--seeds", 0, 1, "--scale", "none", "zscore", "--device", "cpu")
    assert cli("sweep", tmp_path / "x.npy", *words, "--out", folder) == 0
    made = streamkm.report(folder)
    assert isinstance(made, SweepReport)
    assert list(made.figures) == ["comparison-0", "tree-0", "comparison-1", "tree-1"]
    assert len(made.pages) == 12
    page = made.html()
    assert "Every K side by side: zscore, euclidean" in page
    assert "greatest silhouette" not in page
    assert "Scale zscore, metric euclidean: " in page
    none, zscore = made.facts.parts
    for part, scale in ((none, "none"), (zscore, "zscore")):
        assert {row["scale"] for row in part.figures} == {scale}
        assert len(part.figures) == 6
        mean = [each["mean"] for each in record_of(folder)["stability"] if each["scale"] == scale]
        assert [each["mean"] for each in part.stability.values()] == mean
        assert part.recommendation["scale"] == scale
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    # Of a sample, and with a K for one scale alone.
    record = record_of(folder)
    for row in record["figures"]:
        row["sampled_rows"] = 1234
    record["recommendation"]["k"] = None
    for space, k in zip(record["recommendation"]["spaces"], (3, None), strict=True):
        space["k"] = k
    write(folder, record)
    page = streamkm.report(folder).html()
    assert "<h1>What stands out depends on scale and metric</h1>" in page
    assert "of a sample of 1,234 rows" in page
