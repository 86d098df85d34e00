"""Examples of clusters: rows read one by one, and the pictures in files that the user names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamkm import report
from streamkm.reports import examples
from streamkm.reports.examples import read_rows
from streamkm.sources import open_source


@pytest.mark.parametrize("span_bytes", [1, 100, 1 << 20])
def test_single_rows_are_read(span_bytes: int, tmp_path: Path, rng, monkeypatch) -> None:
    monkeypatch.setattr(examples, "SPAN_BYTES", span_bytes)
    x = rng.normal(size=(500, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    source = open_source(tmp_path / "x.npy")
    found = read_rows(source, [499, 0, 7, 8, 100])
    source.close()
    assert sorted(found) == [0, 7, 8, 100, 499]
    for row, values in found.items():
        np.testing.assert_array_equal(values, x[row])


@pytest.fixture
def listed(digits: Path, tmp_path: Path) -> Path:
    """A list of image files beside it, some of which cannot be shown."""
    for number in range(4):
        Image.new("RGB", (300, 200), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_bytes(b"no picture")
    (tmp_path / "5.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    (tmp_path / "6.png").mkdir()
    names = [f"{row % 8}.png" for row in range(500)]
    path: Path = tmp_path / "files.txt"
    path.write_text("\n".join(names))
    return path


def test_pictures_in_files_are_made_small(digits: Path, listed: Path) -> None:
    page = report(digits / "run", digits / "x.npy", image_files=listed).html()
    assert page.count('<img src="data:image/jpeg') > 20
    assert len(page) < 600_000
    # What cannot be shown says why, and is no error.
    assert "6.png: there is no such file" in page
    assert "7.png: there is no such file" in page
    assert "4.png: cannot be read as a picture" in page
    assert "5.png: cannot be read as a picture" in page


def test_a_picture_of_too_many_pixels_is_not_opened(
    digits: Path, listed: Path, monkeypatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    page = report(digits / "run", digits / "x.npy", image_files=listed).html()
    assert '<img src="data:image/jpeg' not in page
    assert "exceeds limit" in page


def test_pictures_end_where_they_would_be_too_much(digits: Path, listed: Path, monkeypatch) -> None:
    monkeypatch.setattr(examples, "PICTURE_BYTES", 2000)
    page = report(digits / "run", digits / "x.npy", image_files=listed).html()
    shown = page.count('<img src="data:image/jpeg')
    assert 0 < shown < 12
    assert ">1.png<" in page  # The others are named.
