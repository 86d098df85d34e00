"""Nothing between two batches asks a device for a value; steps of algorithms have their contract.

(`tests.clustering.contract` asks the same of those.) Tensors on torch's device ``meta`` have
shapes and dtypes and no values to ask for.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.clustering.seeding.kmeans_parallel import Candidates
from streamkm.clustering.seeding.plan import N_ROUNDS
from tests.clustering.meta import META, MetaKernel

N_ROWS, N_FEATURES, K = 60, 5, 7


pytestmark = pytest.mark.usefixtures("generators_of_the_host")


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
    monkeypatch.setattr(Scaling, "is_affine", False)
    candidates = Candidates(
        rows_CD=torch.empty((K, N_FEATURES), device=META),
        masses_LC=torch.zeros((2, K), dtype=torch.int64, device=META),
        grades_C=torch.zeros(K, dtype=torch.int64, device=META),
        drawn_RD=torch.empty((9, N_FEATURES), device=META),
        keys_R=torch.empty(9, dtype=torch.float64, device=META),
    )
    zeros_D = torch.zeros(N_FEATURES, dtype=torch.float64, device=META)
    scaling = Scaling(zeros_D, zeros_D + 1, normalize=spherical)
    window_ND = torch.empty((2 * N_ROWS, N_FEATURES), device=META)
    workspace_BD = window_ND.new_empty((N_ROWS, N_FEATURES))
    batch = Preparation(scaling, workspace_BD)(window_ND, slice(0, N_ROWS))
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
