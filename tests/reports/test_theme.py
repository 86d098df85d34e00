"""Figures as SVG: colours that follow the page, text that stays text."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from streamkm.reports.theme import VARIABLES, clean, make_logarithmic, new_figure, to_svg


@pytest.fixture
def drawn() -> str:
    with new_figure() as figure:
        axes = figure.add_subplot()
        axes.plot([1, 2], [3, 4], clip_on=True)
        axes.scatter([1, 2], [3, 4], s=[5, 50]).set_gid("points")
        axes.set_xlabel("$\\frac{ <b> & 名前")
        axes.set_title('id="axes_1"')
    return to_svg(figure, "name", "A title <1>", "What it shows", {"points": ["one", "two <i>"]})


def test_colours_are_those_of_the_page(drawn: str) -> None:
    assert not [colour for colour in VARIABLES if colour in drawn]
    assert "var(--ink)" in drawn
    assert "var(--grid)" in drawn


def test_text_stays_text(drawn: str) -> None:
    root = ET.fromstring(drawn)
    texts = ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "$\\frac{ <b> & 名前" in texts
    assert 'id="axes_1"' in texts
    assert "DejaVu" not in drawn


def test_identifiers_are_of_this_figure(drawn: str) -> None:
    ids = re.findall(r'<[^>]* id="([^"]+)"', drawn)
    assert ids
    assert all(identifier.startswith("name-") for identifier in ids)
    links = re.findall(r'href="#([^"]+)"', drawn) + re.findall(r"url\(#([^)]+)\)", drawn)
    assert links
    assert set(links) <= set(ids)


def test_marks_have_words(drawn: str) -> None:
    root = ET.fromstring(drawn)
    svg = "{http://www.w3.org/2000/svg}"
    assert [each.text for each in root.iter(f"{svg}title")] == ["A title <1>", "one", "two <i>"]
    assert [each.text for each in root.iter(f"{svg}desc")] == ["What it shows"]


def test_nothing_of_the_day_or_of_another_server_is_in_it(drawn: str) -> None:
    assert "metadata" not in drawn
    assert set(re.findall(r'"(https?://[^"]+)"', drawn)) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("a\x00b\x1b[0m\n c", 0, "a b [0m c"),
        ("\ud800\ufffe名", 0, "名"),
        ("abcdef", 4, "abc…"),
        ("abcd", 4, "abcd"),
        (17, 0, "17"),
    ],
)
def test_text_is_brought_on_one_line(text, length: int, expected: str) -> None:
    assert clean(text, length) == expected


@pytest.mark.parametrize("values", [(1, 1e5), (0.001, 0.02), (100, 130), (2e-9, 3e-9)])
def test_a_logarithmic_axis_has_plain_numbers(values) -> None:
    with new_figure() as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], values)
        axes.set_yscale("log")
        make_logarithmic(axes.yaxis)
    drawn = to_svg(figure, "n", "t", "d", {})
    assert "mathdefault" not in drawn
    assert len(re.findall(r"<text", drawn)) >= 4
