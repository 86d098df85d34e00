"""Launches that are made again, beside those of Triton, on a driver that only writes down."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: it exists for Linux only")

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from streamkm.clustering.lloyd import Lloyd
from streamkm.clustering.minibatch import MiniBatch
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import Scaling
from streamkm.clustering.state import initial_state
from streamkm.kernels.triton import TritonKernel
from streamkm.kernels.triton.replay import Replays

STREAM = 7


class Compiled:
    """What Triton would have compiled for arguments of one kind."""

    packed_metadata = ("metadata",)

    def __init__(self, name: str, key: str, launched: list[Any]) -> None:
        self.function, self._launched = (name, key), launched

    def launch_metadata(self, *_: Any) -> None:
        return None

    def run(self, *arguments: Any) -> None:
        plain = [each.data_ptr() if torch.is_tensor(each) else each for each in arguments]
        # Without what only hooks ask for.
        self._launched.append((plain[4], *plain[:4], plain[5], *plain[9:]))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is launched, on a GPU that is none; a kernel is compiled again for every test."""
    launched: list[Any] = []

    def compile_(self: Any, key: str, *_: Any) -> Compiled:
        compiled = self.device_caches[0][0][key] = Compiled(self.fn.__name__, key, launched)
        return compiled

    gpu = SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda _: STREAM,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )  # fmt: skip
    monkeypatch.setattr(type(driver), "active", property(lambda _: gpu))
    monkeypatch.setattr(JITFunction, "_do_compile", compile_)
    for module in ("assign", "graded", "narrow", "settle", "state"):
        for each in vars(__import__(f"streamkm.kernels.triton.{module}", fromlist=["_"])).values():
            if isinstance(each, JITFunction):
                each.device_caches.clear()
    return launched


def batches(dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor | slice]]:
    """Windows and rows: of several lengths, of two windows, and from addresses of all kinds."""
    windows = [torch.zeros((9000, 5), dtype=dtype) for _ in range(2)]
    slices = [slice(0, 300), slice(16, 316), slice(1, 301), slice(3, 303), slice(0, 8193)]
    positions = [torch.arange(300, dtype=torch.int32), torch.arange(8193, dtype=torch.int32)]
    taken: list[torch.Tensor | slice] = [*slices, *positions, positions[0][1:]]
    return [(window, rows) for rows in taken for window in windows]


# Breaks when a step that is made again launches another kernel than Triton would, with other
# arguments, or on another grid or stream.
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize("kind", ["minibatch", "lloyd"])
@pytest.mark.parametrize("affine", [False, True], ids=["as it is", "scaled"])
def test_launches_made_again_are_those_of_triton(
    monkeypatch: pytest.MonkeyPatch,
    launched: list[Any],
    dtype: torch.dtype,
    kind: str,
    *,
    affine: bool,
) -> None:
    k, d = 40, 5
    kernel = TritonKernel(9000, k, torch.float32, torch.device("cpu"))
    scaling = Scaling(
        torch.full((d,), 1.0 * affine).double(), torch.ones(d).double(), normalize=False
    )
    prepare = Preparation.for_kernel(
        scaling, kernel, batch_rows=9000, stored=dtype, dtype=torch.float32
    )
    algorithm: Any = Lloyd(kernel, 3)
    if kind == "minibatch":
        algorithm = MiniBatch(kernel, 10**6, 3, rate="annealed", epochs=2, batch_rows=300)
    states = [initial_state(torch.zeros((k, d)), 0.0) for _ in range(2)]
    by_triton: list[str] = []
    run = JITFunction.run

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        by_triton.append(self.fn.__name__)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(JITFunction, "run", counted)
    # A copy would have another address each time.
    monkeypatch.setattr("streamkm.kernels.triton.kernel.dense_rows", lambda x_BD: x_BD)

    def steps(state: Any) -> list[Any]:
        found = []
        for index, (window, rows) in enumerate(batches_made, start=1):
            launched.clear()
            algorithm.update_(state, prepare(window, rows), epoch=0, index=index)
            found.append(list(launched))
        return found

    batches_made = batches(dtype)
    for state in (states[0], states[1]):  # The second time all is of another state.
        steps(state)
        by_triton.clear()
        again = steps(state)
        # Rows that lie ready at an odd address would be copied: by Triton each time.
        assert len(by_triton) < sum(map(len, again)) / 3, by_triton
        with monkeypatch.context() as patched:
            patched.setattr(Replays, "__call__", lambda _, key, held, changing, make: make())
            expected = steps(state)
        for these, those in zip(again, expected, strict=True):
            assert [each[0] for each in these] == [each[0] for each in those]
            for this, that in zip(these, those, strict=True):
                assert this == that
                assert this[4] == STREAM
