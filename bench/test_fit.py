"""End to end: a fit of one epoch over a Zarr array, beside the loop that people write."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import pytest

from bench.data import Shape, make_array
from bench.measure import Target, rate
from bench.peers import PhaseClock, arithmetic_alone, sklearn_loop, streamkm_fit
from bench.readers import first_touch, through_slots
from streamkm.config import FitConfig
from streamkm.sources import open_source

if TYPE_CHECKING:
    from bench.conftest import Measure
    from bench.measure import Session

#: How much faster than scikit-learn's loop a fit has to be, by the number of clusters.
LEAST_RATIO = {64: 3.0, 1024: 4.0}


# What a fit does once (seeding, the first touch of memory) weighs less with more rows.
@pytest.mark.parametrize(("n_rows", "k"), [(1_000_000, 64), (4_000_000, 64), (1_000_000, 1024)])
def test_fit(n_rows: int, k: int, measure: Measure, session: Session) -> None:
    shape, least_ratio = Shape(n_rows, 128), LEAST_RATIO[k]
    if session.quick:
        shape, k = Shape(32_768, 16, chunk_rows=4096), k // 16
    batch_rows = shape.chunk_rows
    path = make_array(session.data, shape, "zarr-lz4")
    # As the loop does: k-means++ on a sample, then one pass of mini-batches.
    config = FitConfig(k=k, batch_rows=batch_rows, epochs=1, init="k-means++", closing_pass=False)
    source = open_source(str(path))
    clock = PhaseClock()
    result = measure(
        f"one epoch, {shape}, k={k}",
        "rows/s",
        {
            "streamkm": rate(
                shape.n_rows, lambda: streamkm_fit(path, config, session.data / "runs", clock=clock)
            ),
            "scikit-learn": rate(shape.n_rows, lambda: sklearn_loop(path, k, batch_rows)),
            "reading alone": rate(shape.n_rows, through_slots(source)),
            "arithmetic alone": rate(shape.n_rows, arithmetic_alone(path, config)),
        },
    )
    # Between two fits, while scikit-learn's loop ran, memory was free for this long.
    pause_s = shape.n_rows / result.median("scikit-learn")
    touched_s = median(first_touch(source, pause_s) for _ in range(session.rounds))
    source.close()
    reached = result.ratio("scikit-learn")
    result.target = Target(f">= {least_ratio:g} x", reached >= least_ratio)
    # The first fit was the warm-up.
    spent = {phase: median(values[1:] or values) for phase, values in clock.phases.items()}
    result.extra["phases_s"] = spent
    # Decoding and arithmetic share the cores: at best, their times add up.
    limit_s = sum(
        shape.n_rows / result.median(alone) for alone in ("reading alone", "arithmetic alone")
    )
    result.extra["train_rows_per_s"] = shape.n_rows / spent["train"]
    result.extra["train_share_of_limit"] = limit_s / spent["train"]
    result.remark = ", ".join(f"{phase} {value:.2f} s" for phase, value in spent.items())
    result.extra["first_touch_core_s"] = touched_s
    result.remark += (
        f"; training at {limit_s / spent['train']:.2f} of the cores' limit, which leaves out the "
        f"first touch of memory, {touched_s:.2f} s of one core"
    )
