"""The contenders of a fit: streamkm in process, the loop that people write, arithmetic alone."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import torch
import zarr
from sklearn.cluster import MiniBatchKMeans

from streamkm.clustering.algorithm import make_algorithm
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.clustering.state import initial_state
from streamkm.config import Cadence, ExecutionConfig, FitConfig
from streamkm.kernels import KernelRequest, cores_for_kernels, make_kernel
from streamkm.runs.fit import fit
from streamkm.runs.reporting.progress import Progress
from streamkm.runs.reporting.signals import StopRequest
from streamkm.sources import open_source
from streamkm.stream.slots import HostSlots, StreamMemory

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PhaseClock", "arithmetic_alone", "in_a_slot", "sklearn_loop", "streamkm_fit"]

#: Batches that the arithmetic alone takes in turn: more than fit a cache.
N_BATCHES_HELD = 8


@dataclass
class PhaseClock:
    """Seconds of the phases of each fit, taken where the run announces them."""

    phases: dict[str, list[float]] = field(default_factory=dict)
    _marks: list[tuple[str, float]] = field(default_factory=list)

    def mark(self, phase: str) -> None:
        # Seeding announces each of its stages; they count as one phase.
        self._marks.append((phase.partition(":")[0], time.perf_counter()))

    def finish(self, train_s: float) -> None:
        """Add one fit. `train_s` is when training reported last; what follows is saving."""
        self.mark("end")
        spent_s: dict[str, float] = {}
        for (phase, start), (_, stop) in zip(self._marks, self._marks[1:], strict=False):
            spent_s[phase] = spent_s.get(phase, 0.0) + stop - start
        spent_s["save"] = spent_s["train"] - train_s
        spent_s["train"] = train_s
        for phase, spent in spent_s.items():
            self.phases.setdefault(phase, []).append(spent)
        self._marks.clear()


def streamkm_fit(
    path: Path,
    config: FitConfig,
    folder: Path,
    *,
    clock: PhaseClock | None = None,
    checkpoint_every: str = "60s",
) -> None:
    """One fit into a fresh run folder, with all that the command line does after importing."""
    clock = clock or PhaseClock()
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as temporary:
        run_dir = Path(temporary) / "run"
        execution = ExecutionConfig(device="cpu", checkpoint_every=Cadence.parse(checkpoint_every))
        clock.mark("open")
        source = open_source(str(path))
        with patch.object(Progress, "begin", _marking(clock, Progress.begin)):
            fit(source, config, execution, run_dir, resume=False, stop_request=StopRequest())
        source.close()
        records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
        clock.finish(max(r["elapsed_s"] for r in records if r["phase"] == "train"))
        shutil.rmtree(run_dir)


def _marking(clock: PhaseClock, begin: Callable[..., None]) -> Callable[..., None]:
    def marked(progress: Progress, phase: str, *args: object, **kwargs: object) -> None:
        clock.mark(phase)
        begin(progress, phase, *args, **kwargs)

    return marked


def sklearn_loop(path: Path, k: int, batch_rows: int) -> None:
    """One pass of scikit-learn's partial_fit over a Zarr array, chunk by chunk."""
    array = zarr.open_array(path, mode="r")
    model = MiniBatchKMeans(k, batch_size=batch_rows, random_state=0)
    for start in range(0, array.shape[0], batch_rows):
        model.partial_fit(array[start : start + batch_rows])


def in_a_slot(x_ND: torch.Tensor) -> torch.Tensor:
    """A copy in memory like that of a run: in large pages, from the start of a cache line on."""
    slots = HostSlots(StreamMemory(1, len(x_ND), x_ND.nbytes, 1), torch.device("cpu"))
    copy = torch.from_numpy(slots.buffers[0]).view(x_ND.dtype).view(x_ND.shape)
    return copy.copy_(x_ND)


def arithmetic_alone(path: Path, config: FitConfig) -> Callable[[], None]:
    """The steps of one epoch on rows in memory, taken as a fit takes them from a window."""
    array = zarr.open_array(path, mode="r")
    n_rows, n_features = array.shape
    resolved = config.resolved(n_rows, n_features)
    batch_rows = resolved.batch_rows
    x_ND = in_a_slot(torch.from_numpy(np.asarray(array[: N_BATCHES_HELD * batch_rows])))
    batches = torch.randperm(len(x_ND)).int().split(batch_rows)
    device, dtype = torch.device("cpu"), torch.float32
    scaling = Scaling.fit("none", "euclidean", RunningMoments.of(x_ND[:batch_rows]), dtype)
    kernel = make_kernel("auto", KernelRequest(batch_rows, config.k, dtype, device))
    algorithm = make_algorithm(kernel, resolved, n_rows)
    prepare = Preparation.for_kernel(
        scaling, kernel, batch_rows=batch_rows, stored=x_ND.dtype, dtype=dtype
    )

    def epoch() -> None:
        state = initial_state(x_ND[: config.k].clone(), 0.0)
        algorithm.begin_epoch_(state)
        with cores_for_kernels(kernel.name):
            for index in range(-(-n_rows // batch_rows)):
                rows = batches[index % len(batches)]
                algorithm.update_(state, prepare(x_ND, rows), epoch=0, index=index)

    return epoch
