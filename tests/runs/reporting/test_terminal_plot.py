"""A curve in the terminal, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from streamkm.runs.reporting import terminal_plot as module
from streamkm.runs.reporting.terminal_plot import terminal_plot
from tests.runs.helpers import cli


def test_a_curve_goes_from_the_greatest_to_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WIDTH", 5)
    monkeypatch.setattr(module, "HEIGHT", 3)
    assert terminal_plot([10, 20, 50], [4.0, 3.0, 2.0]) == [
        "           4 |*",
        "             | *",
        "           2 |    *",
    ]


@pytest.mark.parametrize(
    ("x", "y"), [([], []), ([1], [2]), ([1, 2], [3, 3]), ([1, 2], [3.00000001, 3])]
)
def test_what_has_no_shape_is_not_drawn(x: list[float], y: list[float]) -> None:
    assert terminal_plot(x, y) == []


def test_info_shows_the_course_of_a_run(tmp_path, capsys, rng) -> None:
    np.save(tmp_path / "x.npy", rng.normal(size=(200, 3)))
    run = tmp_path / "run"
    assert (
        cli("fit", tmp_path / "x.npy", "--k", 4, "--epochs", 2, "--init", "random", "--out", run)
        == 0
    )
    capsys.readouterr()
    assert cli("info", run) == 0
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("course       inertia per row, after 200 to 600 rows")
    assert sum("*" in line for line in lines[place:]) >= 2
    (run / "metrics.jsonl").unlink()
    assert cli("info", run) == 0
    assert "\ncourse" not in capsys.readouterr().out
