"""How many launches a step takes on a GPU, counted on torch's device without memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton", reason="Triton is not installed: it exists for Linux only")

from triton.runtime.jit import JITFunction

from streamkm.clustering.lloyd import Lloyd
from streamkm.clustering.minibatch import MiniBatch
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import Scaling
from streamkm.clustering.state import initial_state
from streamkm.kernels.triton import TritonKernel

META = torch.device("meta")


class Counting(TorchDispatchMode):
    """Names the operations of torch that a GPU would have to launch, or to allocate for."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[str] = []
        self.allocated: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # Its import takes seconds.

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        aliases = [each.alias_info for each in func._schema.returns]
        if not aliases or any(each is None for each in aliases):
            self.allocated.append(func._schema.name)
        if any(each is None or each.is_write for each in aliases):
            self.launched.append(func._schema.name)
        assert all(t.device == META for t in tree_leaves(made) if isinstance(t, torch.Tensor))
        return made


ADDED_UP = ["note_kernel", "add_kernel", "rank_kernel"]


# Breaks when a step takes more launches, allocates, or asks the device for a value (which raises).
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("kind", ["minibatch", "patience", "lloyd", "closing"])
def test_a_step_is_a_dozen_launches(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, kind: str
) -> None:
    launched: list[str] = []
    monkeypatch.setattr(
        JITFunction, "run", lambda self, *_, **__: launched.append(self.fn.__name__)
    )
    n_rows, k, d = 16384, 1024, 128
    kernel = TritonKernel(n_rows, k, torch.float32, META)
    zeros_D = torch.zeros(d, dtype=torch.float64, device=META)
    monkeypatch.setattr(Scaling, "is_affine", False)
    prepare = Preparation.for_kernel(
        Scaling(zeros_D, zeros_D + 1, normalize=False), kernel, batch_rows=n_rows, stored=dtype,
        dtype=torch.float32,
    )  # fmt: skip
    if kind in ("lloyd", "closing"):
        algorithm: Any = Lloyd(kernel, 0, closing=kind == "closing")
        ending = ["add_batch_kernel", "finish_batch_kernel"]
    else:
        algorithm = MiniBatch(
            kernel, 10**6, 0, rate="annealed", epochs=4, batch_rows=n_rows,
            max_no_improvement=10 if kind == "patience" else None,
        )  # fmt: skip
        ending = ["move_kernel", "finish_kernel"]
    state = initial_state(torch.empty((k, d), device=META), 0.0)
    window_ND = torch.empty((2 * n_rows, d), dtype=dtype, device=META)
    rows = torch.empty(n_rows, dtype=torch.int32, device=META)
    algorithm.update_(state, prepare(window_ND, rows), epoch=0, index=1)  # Memory is made.
    launched.clear()
    with Counting() as counted:
        algorithm.update_(state, prepare(window_ND, rows), epoch=0, index=2)
    assert counted.allocated == []
    assert counted.launched == []
    assert len(launched) <= 12, launched
    assert launched[0] == "prepare_kernel"
    assert launched[-5:] == ADDED_UP + ending
