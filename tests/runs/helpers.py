"""Fits in this process that stop after some batches, and readers of what a run has written."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm import batch_rows
from streamkm.cli import main
from streamkm.config import Cadence, ExecutionConfig, FitConfig
from streamkm.distributed.world import ALONE
from streamkm.errors import Interrupted
from streamkm.runs.fit import fit
from streamkm.runs.predict import predict
from streamkm.runs.reporting.signals import StopRequest
from streamkm.sources import open_source
from streamkm.sources.weights import open_weights

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pytest

    from streamkm.distributed.world import World

#: What decides a run's result, and what it writes of it.
RESULTS = ("centroids.npy", "model.safetensors")


class StopAfter(StopRequest):
    """Asks to stop at the `n`-th time that it is looked at, and never again."""

    def __init__(self, n: int | None = None) -> None:
        self.n, self.looks = n, 0
        super().__init__()

    @property
    def signal_name(self) -> str | None:  # type: ignore[override]
        self.looks += 1
        return "SIGTERM" if self.looks == self.n else None

    @signal_name.setter
    def signal_name(self, value: str | None) -> None:
        pass


@dataclass
class Job:
    """A fit that can be attempted again and again."""

    source: Path
    run: Path
    settings: dict[str, Any]
    weights: Path | None = None

    def attempt(
        self,
        stop_at: int | None = None,
        *,
        resume: bool = True,
        world: World = ALONE,
        **execution: Any,
    ) -> int:
        """One attempt; how often the stop request was looked at."""
        stop = StopAfter(stop_at)
        source = open_source(self.source)
        weights = open_weights(self.weights, source.spec.n_rows) if self.weights else None
        try:
            fit(
                source,
                FitConfig(**self.settings),
                ExecutionConfig(**{"device": "cpu", **execution}),
                self.run,
                resume=resume,
                stop_request=stop,
                weights=weights,
                world=world,
            )
        finally:
            source.close()
            if weights is not None:
                weights.close()
        return stop.looks

    def interrupted(self, stop_at: int, **execution: Any) -> bool:
        """One attempt that stops early if it is not over by then; whether it was stopped."""
        try:
            self.attempt(stop_at, **execution)
        except Interrupted:
            return True
        return False

    @property
    def results(self) -> dict[str, bytes]:
        return {name: (self.run / name).read_bytes() for name in RESULTS}


def every(batches: int) -> Cadence:
    return Cadence(batches=batches)


def short_batches(patch: pytest.MonkeyPatch, n_rows: int) -> None:
    """Batches of `n_rows` at most, of rows however short."""
    patch.setattr(batch_rows, "MAX_BATCH_ROWS", n_rows)
    patch.setattr(batch_rows, "MOST_SHORT_ROWS", n_rows)


def steps_saved(run: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in (run / "checkpoints").glob("step-*"))


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Records of metrics.jsonl, every line of which must be strict JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def predicted(run: Path, source: Path, out: Path, stops: Iterable[int] = (), **execution: Any):
    """Labels of `source` by `run`, in an .npy file, after being stopped at each of `stops`."""
    label(run, source, out, stops, **execution)
    return np.load(out)


def label(
    run: Path,
    source: Path,
    out: Path,
    stops: Iterable[int] = (),
    *,
    distances: Path | None = None,
    asked: dict[str, Any] | None = None,
    **execution: Any,
) -> None:
    """Predict, in as many attempts as there are `stops` and one more; `asked` is more to find."""
    for stop_at in (*stops, None):
        rows = open_source(source)
        try:
            predict(
                run,
                rows,
                ExecutionConfig(**{"device": "cpu", **execution}),
                labels=out,
                **{"distances": distances, **(asked or {})},
                resume=True,
                stop_request=StopAfter(stop_at),
            )
            break
        except Interrupted:
            pass
        finally:
            rows.close()


def clusters(n_rows: int, n_features: int, *, n_clusters: int = 5, seed: int = 0) -> np.ndarray:
    """Overlapping Gaussian clusters, sorted by cluster as files often are; float32."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(scale=2.0, size=(n_clusters, n_features))
    labels = np.sort(rng.integers(n_clusters, size=n_rows))
    return (centres[labels] + rng.normal(size=(n_rows, n_features)) + 0.5).astype(np.float32)


def cli(*arguments: object) -> int:
    """The exit status of the command line with these arguments."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:  # argparse
        return int(end.code or 0)


def content(output: Path) -> bytes:
    """Every byte of an output, a file or a folder."""
    if output.is_file():
        return output.read_bytes()
    return b"".join(path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file())


def untimed(stderr: str) -> list[str]:
    """Lines of a log without the time that those of a run's progress begin with."""
    stamp = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} ")
    return [stamp.sub("", line) for line in stderr.splitlines()]
