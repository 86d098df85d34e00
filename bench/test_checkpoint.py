"""The cost of checkpoints: one save, and fits that save every 10 seconds or every hour."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from bench.data import Shape, make_array
from bench.measure import Target, seconds
from bench.peers import streamkm_fit
from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.clustering.state import initial_state
from streamkm.config import FitConfig
from streamkm.runs.engine.snapshot import Cursor, Snapshot
from streamkm.runs.planning.environment import environment
from streamkm.runs.storage.checkpoint import save_checkpoint

if TYPE_CHECKING:
    from bench.conftest import Measure
    from bench.measure import Session

INTERVAL_S = 10.0
MOST_PERCENT = 1.0
K, D = 1024, 128


def test_save(measure: Measure, session: Session) -> None:
    session.data.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=session.data) as folder:
        snapshot, host = _snapshot(), environment(torch.device("cpu"), "cpu")

        def save() -> None:
            # As a fit does it. Each save needs a step number of its own.
            snapshot.step += 1
            manifest = {**snapshot.manifest(), "environment": host}
            save_checkpoint(Path(folder), snapshot.step, snapshot.tensors(), manifest, keep=2)

        timed = seconds(save)
        rounds = session.rounds if session.quick else max(session.rounds, 50)
        result = measure(
            f"one checkpoint, k={K}, d={D}",
            "ms",
            {"streamkm": lambda: 1e3 * timed()},
            rounds=rounds,
        )
    percent = result.median("streamkm") / 1e3 / INTERVAL_S * 100
    result.extra["percent_of_interval"] = percent
    result.target = Target(f"< 1 % of 10 s, is {percent:.2f} %", percent < MOST_PERCENT)


def test_fit_with_checkpoints(measure: Measure, session: Session) -> None:
    shape, epochs, often = Shape(1_000_000, 128), 6, "10s"
    k, rounds = K, min(session.rounds, 3)
    if session.quick:
        shape, epochs, k, often = Shape(32_768, 16, chunk_rows=4096), 2, 4, "8"
    path = make_array(session.data, shape, "zarr-lz4")
    config = FitConfig(k=k, batch_rows=shape.chunk_rows, epochs=epochs, closing_pass=False)

    def every(interval: str) -> None:
        streamkm_fit(path, config, session.data / "runs", checkpoint_every=interval)

    result = measure(
        f"fit, {epochs} epochs, k={k}, saving",
        "s",
        {
            f"every {often}": seconds(lambda: every(often)),
            "every 1h": seconds(lambda: every("1h")),
        },
        rounds=rounds,
    )
    # Other programs only ever add time, so least times say more of a difference this small.
    saving, without = (min(values) for values in result.samples.values())
    result.remark = f"least times differ by {saving / without - 1:+.1%}"


def _snapshot() -> Snapshot:
    cpu = torch.device("cpu")
    rows_KD = torch.randn((K, D), generator=torch.Generator().manual_seed(0))
    moments = RunningMoments.empty(D, cpu)
    moments.update_(rows_KD)
    return Snapshot(
        Cursor("train", 0, 1),
        moments,
        scaling=Scaling.fit("none", "euclidean", moments),
        state=initial_state(rows_KD, 0.0),
    )
