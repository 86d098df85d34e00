"""A step on tensors of no memory: what would make the host wait for a device, or mixes two, raises.

A GPU runs behind the host, which must never ask it for a value between two batches. Tensors on
torch's device ``meta`` have shapes and dtypes and no values to ask for.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from streamkm.clustering.lloyd import Lloyd
from streamkm.clustering.minibatch import MiniBatch
from streamkm.clustering.scaling import RunningMoments, Scaling, compute_dtype
from streamkm.clustering.seeding.kmeans_parallel import Candidates
from streamkm.clustering.seeding.plan import N_ROUNDS
from streamkm.clustering.state import initial_state
from streamkm.kernels import Assignment
from streamkm.kernels.base import Rows, assign_then_add

META = torch.device("meta")
N_ROWS, N_FEATURES, K = 60, 5, 7


class MetaKernel:
    """Of each result the shape and dtype, as the kernel of a GPU gives them."""

    name = "meta"
    n_rechecked = torch.zeros((), dtype=torch.int64, device=META)
    stored_dtypes = (torch.float16, torch.bfloat16, torch.uint8, torch.int8)
    distances_cancel = False
    in_place = None

    @classmethod
    def check(cls, device) -> None:
        raise AssertionError("no step chooses a kernel")

    @classmethod
    def make(cls, request):
        raise AssertionError("no step makes a kernel")

    def assign(self, x_BD, sq_norms_B, centroids_KD) -> Assignment:
        labels_B = torch.zeros(len(x_BD), dtype=torch.int64, device=META)
        return Assignment(labels_B, labels_B.to(centroids_KD.dtype))

    def assign_two(self, x_BD, sq_norms_B, centroids_KD):
        raise AssertionError("no step needs the second nearest")

    def accumulate(self, x_BD, labels_B, *, sums_KD, counts_K) -> None:
        sums_KD.index_add_(0, labels_B, x_BD.to(sums_KD.dtype))
        counts_K.index_add_(0, labels_B, torch.ones_like(labels_B))

    def step(self, rows: Rows, centroids_KD, *, sums_KD, counts_K) -> Assignment:
        return assign_then_add(self, rows, centroids_KD, sums_KD=sums_KD, counts_K=counts_K)


@pytest.fixture(autouse=True)
def generators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the CPU: a device without memory has none."""
    for draws in (
        "minibatch.step_generator",
        "lloyd.step_generator",
        "seeding.kmeans_parallel.Draws.generator",
    ):
        monkeypatch.setattr(f"streamkm.clustering.{draws}", lambda *_: torch.Generator())


@pytest.mark.parametrize("algorithm", ["minibatch", "lloyd"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("space", ["as stored", "moved", "spherical"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.uint8, torch.float64], ids=str
)
def test_a_step_asks_for_no_value(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, weighted: bool, space: str, dtype: torch.dtype
) -> None:
    # Whether rows are moved is asked once a run.
    monkeypatch.setattr(Scaling, "_moves", space == "moved")
    spherical, wide = space == "spherical", compute_dtype(dtype)
    kernel = MetaKernel()
    zeros_D = torch.zeros(N_FEATURES, dtype=torch.float64, device=META)
    scaling = Scaling(zeros_D, zeros_D + 1, normalize=spherical)
    taken = kernel.stored_dtypes if wide == torch.float32 else ()
    workspace_BD = torch.empty(
        (N_ROWS, N_FEATURES), dtype=scaling.row_dtype(dtype, wide, taken), device=META
    )
    window_ND = torch.empty((2 * N_ROWS, N_FEATURES), dtype=dtype, device=META)
    weights_N = zeros_D.new_empty(2 * N_ROWS) if weighted else None
    state = initial_state(
        torch.empty((K, N_FEATURES), dtype=wide, device=META), 0.1, weighted=weighted
    )
    steps = (
        Lloyd(kernel, 0, spherical)
        if algorithm == "lloyd"
        else MiniBatch(kernel, 1000, 0, spherical, max_no_improvement=5)
    )
    steps.begin_epoch_(state)
    for rows in (torch.empty(N_ROWS, dtype=torch.int32, device=META), slice(0, N_ROWS)):
        batch = scaling.prepare(window_ND, rows, workspace_BD, weights_N)
        steps.update_(state, batch, epoch=0, index=0)
    assert all(tensor.device == META for tensor in state.tensors().values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint16], ids=str)
def test_moments_ask_for_no_value(dtype: torch.dtype) -> None:
    moments = RunningMoments.empty(N_FEATURES, META)
    moments.update_(torch.empty((N_ROWS, N_FEATURES), dtype=dtype, device=META))
    assert all(tensor.device == META for tensor in moments.tensors().values())


@pytest.mark.parametrize("epoch", [0, N_ROUNDS], ids=["draws", "counts"])
@pytest.mark.parametrize("spherical", [False, True], ids=["", "spherical"])
def test_a_round_of_seeding_asks_for_no_value(
    monkeypatch: pytest.MonkeyPatch, epoch: int, spherical: bool
) -> None:
    monkeypatch.setattr(Scaling, "_moves", False)
    candidates = Candidates(
        rows_CD=torch.empty((K, N_FEATURES), device=META),
        counts_C=torch.zeros(K, dtype=torch.float64, device=META),
        drawn_RD=torch.empty((9, N_FEATURES), device=META),
        keys_R=torch.empty(9, dtype=torch.float64, device=META),
    )
    zeros_D = torch.zeros(N_FEATURES, dtype=torch.float64, device=META)
    scaling = Scaling(zeros_D, zeros_D + 1, normalize=spherical)
    window_ND = torch.empty((2 * N_ROWS, N_FEATURES), device=META)
    batch = scaling.prepare(
        window_ND, slice(0, N_ROWS), window_ND.new_empty((N_ROWS, N_FEATURES)), None
    )
    candidates.update_(batch, MetaKernel(), 0, epoch=epoch, index=0)
    assert all(tensor.device == META for tensor in candidates.tensors().values())


# A checkpoint that is resumed is compared with tensors of that device. Breaks where they are made
# like other tensors, which torch does in Python there: imports of a second.
def test_what_a_checkpoint_is_compared_with_takes_no_imports() -> None:
    script = (
        "import sys, torch\n"
        "from streamkm.clustering.scaling import RunningMoments\n"
        "from streamkm.clustering.state import initial_state\n"
        "meta = torch.device('meta')\n"
        "RunningMoments.empty(3, meta)\n"
        "initial_state(torch.empty((2, 3), device=meta), 0.0, weighted=True)\n"
        "assert 'sympy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
