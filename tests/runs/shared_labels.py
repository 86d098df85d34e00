"""What one process or several do with models, for tests that compare what they write."""

from __future__ import annotations

import json
import warnings
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from streamkm import KMeans, MiniBatchKMeans
from streamkm.config import Cadence, ExecutionConfig, FitConfig
from streamkm.runs import predict as predicting
from streamkm.runs.engine import agreement
from streamkm.runs.evaluate import evaluate
from streamkm.runs.fit import fit
from streamkm.runs.predict import predict
from streamkm.runs.reporting.signals import StopRequest
from streamkm.sinks import npy, open_sink
from streamkm.sources import open_source, open_weights
from streamkm.stream import plan
from tests.runs.helpers import short_batches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamkm.distributed.world import World

N, D, K = 9_003, 5, 6
#: Rows of a batch, at most, so that there are several.
BATCH_ROWS = 1_024
BAD = (4, 4_000, 8_999)


@dataclass(frozen=True)
class Case:
    """A run, and rows for it."""

    name: str
    source: str
    settings: dict[str, Any]
    weights: str | None = None
    window_bytes: int = 40_000
    more: tuple[str, ...] = ()
    """Further labels."""


CASES = [
    Case("euclidean", "x.zarr", {"nan": "drop"}),
    Case("weighted", "x.npy", {"nan": "drop", "scale": "zscore"}, weights="w.npy"),
    # Blocks of several batches, of which a window holds one: all but one process pass it over.
    Case("cosine", "wide.zarr", {"nan": "drop", "metric": "cosine"}, window_bytes=1),
    Case("map", "map.zarr", {"nan": "drop"}, more=("cube.zarr/cluster",)),
    # Fewer blocks than processes.
    Case("one block", "block.zarr", {"nan": "drop"}),
]


def prepare(folder: Path) -> None:
    """Write arrays and finished runs into `folder`."""
    rng = np.random.default_rng(0)
    x_ND = rng.normal(size=(N, D)) + 3 * rng.normal(size=(K, D))[rng.integers(K, size=N)]
    x_ND = x_ND.astype(np.float32)
    np.save(folder / "clean.npy", x_ND)
    x_ND[list(BAD), 1] = np.nan
    np.save(folder / "x.npy", x_ND)
    weights_N = rng.integers(0, 4, N) / 3
    np.save(folder / "w.npy", weights_N)
    for name, rows in (("x.zarr", 300), ("wide.zarr", 2_500)):
        array = zarr.create_array(
            folder / name, shape=x_ND.shape, chunks=(rows, D), dtype=x_ND.dtype
        )
        array[:] = x_ND
    cube = zarr.create_array(
        folder / "map.zarr", shape=(3, N // 3, D), chunks=(1, 500, D), shards=(1, 1500, D),
        dtype=x_ND.dtype, dimension_names=("y", "x", "band"),
    )  # fmt: skip
    cube[:] = x_ND.reshape(cube.shape)
    block = zarr.create_array(folder / "block.zarr", shape=(N, D), chunks=(N, D), dtype=x_ND.dtype)
    block[:] = x_ND
    for case in CASES:
        with closing(open_source(folder / case.source)) as source:
            settings = FitConfig(k=K, algorithm="lloyd", epochs=2, seed=1, **case.settings)
            fit(
                source, settings, execution(), folder / f"{case.name}.run",
                resume=False, stop_request=StopRequest(), quiet=True,
            )  # fmt: skip


def execution(**more: Any) -> ExecutionConfig:
    return ExecutionConfig(**{"device": "cpu", **more})


@contextmanager
def small(case: Case, *, save_often: bool = False) -> Iterator[None]:
    """Windows, batches, and spans of outputs so small that there are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "WINDOW_BYTES", case.window_bytes)
        short_batches(patch, BATCH_ROWS)
        patch.setattr(npy, "SPAN_BYTES", 512)
        patch.setattr(predicting, "open_sink", partial(open_sink, chunk_rows=700))
        if save_often:
            patch.setattr(agreement, "MOST_STEPS", 1)
        yield


def write_all(folder: Path, out: Path, world: World) -> None:
    """Write into `out` all that is made of the runs in `folder`."""
    if world.is_first:
        out.mkdir()
    for case in CASES:
        # The others do not see the run.
        run = folder / f"{case.name}.run" if world.is_first else folder / "nowhere"
        more: dict[str, Any] = {"stop_request": StopRequest(), "world": world}
        with ExitStack() as stack:
            stack.enter_context(small(case))
            source = stack.enter_context(closing(open_source(folder / case.source)))
            weights = None
            if case.weights is not None:
                weights = open_weights(folder / case.weights, N)
                stack.enter_context(closing(weights))
            base = out / case.name
            both: dict[str, Any] = {
                "labels": base.with_suffix(".npy"),
                "distances": base.with_suffix(".d.npy"),
            }
            n_dropped = predict(run, source, execution(), resume=False, **both, **more)
            assert n_dropped == len(BAD)
            for name in case.more:
                for nearest in (None, 3):
                    labels = out / f"{name}{nearest or ''}"
                    predict(
                        run, source, execution(), labels=labels, nearest=nearest, resume=False,
                        **more,
                    )  # fmt: skip
            predict(run, source, execution(), labels=base.with_suffix(".zarr"), resume=True, **more)
            # A table of both columns.
            predict(
                run,
                source,
                execution(),
                labels=base.with_suffix(".parquet"),
                resume=False,
                **more,
            )
            several: dict[str, Any] = {
                "labels": base.with_suffix(".several.npy"),
                "distances": base.with_suffix(".several.zarr"),
                "second": base.with_suffix(".second.npy"),
            }
            predict(run, source, execution(), nearest=3, resume=False, **several, **more)
            # A table of lists.
            lists = base.with_suffix(".several.parquet")
            predict(run, source, execution(), labels=lists, nearest=3, resume=False, **more)
            # It is finished: nobody labels anything.
            predict(run, source, execution(), resume=True, **both, **more)
            fast = base.with_suffix(".fast.npy")
            predict(run, source, execution(), labels=fast, search="fast", resume=False, **more)
            found = [
                evaluate(run, source, execution(), weights=weights, search=search, **more)
                for search in ("exact", "fast")
            ]
            assert [each.n_dropped for each in found] == [len(BAD)] * 2
        if world.is_first:
            for suffix, each in zip((".json", ".fast.json"), found, strict=True):
                base.with_suffix(suffix).write_text(json.dumps(each.as_dict()))


def estimated(folder: Path) -> dict[str, np.ndarray]:
    """What estimators find, in whatever group there is."""
    x_ND = np.load(folder / "clean.npy")
    weights_N = np.load(folder / "w.npy")
    found: dict[str, np.ndarray] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for estimator in (
            KMeans(K, init="random", n_init=2, max_iter=3, random_state=0),
            KMeans(K, init=lambda x, k, random_state: x[:k], n_init=2, max_iter=3, random_state=0),
            MiniBatchKMeans(K, batch_size=1000, random_state=0),
        ):
            estimator.fit(x_ND, sample_weight=weights_N)
            at = f"{type(estimator).__name__} {len(found)} "
            found[at + "centroids"] = estimator.cluster_centers_
            found[at + "labels"] = estimator.labels_
            found[at + "inertia"] = np.array(estimator.inertia_)
            found[at + "predicted"] = estimator.predict(str(folder / "clean.npy"))
            found[at + "score"] = np.array(estimator.score(x_ND))
    return found


class StopsAt(StopRequest):
    """A signal comes at the `n`-th look in process `rank`; with `kill` it is SIGKILL."""

    def __init__(self, n: int, is_here: bool, kill: Any = None) -> None:
        self._n, self._is_here, self._kill = n, is_here, kill
        super().__init__()

    @property
    def signal_name(self) -> str | None:  # type: ignore[override]
        self._n -= 1
        if self._n < 0 and self._is_here:
            if self._kill is not None:
                self._kill()
            return "SIGTERM"
        return None

    @signal_name.setter
    def signal_name(self, value: str | None) -> None:
        pass


def predict_until(
    folder: Path, base: Path, suffix: str, nearest: int | None, world: World, stop: StopRequest
) -> None:
    """Go on with the labels of the first case, saving after every batch."""
    case = CASES[0]
    with small(case, save_often=True), closing(open_source(folder / case.source)) as source:
        predict(
            folder / f"{case.name}.run",
            source,
            execution(checkpoint_every=Cadence(batches=1)),
            labels=base.with_suffix(suffix),
            distances=base.with_suffix(f".d{suffix}"),
            nearest=nearest,
            resume=True,
            stop_request=stop,
            world=world,
        )
