"""More rows of one cluster than float32 can count: 2^24 + 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streamkm.config import ExecutionConfig, FitConfig
from streamkm.runs.evaluate import evaluate
from streamkm.runs.fit import fit
from streamkm.runs.reporting.signals import StopRequest
from streamkm.sources import open_source, open_weights

if TYPE_CHECKING:
    from pathlib import Path

N_ROWS = 2**24 + 1
BATCH_ROWS = 2**19
CPU = ExecutionConfig(device="cpu")


def fitted(folder: Path, rows: np.ndarray, dtype: str, algorithm: Any, **options):
    np.save(folder / "first.npy", np.array([[100.0]]))
    config = FitConfig(
        k=1, algorithm=algorithm, epochs=1, batch_rows=BATCH_ROWS, init=str(folder / "first.npy")
    )
    source = open_source(rows, dtype=dtype)
    run_dir = folder / "run"
    return source, fit(
        source, config, CPU, run_dir, resume=False, stop_request=StopRequest(), **options
    )


# Breaks when a count passes through float32, which 2^24 + 1 does not fit, or a sum does. (Whole
# numbers whose sums over a batch float32 holds: what is left to err is what adds up batches.)
@pytest.mark.parametrize(
    ("dtype", "algorithm"),
    [
        ("float32", "minibatch"),
        *((dtype, "lloyd") for dtype in ("float32", "float16", "bfloat16", "uint8", "int8")),
    ],
)
def test_counts_and_sums_are_exact(dtype, algorithm, tmp_path) -> None:
    one, three = (0x3F80, 0x4040) if dtype == "bfloat16" else (1, 3)
    rows = np.full((N_ROWS, 1), three, "uint16" if dtype == "bfloat16" else dtype)
    rows[-1] = one
    source, model = fitted(tmp_path, rows, dtype, algorithm)
    assert model.counts_K.tolist() == [N_ROWS]
    total = model.sums_KD + N_ROWS * model.scaling.shift_D
    assert total.tolist() == [[3.0 * 2**24 + 1]]
    assert model.inertia == pytest.approx(4.0, rel=1e-3)
    if dtype == "uint8":
        evaluation = evaluate(tmp_path / "run", source, CPU, stop_request=StopRequest())
        assert evaluation.sizes == [N_ROWS]
        assert evaluation.inertia == pytest.approx(4.0, rel=1e-5)


def test_weights_are_exact_too(tmp_path) -> None:
    rows = np.full((N_ROWS, 1), 3, np.uint8)
    weights = np.ones(N_ROWS, np.uint8)
    weights[0] = 0
    _, model = fitted(tmp_path, rows, "uint8", "lloyd", weights=open_weights(weights, N_ROWS))
    assert model.counts_K.tolist() == [2**24]
    assert model.weights_K.tolist() == [2.0**24]
    weights[:] = 1
    assert open_weights(weights, N_ROWS).n_positive == N_ROWS
