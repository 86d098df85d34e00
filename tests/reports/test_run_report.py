"""Whole reports: by the command line and from Python, opened in a browser."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import streamkm
from streamkm import KMeans, open_source, report
from streamkm.errors import ConfigError, OutputExistsError
from streamkm.reports import Report, run_report
from streamkm.reports.figures import draw_spread
from tests.reports.browser import Browser, needs_browser
from tests.runs.helpers import StopAfter, cli, clusters

#: Names and texts that would run a script, end an element, or be read as mathematics.
HOSTILE = [
    "<script>document.title='run'</script>",
    "</title></style></svg><img src=x onerror=document.title='run'>",
    "\" onmouseover=\"document.title='run'\" x='",
    "$\\frac{1}{0$ {{ 7 * 7 }} {% raw %}",
    "a\x00b\x1b[31m\ud800\ufffe]]>&amp;<!--",
    "javascript:document.title='run'",
]


class Elements(HTMLParser):
    """The elements of a page and their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="session")
def made(blobs: Path) -> Path:
    """A report of the blobs, by the command line."""
    out = blobs / "report.html"
    assert cli("report", blobs / "run", blobs / "x.npy", "-o", out) == 0
    return out


def test_a_report_has_every_section(made: Path) -> None:
    page = made.read_text()
    anchors = re.findall(r'<section id="([a-z]+)"', page)
    assert anchors == [
        "verdict", "sizes", "spread", "map", "profiles", "examples", "course", "settings",
    ]  # fmt: skip
    assert "<h1>600 rows in 5 clusters</h1>" in page


# Breaks when a plot has no text alternative, no table, or shares an identifier with another.
def test_every_plot_has_words_and_a_table(made: Path) -> None:
    page = made.read_text()
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    assert len(figures) == 6
    for figure in figures:
        assert re.search(r'<svg [^>]*role="img"', figure)
        assert re.search(r"<title[^>]*>[^<]+</title><desc[^>]*>[^<]+</desc>", figure)
        assert figure.count("<tr>") > 2
    ids = [a["id"] for _, a in Elements(page).found if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(
        attributes.get("alt") is not None
        for tag, attributes in Elements(page).found
        if tag == "img"
    )


def test_a_page_loads_nothing(made: Path) -> None:
    loads = [
        value
        for tag, attributes in Elements(made.read_text()).found
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "data", "action", "srcset")
        and value is not None
        and not value.startswith(("#", "data:"))
    ]
    assert not loads
    assert "<script" not in made.read_text()


def test_all_clusters_can_be_saved(made: Path) -> None:
    (address,) = re.findall(r'href="data:text/csv;base64,([^"]+)"', made.read_text())
    lines = base64.b64decode(address).decode().splitlines()
    assert lines[0] == "cluster,rows,mean_distance,nearest_row,farthest_row,x,y"
    assert len(lines) == 6
    assert sum(int(line.split(",")[1]) for line in lines[1:]) == 600


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(width, scheme, made: Path, browser: Browser, tmp_path: Path) -> None:
    page = browser.open(made)
    page.resize(width)
    page.prefer(scheme)
    assert not page.console
    assert [r for r in page.requests if not r.startswith("data:")] == [made.resolve().as_uri()]
    # Nothing sticks out at the right.
    assert page.look("document.documentElement.scrollWidth") <= width
    ground = page.look("getComputedStyle(document.body).backgroundColor")
    shades = [int(number) for number in re.findall(r"\d+", ground)]
    assert (sum(shades) > 600) == (scheme == "light")
    # What is drawn follows the page.
    ink = page.look("getComputedStyle(document.querySelector('svg text')).fill")
    assert (sum(map(int, re.findall(r"\d+", ink))) > 400) == (scheme == "dark")
    (tmp_path / "page.png").write_bytes(page.picture())
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.height > 3000
        assert len(set(picture.convert("L").resize((40, 400)).tobytes())) > 20


@needs_browser
def test_it_prints_light(made: Path, browser: Browser) -> None:
    page = browser.open(made)
    page.prefer("dark")
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.look("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"
    assert page.printed().startswith(b"%PDF")


# ---- hostile data ------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A report of data whose every name and text is hostile."""
    x = clusters(90, len(HOSTILE))
    # Lone surrogates are no column's name in Parquet; lists of names may hold them.
    names = [name.replace("\ud800", "") for name in HOSTILE]
    table: dict[str, object] = {name: x[:, i] for i, name in enumerate(names)}
    table |= {
        "id": [names[i % 6] for i in range(90)],
        "text": [names[(i + 1) % 6] for i in range(90)],
    }
    folder: Path = tmp_path / "<img src=x onerror=document.title='run'>"
    folder.mkdir()
    pq.write_table(pa.table(table), folder / "x.parquet")
    run = folder / "run"
    KMeans(3, run_dir=run, random_state=0).fit(open_source(folder / "x.parquet", columns=names))
    where: dict[str, Any] = {
        "columns": names,
        "ids": "column:id",
        "texts": "column:text",
        "features_from": HOSTILE,
    }
    files = [f"<b>{i}.png" for i in range(90)]
    made = report(run, folder / "x.parquet", image_files=files, **where)
    return made.save(tmp_path / "report.html")


def test_what_the_data_says_is_escaped(hostile: Path) -> None:
    page = hostile.read_text()
    tags = {tag for tag, _ in Elements(page).found}
    assert not tags & {"script", "iframe", "object", "embed", "b0.png"}
    assert not [a for _, a in Elements(page).found for name in a if name.startswith("on")]
    assert "&lt;script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert not re.search("[\x00\x1b\ud800\ufffe]", page)


@needs_browser
def test_what_the_data_says_cannot_run(hostile: Path, browser: Browser) -> None:
    page = browser.open(hostile)
    assert page.look("document.title").startswith("run: 90 rows")
    assert page.look("document.scripts.length") == 0
    assert not page.console
    # Not even a script that had escaped the escaping.
    page.look(
        "document.body.insertAdjacentHTML('beforeend', \"<img src=x onerror=document.title='x'>\")"
    )
    page.look("new Promise(done => setTimeout(done, 100))")
    assert page.look("document.title").startswith("run: 90 rows")


# ---- how rows are shown ------------------------------------------------------


def test_rows_are_shown_as_images(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = digits / "images.html"
    assert cli("report", digits / "run", digits / "x.npy", "--image", "8x8", "-o", out) == 0
    assert f"written: {out}\n" == capsys.readouterr().out
    page = out.read_text()
    assert page.count('<img src="data:image/png') > 90
    assert '<section id="images"' in page
    # A picture is the row: of the first example of the first card.
    row, address = re.search(
        r'<li><img src="data:image/png;base64,([^"]+)" alt="row (\d+)"', page
    ).group(2, 1)  # type: ignore[union-attr]
    (digits / "row.png").write_bytes(base64.b64decode(address))
    x = np.load(digits / "x.npy")
    points = np.load(digits / "run/centroids.npy")
    low, high = points.min(), points.max()
    expected = np.clip((x[int(row)].reshape(8, 8) - low) / (high - low), 0, 1) * 255
    with Image.open(digits / "row.png") as picture:
        np.testing.assert_allclose(np.asarray(picture), expected, atol=1)


# Breaks when bytes of 0 to 16, as those of scikit-learn's digits, are all but black.
@pytest.mark.parametrize(("greatest", "white"), [(16, 16), (200, 255)])
def test_small_bytes_are_seen(greatest: int, white: int, tmp_path: Path) -> None:
    x = np.zeros((60, 4), np.uint8)
    x[:30, 1], x[30:, 2] = greatest, greatest // 2
    np.save(tmp_path / "x.npy", x)
    assert cli("fit", tmp_path / "x.npy", "--k", 2, "--out", tmp_path / "run") == 0
    page = report(tmp_path / "run", rows=False, image="2x2").html()
    found = set()
    for picture in re.findall(r'src="data:image/png;base64,([^"]+)"', page):
        (tmp_path / "c.png").write_bytes(base64.b64decode(picture))
        with Image.open(tmp_path / "c.png") as image:
            found.add(int(np.asarray(image).max()))
    assert max(found) == round(greatest / white * 255)


def test_features_have_the_names_that_are_given(blobs: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("alpha\nbeta\ngamma\ndelta\n")
    out = tmp_path / "r.html"
    given = ("--features-from", tmp_path / "names.txt", "-o", out)
    assert cli("report", blobs / "run", blobs / "x.npy", *given) == 0
    page = out.read_text()
    assert "The first component is mostly " in page
    assert re.search(r"<span>(alpha|beta|gamma|delta) [+-]\d\.\d</span>", page)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--image", "8x9"], "--image 8x9x1 has 72 values, a row has 64 features; give the shape"),
        (["--image", "8x8x2"], "--image must be HEIGHTxWIDTH or HEIGHTxWIDTHxCHANNELS"),
        (["--ids", "{short}"], "--ids {short} has 3 values, the source has 500 rows; give one for"),
        (["--texts", "{short}"], "--texts {short} has 3 values"),
        (["--image-files", "{short}"], "--image-files {short} has 3 values"),
        (
            ["--ids", "column:id"],
            ".npy: --ids column:id is for .parquet .arrow .arrows .feather, not",
        ),
        (["--no-rows", "--ids", "{short}"], "--ids says how rows are shown, and no rows are read"),
        (["--features-from", "{short}"], "--features-from {short} has 3 names, the run has 64"),
        (["--features-from", "none.txt"], "--features-from none.txt: cannot be read (No such file"),
    ],
)
def test_what_does_not_fit_is_refused(given, message, digits, tmp_path, capsys) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a\nb\nc\n")
    words = [word.format(short=short) for word in given]
    out = tmp_path / "r.html"
    assert cli("report", digits / "run", digits / "x.npy", *words, "-o", out) == 2
    error = capsys.readouterr().err
    assert message.format(short=short) in error
    assert error.count("\n") == 1
    assert not out.exists()


# ---- the file ----------------------------------------------------------------


def test_only_a_report_is_replaced(blobs: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "r.html"
    for _ in range(2):
        assert cli("report", blobs / "run", "--no-rows", "-o", out) == 0
    out.write_text("<html>a page of somebody's</html>")
    assert cli("report", blobs / "run", "--no-rows", "-o", out) == 2
    assert f"{out} exists and is no report; choose another name" in capsys.readouterr().err
    assert "somebody's" in out.read_text()
    assert cli("report", blobs / "run", "--no-rows", "-o", tmp_path) == 2
    assert "is a folder; name a file to write to" in capsys.readouterr().err


def test_a_report_of_many_clusters_is_small(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 255, size=(8000, 192)).astype(np.uint8)
    np.save(tmp_path / "x.npy", x)
    fit = ("fit", tmp_path / "x.npy", "--k", 1000, "--init", "random", "--out", tmp_path / "run")
    assert cli(*fit) == 0
    out = tmp_path / "r.html"
    texts = [f"{'a long text of many words ' * 20} {i}" for i in range(8000)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    shown = ("--image", "8x8x3", "--texts", tmp_path / "texts.txt")
    assert cli("report", tmp_path / "run", *shown, "-o", out) == 0
    assert out.stat().st_size < 3_000_000
    page = out.read_text()
    assert page.count("<article") == 60
    assert "60 of 1,000 clusters are shown" in page


# ---- from Python -------------------------------------------------------------


# Breaks when the highest dot lies on the edge of the plot.
def test_the_widest_cluster_lies_within_the_plot(blobs: Path) -> None:
    made = report(blobs / "run", blobs / "x.npy")
    assert isinstance(made, Report)
    assert made.seen is not None
    top = made.figures["spread"].axes[0].get_ylim()[1]
    assert top > 1.05 * np.nanmax(made.seen.mean_distance_K)


# Breaks when names of clusters that lie close together cover each other, or another cluster's dot.
def test_names_in_a_plot_cover_nothing() -> None:
    sizes_K = np.array([500, 503, 506, 540, 545, 700])
    distances_K = np.array([1.0, 1.01, 1.0, 1.0, 1.02, 1.5])
    figure, _ = draw_spread(sizes_K, distances_K)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    names = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert {"3", "5"} <= names.keys()
    dots = axes.transData.transform(np.column_stack([sizes_K, distances_K]))
    for name, box in names.items():
        assert not [n for n, b in names.items() if n != name and box.overlaps(b)]
        covered = [n for n, at in enumerate(dots) if box.contains(*at) and str(n) != name]
        assert not covered, (name, covered)


def test_figures_are_there_to_be_changed(blobs: Path, tmp_path: Path) -> None:
    made = report(blobs / "run", np.load(blobs / "x.npy"))
    assert list(made.figures) == ["sizes", "spread", "map", "profiles", "course", "stages"]
    made.figures["sizes"].axes[0].set_title("my own title")
    assert "my own title" in made.save(tmp_path / "r.html").read_text()
    assert not plt.get_fignums()  # None is held for ever.


def test_a_report_shows_itself_in_a_notebook(blobs: Path) -> None:
    made = report(blobs / "run", rows=False)
    assert repr(made) == f"<Report of {blobs / 'run'}: 600 rows in 5 clusters>"
    shown = made._repr_html_()
    assert "600 rows in 5 clusters" in shown
    assert "variance explained" in shown
    assert shown.count("<li>") >= 2


def test_lists_in_memory_are_checked(blobs: Path) -> None:
    with pytest.raises(ConfigError, match="ids has 3 values, the source has 600 rows"):
        report(blobs / "run", blobs / "x.npy", ids=[1, 2, 3])


def test_the_name_is_that_of_the_function() -> None:
    assert callable(streamkm.report)
    assert streamkm.report.__module__ == "streamkm.reports.front"


def test_the_same_run_gives_the_same_page(blobs: Path) -> None:
    pages = [report(blobs / "run", blobs / "x.npy").html() for _ in range(2)]
    first, second = (re.sub(r"Made \S+", "", page) for page in pages)
    assert first == second


# ---- runs that lack something ------------------------------------------------


def test_a_run_without_records_says_so(blobs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "model.safetensors", "centroids.npy"):
        (run / name).write_bytes((blobs / "run" / name).read_bytes())
    made = report(run, rows=False)
    assert "the run folder has no metrics.jsonl" in made.html()
    assert "course" not in made.figures


def test_a_damaged_model_is_refused(blobs: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_bytes((blobs / "run/config.json").read_bytes())
    (run / "model.safetensors").write_bytes((blobs / "run/model.safetensors").read_bytes()[:-7])
    assert cli("report", run, "-o", tmp_path / "r.html") == 2
    assert "model.safetensors is damaged" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("what", ["nothing", "a file", "a folder"])
def test_what_is_no_run_is_refused(what, tmp_path: Path, capsys) -> None:
    path = tmp_path / "run"
    if what == "a file":
        path.write_text("x")
    elif what == "a folder":
        path.mkdir()
    assert cli("report", path, "-o", tmp_path / "r.html") == 2
    error = capsys.readouterr().err
    assert re.search("does not exist|is no run", error)
    assert error.count("\n") == 1


def test_a_place_that_cannot_be_written_is_told(blobs: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "none" / "r.html"
    assert cli("report", blobs / "run", "-o", out) == 2
    said = f"streamkm: {out} cannot be written: there is no folder {out.parent}; make it\n"
    assert capsys.readouterr().err == said  # At once: no row was read.


def test_extreme_values_are_drawn(tmp_path: Path) -> None:
    """One cluster, constant features, numbers at the ends of float32."""
    x = np.zeros((50, 3), np.float32)
    x[:, 0] = np.linspace(-1e30, 1e30, 50)
    np.save(tmp_path / "x.npy", x)
    for k in (1, 2, 3):
        run = tmp_path / f"run-{k}"
        assert cli("fit", tmp_path / "x.npy", "--k", k, "--out", run) == 0
        page = report(run).html().replace("<td>nan</td>", "")  # The setting of this name.
        assert not re.search(r"\b(nan|inf)\b", re.sub(r'"data:[^"]*"', "", page))
    with pytest.raises(OutputExistsError):
        report(tmp_path / "run-1").save(tmp_path)


# Breaks when a page is written of half of the rows, or a signal ends nothing.
def test_a_report_that_is_stopped_writes_nothing(blobs: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(run_report, "StopRequest", lambda **_: StopAfter(1))
    out = tmp_path / "r.html"
    assert cli("report", blobs / "run", blobs / "x.npy", "-o", out) == 1
    assert "SIGTERM" in capsys.readouterr().err
    assert not out.exists()
