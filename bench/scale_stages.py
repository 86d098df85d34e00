"""Times the stages of a fit on the CPU, and then the fit: one process of `bench.scale_check`.

``python -m bench.scale_stages ARRAY K ALGORITHM PASSES`` is one process, or with RANK, WORLD_SIZE
and what torch needs besides, one of several that do so at the same time. First each times its
stages: nobody waits for anybody, each reads ahead as in a run, and times are those of the processor
for one thread, so that what other programs take of the cores hardly counts. Every batch is timed,
and the median counts. Then reductions are timed, and then all fit the array together. They begin
when other programs leave the cores alone: what these take of them is noted.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch

from streamkm.clustering import minibatch
from streamkm.clustering.algorithm import make_algorithm
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.reservoir import draw_
from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.clustering.state import initial_state
from streamkm.config import ExecutionConfig, FitConfig
from streamkm.distributed.joining import joined
from streamkm.machine import n_cores
from streamkm.runs.engine.run_kernel import RunKernel
from streamkm.runs.fit import fit, plan_fit
from streamkm.runs.reporting.signals import StopRequest
from streamkm.sources import open_source
from streamkm.stream.pipeline import open_slots, stream
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.clustering.algorithm import Algorithm
    from streamkm.clustering.state import KMeansState
    from streamkm.distributed.world import World
    from streamkm.runs.planning.fit_plan import FitPlan
    from streamkm.sources.base import Source
    from streamkm.stream.plan import Window

#: Windows on which a stage is timed.
WINDOWS = 6
#: The share of a batch that is timed to tell what its rows cost from what the batch does.
SMALL_SHARE = 8
#: Bytes of the small reduction, and how often each is timed.
SMALL_BYTES, TIMES = 8, 50
#: Seconds of the passes that make a sample, at least: the cores are counted in hundredths.
LEAST_S = 0.4
#: Seconds of a look at what others take of the cores.
LOOK_S = 0.4


class Stages:
    """The stages of one fit in this process, which works alone on batches of its own."""

    def __init__(self, plan: FitPlan) -> None:
        self._plan = plan
        self._kernel = RunKernel(plan)
        self._slots = open_slots(plan.source, plan.memory.stream, plan.device)
        self._offering: list[float] = []

    def rates(self) -> dict[str, float]:
        """Every stage, by the names of `bench.scaling.Rates`."""
        state = initial_state(self._first_rows(), 0.0)
        kernel = self._kernel.for_clusters
        algorithm = make_algorithm(kernel, self._plan.config, self._plan.reading.n_rows)
        with self._kernel.cores():
            return {
                "read_s": self._read_s(),
                "deal_s": self._deal_s(),
                **self._arithmetic(algorithm, state),
                "move_s": self._move_s(algorithm, state),
            }

    def _first_rows(self) -> torch.Tensor:
        block, k = self._read_block(0), self._plan.config.k
        return torch.from_numpy(block[:: len(block) // k][:k].astype(np.float32))

    def _read_block(self, number: int) -> np.ndarray:
        plan = self._plan
        rows, spec = plan.reading.block(number), plan.source.spec
        part = self._slots.buffers[0][: len(rows) * spec.row_bytes]
        block = part.view(spec.storage).reshape(len(rows), spec.n_features)
        plan.source.read(rows, block)
        return block

    def _read_s(self) -> float:
        reading = self._plan.reading
        numbers = range(reading.n_rows // reading.block_rows)
        spent = [seconds(partial(self._read_block, number)) for number in numbers]
        return median(spent) / reading.block_rows

    def _deal_s(self) -> float:
        """Of a window that two processes share: one alone does not ask whose a row is."""
        if self._plan.reading.seed is None:
            return 0.0
        windows = islice(self._plan.reading.windows(0, n_processes=2), WINDOWS)
        spent = [seconds(partial(_deal, window)) / window.whole.n_rows for window in windows]
        return median(spent)

    def _arithmetic(self, algorithm: Algorithm, state: KMeansState) -> dict[str, float]:
        whole, small = (self._batches(algorithm, state, share) for share in (1, SMALL_SHARE))
        prepare_s = median(preparing / rows for rows, preparing, _ in whole)
        (rows, _, updating), (few, _, few_updating) = (
            [median(column) for column in zip(*batches, strict=True)] for batches in (whole, small)
        )
        assign_s = (updating - few_updating) / (rows - few)
        batch_s = updating - rows * assign_s
        beside_s = median(self._offering) if self._plan.reading.seed is not None else 0.0
        return {
            "copy_s": 0.0,
            "prepare_s": prepare_s,
            "assign_s": assign_s,
            "batch_s": batch_s,
            "beside_s": beside_s,
        }

    def _batches(
        self, algorithm: Algorithm, state: KMeansState, share: int
    ) -> list[tuple[int, float, float]]:
        """(rows, seconds of preparing, seconds of updating) for one in `share` rows of batches."""
        plan = self._plan
        moments = RunningMoments.empty(plan.source.spec.n_features, plan.device)
        scaling = Scaling.fit("none", "euclidean", moments, plan.dtype)
        prepare = Preparation.for_kernel(
            scaling, algorithm.kernel, batch_rows=plan.config.batch_rows, stored=plan.stored,
            dtype=plan.dtype,
        )  # fmt: skip
        algorithm.begin_epoch_(state)
        found = []
        windows = islice(plan.reading.windows(0), WINDOWS)

        def offered(*arguments: Any) -> None:
            self._offering.append(seconds(partial(draw_, *arguments)))

        with (
            patch.object(minibatch, "draw_", offered),
            stream(plan.source, windows, self._slots, StageTimes()) as on_device,
        ):
            for window in on_device:
                for index, rows in window.batches():
                    begin = time.thread_time()
                    own = (
                        slice(rows.start, rows.start + (rows.stop - rows.start) // share)
                        if isinstance(rows, slice)
                        else rows[: len(rows) // share]
                    )
                    batch = prepare(window.x_ND, own)
                    prepared = time.thread_time()
                    algorithm.update_(state, batch, epoch=0, index=index)
                    done = time.thread_time()
                    found.append((len(batch), prepared - begin, done - prepared))
        return found

    def _move_s(self, algorithm: Algorithm, state: KMeansState) -> float:
        """Of the end of a pass. In a step of mini-batches, moving is part of what a batch costs."""
        if self._plan.reading.seed is not None:
            return 0.0
        return seconds(partial(algorithm.finish_epoch_, state))


def _deal(window: Window) -> None:
    window.dealt().order()


def seconds(call: Callable[[], object]) -> float:
    """Processor time of a call, by this thread."""
    begin = time.thread_time()
    call()
    return time.thread_time() - begin


def reduction_s(world: World, n_bytes: int) -> float:
    """Seconds of an all-reduce among processes that have nothing else to do."""
    numbers, spent = torch.zeros(n_bytes // 8, dtype=torch.int64), []
    for _ in range(TIMES):
        world.barrier()
        begin = time.perf_counter()
        world.sum_(numbers)
        spent.append(time.perf_counter() - begin)
    return median(spent)


def reduction_core_s(world: World, n_bytes: int) -> float:
    """Processor time of an all-reduce in this process, where others come up to 2 ms later."""
    numbers, spent = torch.zeros(n_bytes // 8, dtype=torch.int64), []
    late = np.random.default_rng(world.rank).uniform(0, 2e-3, TIMES)
    for seconds_late in late:
        began = time.thread_time()
        while time.thread_time() - began < seconds_late:
            pass
        before = time.process_time()
        world.sum_(numbers)
        spent.append(time.process_time() - before)
    return sum(spent) / TIMES


class Passes:
    """Notes when each pass ends, and the seconds that all cores and this process have worked."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float, float]] = []

    def after_seeding(self) -> None:
        pass

    def after_step(self, *_: object) -> None:
        pass

    def after_pass(self, *_: object) -> None:
        self.marks.append((time.perf_counter(), busy_s(), time.process_time()))


def busy_s() -> float:
    """Seconds that the cores of this machine have worked so far, all together."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    )
    return float(user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(most_cores: float, patience_s: float) -> None:
    """Wait until other programs leave the cores alone, but not longer than `patience_s`."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        before, began = busy_s(), time.monotonic()
        time.sleep(LOOK_S)
        if busy_s() - before <= most_cores * (time.monotonic() - began):
            return


def fitted(
    source: Source, config: FitConfig, execution: ExecutionConfig, world: World
) -> list[dict[str, float]]:
    """Fit together; of some passes each the rows/s, what they cost, and what others took meanwhile.

    The first pass is left out: it fills the first window while nobody computes.
    """
    listener = Passes()
    fit(
        source, config, execution, None, resume=False, quiet=True, stop_request=StopRequest(),
        listener=listener, world=world,
    )  # fmt: skip
    every = world.gather(listener.marks)
    own = [sum(marks[i][2] for marks in every) for i in range(len(listener.marks))]
    found, first = [], 0
    for last, (now, busy, _) in enumerate(listener.marks):
        began, busy_then, _ = listener.marks[first]
        if now - began < LEAST_S:
            continue
        own_s = own[last] - own[first]
        n_rows = (last - first) * source.spec.n_rows
        found.append(
            {
                "rows_per_s": round(n_rows / (now - began)),
                "core_s_per_row": own_s / n_rows,
                "others_cores": round((busy - busy_then - own_s) / (now - began), 3),
            }
        )
        first = last
    return found


def main() -> None:
    """Time everything and print it, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("source", type=Path)
    parser.add_argument("k", type=int)
    parser.add_argument("algorithm")
    parser.add_argument("passes", type=int)
    parser.add_argument("--reduced-bytes", type=int, required=True)
    parser.add_argument("--most-cores", type=float, required=True, help="of others, to begin")
    parser.add_argument("--patience", type=float, required=True, help="seconds to wait for that")
    args = parser.parse_args()
    source = open_source(args.source)
    config = FitConfig(
        k=args.k, algorithm=args.algorithm, init="random", epochs=args.passes, tol=0.0,
        min_gain=0.0 if args.algorithm == "minibatch" else None, closing_pass=False,
    )  # fmt: skip
    with joined("cpu") as world:
        # As many readers as a run of all of them has.
        execution = ExecutionConfig(device="cpu", read_threads=max(n_cores() // world.size, 1))
        found: dict[str, object] = {}
        if world.is_first:
            wait_for_quiet(args.most_cores, args.patience)
        world.meet()
        found["rates"] = Stages(plan_fit(source, config, execution)).rates()
        world.meet()
        if world.size > 1:
            sizes = (SMALL_BYTES, args.reduced_bytes)
            found["reductions_s"] = [reduction_s(world, n_bytes) for n_bytes in sizes]
            found["reduction_core_s"] = reduction_core_s(world, args.reduced_bytes)
        found["passes"] = fitted(source, config, execution, world)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
