"""Draws a curve in the terminal, of plain characters that any terminal and log can show."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["terminal_plot"]

#: Columns and lines of the curve.
WIDTH, HEIGHT = 56, 6


def terminal_plot(x: Sequence[float], y: Sequence[float]) -> list[str]:
    """Lines that show `y` over ascending `x`; the first and the last name the ends of `y`.

    Each point has one star. Of several that fall into one column the last counts. There are no
    lines for fewer than two points, or if the ends of `y` have the same name.
    """
    low, high = min(y, default=0.0), max(y, default=0.0)
    names = {0: f"{high:.6g}", HEIGHT - 1: f"{low:.6g}"}
    if len(x) < 2 or not high > low or len(set(names.values())) == 1:
        return []
    columns = {}
    for at, value in zip(x, y, strict=True):
        columns[round((at - x[0]) / ((x[-1] - x[0]) or 1) * (WIDTH - 1))] = value
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    for column, value in columns.items():
        grid[round((high - value) / (high - low) * (HEIGHT - 1))][column] = "*"
    return [
        f"{names.get(place, ''):>12} |{''.join(line).rstrip()}" for place, line in enumerate(grid)
    ]
