"""End to end: a fit of one epoch over a Zarr array against the loop that people write."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import pytest

from bench.data import Shape, make_array
from bench.measure import Target, rate
from bench.peers import PhaseClock, sklearn_loop, streamkm_fit
from streamkm.config import FitConfig

if TYPE_CHECKING:
    from bench.conftest import Measure
    from bench.measure import Session

#: How much faster than scikit-learn's loop a fit has to be.
LEAST_RATIO = 2.0


@pytest.mark.parametrize("k", [64, 1024])
def test_fit(k: int, measure: Measure, session: Session) -> None:
    shape = Shape(1_000_000, 128)
    if session.quick:
        shape, k = Shape(32_768, 16, chunk_rows=4096), k // 16
    batch_rows = shape.chunk_rows
    path = make_array(session.data, shape, "zarr-lz4")
    config = FitConfig(k=k, batch_rows=batch_rows, epochs=1, closing_pass=False)
    clock = PhaseClock()
    result = measure(
        f"fit, {shape}, k={k}",
        "rows/s",
        {
            "streamkm": rate(
                shape.n_rows, lambda: streamkm_fit(path, config, session.data / "runs", clock=clock)
            ),
            "scikit-learn": rate(shape.n_rows, lambda: sklearn_loop(path, k, batch_rows)),
        },
    )
    reached = result.ratio("scikit-learn")
    result.target = Target(f">= {LEAST_RATIO:g} x", reached >= LEAST_RATIO)
    # The first fit was the warm-up.
    spent = {phase: median(values[1:] or values) for phase, values in clock.phases.items()}
    result.extra["phases_s"] = spent
    result.extra["train_rows_per_s"] = shape.n_rows / spent["train"]
    result.remark = ", ".join(f"{phase} {value:.2f} s" for phase, value in spent.items())
