"""Peak resident memory of whole processes, for a small and a ten times larger array."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from bench.data import Shape, make_array
from bench.measure import Target
from bench.process import IMPORTED, import_rss, peak_rss
from streamkm.text import parse_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from bench.conftest import Measure
    from bench.measure import Session

MIB = 1 << 20
#: Share of imports and budget that may come on top of them.
TOLERANCE = 0.10
K = 64
BUDGETS = ("256MiB", "512MiB")
IMPORTS = "imports alone"
QUICK = {("fit", "npy", BUDGETS[0]), ("predict", "zarr-lz4", BUDGETS[0])}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("layout", ["npy", "zarr-lz4"])
@pytest.mark.parametrize("command", ["fit", "predict"])
def test_memory(command: str, layout: str, budget: str, measure: Measure, session: Session) -> None:
    if session.quick and (command, layout, budget) not in QUICK:
        pytest.skip("one case of each command shows that it runs")
    small, large = _shapes(session)
    with TemporaryDirectory(dir=_made(session.data)) as temporary:
        process = _Process(temporary, command, budget)
        paths = {shape: make_array(session.data, shape, layout) for shape in (small, large)}
        process.prepare(paths[small])
        result = measure(
            f"{command}, {layout}, {budget}",
            "MiB",
            {
                large.size: lambda: process.peak(paths[large]),
                small.size: lambda: process.peak(paths[small]),
                IMPORTS: import_rss,
            },
            rounds=1 if session.quick else min(session.rounds, 3),
            warmup=False,
        )
    limit = (result.median(IMPORTS) + parse_bytes(budget) / MIB) * (1 + TOLERANCE)
    peak = max(max(values) for name, values in result.samples.items() if name != IMPORTS)
    result.target = Target(f"<= {limit:.0f}, is {peak:.0f}", peak <= limit)
    result.extra["imported"] = IMPORTED


class _Process:
    """A command that runs several times, each time with an output of its own."""

    def __init__(self, folder: str, command: str, budget: str) -> None:
        self._folder, self._command, self._budget = folder, command, budget
        self._number = 0

    def prepare(self, path: Path) -> None:
        """Fit the run that predict needs."""
        if self._command == "predict":
            self._fit(path, f"{self._folder}/model")

    def peak(self, path: Path) -> float:
        self._number += 1
        out = f"{self._folder}/{self._number}"
        if self._command == "fit":
            return self._fit(path, out)
        return self._run("predict", f"{self._folder}/model", str(path), "--labels", f"{out}.npy")

    def _fit(self, path: Path, out: str) -> float:
        return self._run("fit", str(path), "--k", str(K), "--out", out)

    def _run(self, *arguments: str) -> float:
        budget = ("--max-host-memory", self._budget, "--device", "cpu")
        return peak_rss("-m", "streamkm", *arguments, *budget)


def _shapes(session: Session) -> tuple[Shape, Shape]:
    if session.quick:
        return Shape(32_768, 16, chunk_rows=4096), Shape(131_072, 16, chunk_rows=4096)
    return Shape(600_000, 128), Shape(6_000_000, 128)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
