"""What a stream to a GPU can reach at most by the host's own work, without a GPU: a prediction.

Launches of a step are counted on torch's device without memory, by a driver that launches nothing.
The Python of a step, with that of Triton, of a window, and of the readers for a block, is measured
here. Of reading what holds no lock is left out: the bytes themselves, and dealing rows to batches.
What Triton's C and the driver take for a launch is assumed. All this shares one interpreter lock,
so it is added up. ``python -m bench.step_model OUT.json``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from streamkm.clustering import reservoir
from streamkm.clustering.lloyd import Lloyd
from streamkm.clustering.minibatch import MiniBatch
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import Scaling
from streamkm.clustering.state import initial_state
from streamkm.kernels.triton import TritonKernel
from streamkm.machine import processor_name
from streamkm.sources import open_source
from streamkm.stream.plan import plan_reading
from streamkm.stream.prefetch import prefetch
from streamkm.stream.slots import HostSlots, StreamMemory
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

META = torch.device("meta")
ROWS, K, FEATURES = 16384, 1024, 128
#: Seconds that a launch is assumed to take the host: of Triton, its Python left out, and of torch.
LAUNCH_S = {"triton": 4e-6, "torch": 5e-6}
N_EPOCHS = 20


class Counting(TorchDispatchMode):
    """Counts the operations of torch that a GPU would have to launch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_launched = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [each.alias_info for each in func._schema.returns]  # noqa: SLF001
        is_launch = any(each is None or each.is_write for each in aliases)
        self.n_launched += is_launch and "empty" not in func._schema.name  # noqa: SLF001
        return func(*args, **(kwargs or {}))


class HostGenerators:
    """torch, but for generators: the device without memory has none."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def Generator(self, device: torch.device) -> torch.Generator:  # noqa: N802
        del device
        return torch.Generator()


class NoDriver:
    """Triton's driver for a GPU that is none, and the kernels it has: these only count launches."""

    packed_metadata, function, n_launched = (), 0, 0

    @property
    def active(self) -> NoDriver:
        return self

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def launch_metadata(self, *_: Any) -> None:
        return None

    def run(self, *_: Any) -> None:
        self.n_launched += 1


@contextmanager
def without_gpu(gpu: NoDriver, compile_: Callable[..., NoDriver]) -> Iterator[None]:
    """Let steps run on the device without memory; `compile_` is asked for kernels as Triton is."""
    with (
        patch.object(type(driver), "active", gpu),
        patch.object(JITFunction, "_do_compile", compile_),
        patch.object(Scaling, "is_affine", new=False),
        patch.object(reservoir, "torch", HostGenerators()),
    ):
        yield


def step_of(
    algorithm: str, k: int = K, n_features: int = FEATURES, stored: torch.dtype = torch.float32
) -> Callable[[int], None]:
    """A step of an algorithm on the device without memory."""
    kernel = TritonKernel(ROWS, k, torch.float32, META)
    zeros_D = torch.zeros(n_features, dtype=torch.float64, device=META)
    scaling = Scaling(zeros_D, zeros_D + 1, normalize=False)
    prepare = Preparation.for_kernel(
        scaling, kernel, batch_rows=ROWS, stored=stored, dtype=torch.float32
    )
    state = initial_state(torch.empty((k, n_features), device=META), 0.0)
    window_ND = torch.empty((8 * ROWS, n_features), dtype=stored, device=META)
    rows = torch.empty(ROWS, dtype=torch.int32, device=META)
    made: MiniBatch | Lloyd = Lloyd(kernel, 0)
    if algorithm == "minibatch":
        made = MiniBatch(kernel, 10**8, 0, rate="annealed", epochs=4, batch_rows=ROWS)

    def step(index: int) -> None:
        made.update_(state, prepare(window_ND, rows), epoch=0, index=index)

    return step


def measured_step(algorithm: str) -> dict[str, float]:
    """Launches of a step, and the least processor time of its Python."""
    gpu, spent = NoDriver(), []
    with without_gpu(gpu, lambda *_: gpu):
        step = step_of(algorithm)
        step(1)
        gpu.n_launched = 0
        with Counting() as counted:
            step(2)
        n_triton = gpu.n_launched
        for first in range(3, 1003, 200):
            started = time.process_time()
            for index in range(first, first + 200):
                step(index)
            spent.append((time.process_time() - started) / 200)
    return {"triton": n_triton, "torch": counted.n_launched, "python_s": min(spent)}


def measured_reading(path: Path) -> dict[str, float]:
    """Processor time of the readers' and the main thread's Python for a window of a ``.npy`` file.

    What holds no lock is left out: to read the bytes, and to deal rows to batches.
    """
    shape = (4 * 8 * ROWS, FEATURES)
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    source = open_source(str(path))
    reading = plan_reading(source.spec, batch_rows=ROWS, seed=0)
    n_windows = N_EPOCHS * reading.n_windows
    windows = (window for epoch in range(N_EPOCHS) for window in reading.windows(epoch))
    memory = StreamMemory(4, reading.window_rows, reading.window_rows * source.spec.row_bytes, 4)
    order = np.arange(reading.window_rows, dtype=np.int32)
    with (
        patch.object(os, "preadv", lambda _, views, *__: views[0].nbytes),
        patch("streamkm.stream.plan._dealt", lambda *_: order),
        HostSlots(memory, torch.device("cpu")) as slots,
    ):
        started = time.process_time()
        with prefetch(source, windows, slots, 4, StageTimes()) as ahead:
            for window in ahead:
                window.release()
        spent = time.process_time() - started
    source.close()
    n_bytes = N_EPOCHS * source.spec.nbytes
    return {
        "window_s": spent / n_windows,
        "block_s": spent / (N_EPOCHS * reading.n_blocks),
        "window_bytes": n_bytes / n_windows,
        "block_bytes": source.spec.nbytes / reading.n_blocks,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found_s = [measured_reading(Path(folder) / "x.npy") for _ in range(5)]
    reading = min(found_s, key=lambda each: each["window_s"])
    steps = {name: measured_step(name) for name in ("minibatch", "lloyd")}
    n_steps = reading["window_bytes"] / (ROWS * FEATURES * 4)
    ceilings = {}
    for name, counted in steps.items():
        launching_s = sum(counted[kind] * seconds for kind, seconds in LAUNCH_S.items())
        one_s = counted["python_s"] + launching_s
        spent = {
            "launches": n_steps * launching_s,
            "steps": n_steps * one_s,
            "steps and readers": n_steps * one_s + reading["window_s"],
            # A step of a whole window takes the host as long as any other.
            "a step a window, and readers": one_s + reading["window_s"],
        }
        ceilings[name] = {by: reading["window_bytes"] / each / 1e9 for by, each in spent.items()}
    found = {
        "kind": "prediction, no GPU: launches counted, Python measured, the driver's part assumed",
        "processor": processor_name(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "shape": {"rows": ROWS, "k": K, "features": FEATURES, "dtype": "float32"},
        "assumed_launch_s": LAUNCH_S,
        "reading": reading,
        "steps": steps,
        "GB/s at most by": ceilings,
    }
    text = json.dumps(found, indent=1)
    Path(sys.argv[1]).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
