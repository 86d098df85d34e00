"""Measure readers and passes after the first, of this checkout and of an earlier one in turns.

Reading: processor time of a block, read by one thread into slots, in random order. Passes:
processor time of an epoch of mini-batches (k=16) after the first, of the same rows in memory, in a
``.npy`` file and in Zarr. Processor time, of all threads together, tells more than the clock where
other programs run beside. Checkouts take turns, figure by figure, in processes of their own; the
result is the ratio of the medians.

Run it by ``python -m bench.residency OUT.json [--base CHECKOUT]``. Results are written after each
round. A checkout needs its compiled kernel beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
N_FEATURES, N_SLOTS, N_ROUNDS = 128, 3, 5
#: Bytes of the array, and of the chunks of its copies in Zarr.
ARRAY_BYTES, CHUNKS = 64 << 20, {"64 KiB": 64 << 10, "1 MiB": 1 << 20}
N_EPOCHS = 7
#: Times the earlier rate of reading, of passes over Zstd, and the rate from memory: at least.
TARGETS = {"reading": 1.3, "zstd": 1.5, "memory": 0.95}


def make_arrays(folder: Path) -> dict[str, str]:
    """The same rows in each format; paths by name."""
    import zarr
    from zarr.codecs import ZstdCodec

    n_rows = ARRAY_BYTES // (4 * N_FEATURES)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n_rows, N_FEATURES)).round(2).astype(np.float32)
    rows += 8 * rng.normal(size=(16, N_FEATURES)).astype(np.float32)[np.arange(n_rows) % 16]
    path = str(folder / "x.npy")
    paths = {"memory": f"memory:{path}", "npy, 1 MiB": path}
    np.save(path, rows)
    for name, chunk_bytes in CHUNKS.items():
        for kind, codecs in (("uncompressed", None), ("zstd", [ZstdCodec(level=1)])):
            path = str(folder / f"{kind} {name}.zarr")
            chunks = (chunk_bytes // (4 * N_FEATURES), N_FEATURES)
            zarr.create_array(path, data=rows, chunks=chunks, compressors=codecs)
            paths[f"zarr {kind}, {name}"] = path
    return paths


# ---- in a process of its own, with the package of some checkout ---------------


def reading_us(path: str) -> float:
    """Processor time of a block, in microseconds, read by one thread: the least of three passes."""
    import torch

    from streamkm.sources import open_source
    from streamkm.stream.pipeline import stream
    from streamkm.stream.plan import plan_reading
    from streamkm.stream.slots import HostSlots, StreamMemory
    from streamkm.stream.stages import StageTimes

    source = open_source(path)
    plan = plan_reading(source.spec, batch_rows=16384, seed=0)
    slot_bytes = plan.window_rows * source.spec.row_bytes
    memory = StreamMemory(N_SLOTS, plan.window_rows, slot_bytes, 1)
    slots = HostSlots(memory, torch.device("cpu"))
    for buffer in slots.buffers:
        buffer.fill(0)
    spent = []
    for epoch in range(3):
        began = time.process_time()
        with stream(source, plan.windows(epoch), slots, StageTimes()) as windows:
            for _ in windows:
                pass
        spent.append(time.process_time() - began)
    return 1e6 * min(spent) / plan.n_blocks


class PassTimes:
    """A listener of a fit that notes the processor time at the end of each pass."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def after_seeding(self) -> None:
        """See `Listener`."""

    def after_step(self, *_: object) -> None:
        """See `Listener`."""

    def after_pass(self, *_: object) -> None:
        """See `Listener`."""
        self.seconds.append(time.process_time())


def epoch_ms(path: str) -> float:
    """Processor time of a pass after the first, in milliseconds: the median of a fit's."""
    from streamkm.config import ExecutionConfig, FitConfig
    from streamkm.runs.fit import fit
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.sources import open_source
    from streamkm.sources.memory import MemorySource

    in_memory = path.removeprefix("memory:")
    source = open_source(path) if in_memory == path else MemorySource(np.load(in_memory))
    config = FitConfig(k=16, epochs=N_EPOCHS, init="random", closing_pass=False, min_gain=0.0)
    execution = ExecutionConfig(device="cpu", read_threads=1, max_host_memory=2 << 30)
    times: Any = PassTimes()
    fit(
        source, config, execution, None,
        resume=False, stop_request=StopRequest(), quiet=True, listener=times,
    )  # fmt: skip
    # Windows of the second pass were read during the first.
    return float(1e3 * median(np.diff(times.seconds)[1:]))


MEASURES: dict[str, Callable[[str], float]] = {"reading": reading_us, "epoch": epoch_ms}


def answer() -> None:
    """Measure what is asked for, a line each, until nothing is asked any more."""
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        measure, path = json.loads(line)
        print(json.dumps(MEASURES[measure](path)), flush=True)


# ---- comparing ----------------------------------------------------------------


class Checkout:
    """A process that imports the package of a checkout and answers what it is asked."""

    def __init__(self, folder: Path) -> None:
        env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--here"],
            env=env, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def measured(self, measure: str, path: str) -> float:
        """One figure."""
        asked, told = self._process.stdin, self._process.stdout
        assert asked is not None
        assert told is not None
        print(json.dumps([measure, path]), file=asked, flush=True)
        return float(told.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def compared(samples: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of each figure, and how many times as fast this checkout is."""
    medians = {
        where: {name: median(each[name] for each in rounds) for name in rounds[0]}
        for where, rounds in samples.items()
    }
    here = medians["here"]
    result: dict[str, Any] = {
        "medians": {
            where: {name: round(value, 1) for name, value in of.items()}
            for where, of in medians.items()
        }
    }
    if "base" in medians:
        result["times_as_fast"] = {
            name: round(medians["base"][name] / here[name], 2) for name in here
        }
    if "epoch memory" not in here:
        return result
    result["of_the_rate_from_memory"] = {
        name.removeprefix("epoch "): round(here["epoch memory"] / spent, 3)
        for name, spent in here.items()
        if name.startswith("epoch ")
    }
    return result


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--base", type=Path, help="a checkout to compare with")
    parser.add_argument("--rounds", type=int, default=N_ROUNDS)
    parser.add_argument("--only", choices=MEASURES, help="leave the other figures out")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        answer()
        return 0
    from bench.report import environment

    folders = {"here": ROOT} | ({"base": args.base.resolve()} if args.base else {})
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in folders}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        paths = make_arrays(Path(folder))
        checkouts = {
            name: stack.enter_context(closing(Checkout(path))) for name, path in folders.items()
        }
        for _ in range(args.rounds):
            of_round: dict[str, dict[str, float]] = {name: {} for name in checkouts}
            for measure in [args.only] if args.only else MEASURES:
                for what, path in paths.items():
                    if measure == "reading" and what == "memory":
                        continue
                    for name, checkout in checkouts.items():
                        of_round[name][f"{measure} {what}"] = checkout.measured(measure, path)
            for name, figures in of_round.items():
                samples[name].append(figures)
            result = {**environment(), "targets": TARGETS, **compared(samples), "samples": samples}
            if args.out:
                args.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, figures in compared(samples).items():
        print(name, json.dumps(figures, indent=1), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
