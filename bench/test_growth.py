"""The time that a row takes, with ten times the rows and with ten times the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bench.data import Shape, make_array
from bench.measure import Target
from bench.peers import PhaseClock, streamkm_fit
from streamkm.config import FitConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.conftest import Measure
    from bench.measure import Comparison, Session

K = 256
#: How many times as long a row may take in the larger array, and in the larger batch.
MOST_ROWS, MOST_BATCH = 1.05, 1.10


def test_rows(measure: Measure, session: Session) -> None:
    small, large = Shape(600_000, 128), Shape(6_000_000, 128)
    if session.quick:
        small, large = (Shape(n, 16, chunk_rows=4096) for n in (16_384, 163_840))
    config = FitConfig(k=K, batch_rows=small.chunk_rows, epochs=1, closing_pass=False)
    contenders = {
        f"{shape.n_rows:,} rows": _training(session.data, shape, config) for shape in (large, small)
    }
    _bound(measure(f"training, 10 x the rows, k={K}", "ns/row", contenders), MOST_ROWS)


def test_batch(measure: Measure, session: Session) -> None:
    shape = Shape(1_000_000, 128)
    if session.quick:
        shape = Shape(32_768, 16, chunk_rows=4096)
    config = FitConfig(k=K, epochs=1, closing_pass=False)
    contenders = {
        f"batches of {n:,}": _training(session.data, shape, replace(config, batch_rows=n))
        for n in (10 * shape.chunk_rows // 4, shape.chunk_rows // 4)
    }
    _bound(measure(f"training, 10 x the batch, k={K}", "ns/row", contenders), MOST_BATCH)


def _training(data: Path, shape: Shape, config: FitConfig) -> Callable[[], float]:
    """Nanoseconds of training a row; sampling and seeding, which do not grow, are left out."""
    path = make_array(data, shape, "zarr-lz4")

    def sample() -> float:
        clock = PhaseClock()
        streamkm_fit(path, config, data / "runs", clock=clock)
        return 1e9 * clock.phases["train"][0] / shape.n_rows

    return sample


def _bound(result: Comparison, most: float) -> None:
    _, smaller = result.samples
    grown = result.ratio(smaller)
    result.target = Target(f"<= {most:g} x, is {grown:.2f} x", grown <= most)
