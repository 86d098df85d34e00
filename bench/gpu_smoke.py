"""Some twenty short checks of the kernels: is anything right at all, before minutes are spent?"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from streamkm.clustering.lloyd import Lloyd
from streamkm.clustering.minibatch import MiniBatch
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import Scaling
from streamkm.clustering.state import initial_state
from streamkm.kernels import Rows, graded_total
from streamkm.kernels.triton.kernel import TritonKernel
from streamkm.kernels.triton.replay import Replays

if TYPE_CHECKING:
    from bench.gpu_run import Run
    from streamkm.clustering.state import KMeansState

__all__ = ["same_bits", "smoke"]

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
U8, I8 = torch.uint8, torch.int8
#: Dtype of rows, rows, centroids, features; every kernel and every way to tile is among them.
CHECKS = [
    (F32, 2000, 16, 3), (F32, 2000, 64, 17), (F32, 2000, 256, 32), (F32, 2000, 256, 40),
    (F32, 2000, 256, 128), (F32, 2000, 1024, 128), (F32, 500, 4096, 100), (F32, 500, 4096, 256),
    (F32, 500, 4096, 768), (F64, 2000, 64, 17), (F64, 500, 4096, 64), (F16, 2000, 256, 64),
    (F16, 500, 4096, 128), (BF16, 500, 20_000, 64), (BF16, 500, 20_000, 128),
    (BF16, 500, 20_000, 256), (U8, 2000, 16, 8), (U8, 2000, 1024, 128), (I8, 500, 4096, 40),
]  # fmt: skip


def smoke(run: Run) -> None:
    """Labels, distances, sums, counts beside those of float64; rows of a crowd; and steps."""
    for dtype, n_rows, k, d in CHECKS[:2] if run.is_rehearsal else CHECKS:
        n_rows, k = run.size(n_rows, 20), run.size(k, 9)
        x_BD = run.normal(n_rows, d)
        if dtype in (U8, I8):
            x_BD = (20 * x_BD + 60).clamp(0, 120)
        c_KD = (x_BD[torch.arange(k, device=run.device) % n_rows] + run.normal(k, d)).to(
            F64 if dtype == F64 else F32
        )
        name = f"{dtype} {n_rows} x {d}, k={k}".removeprefix("torch.")
        run.add({"check": name, "wrong": wrong_in(x_BD.to(dtype), c_KD)})
    # A third of the centroids are nearly the same, and rows lie among them.
    k = run.size(4096, 60)
    c_KD, base_D = run.normal(k, 64), run.normal(64)
    c_KD[::3] = base_D + 3e-4 * run.normal((k + 2) // 3, 64)
    run.add({"check": f"crowd, k={k}", "wrong": wrong_in(c_KD[: run.size(600, 6)].clone(), c_KD)})
    run.add({"check": "steps", "wrong": wrong_in_steps(run)})
    wrong = [row["check"] for row in run.results[run.part] if row["wrong"]]
    if wrong:
        raise AssertionError(f"wrong: {'; '.join(wrong)}")


def wrong_in(x_BD: torch.Tensor, c_KD: torch.Tensor) -> list[str]:
    """What is wrong with the results of a kernel for these rows and centroids."""
    k, wide = len(c_KD), c_KD.dtype
    kernel = TritonKernel(len(x_BD), k, wide, x_BD.device)
    norms_B = x_BD.double().square().sum(dim=1).to(wide)
    exact_BK = torch.cdist(
        x_BD.double(), c_KD.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    least_B = exact_BK.amin(dim=1)
    wrong: list[str] = []

    def compare(what: str, labels_B: torch.Tensor, sq_distances_B: torch.Tensor) -> None:
        chosen_B = exact_BK.gather(1, labels_B[:, None]).squeeze(1)
        scale_B = norms_B.double() + least_B
        if not bool((chosen_B - least_B <= 1e-12 * scale_B).all()):
            wrong.append(f"labels of {what}")
        if not bool(((sq_distances_B.double() - least_B).abs() <= 1e-4 * least_B + 1e-30).all()):
            wrong.append(f"distances of {what}")

    compare("assign", *kernel.assign(x_BD, norms_B, c_KD))
    labels_B, sq_distances_B, second_B = kernel.assign_two(x_BD, norms_B, c_KD)
    compare("assign_two", labels_B, sq_distances_B)
    two_B = exact_BK.topk(2, dim=1, largest=False).values[:, 1]
    if not bool(((second_B.double() - two_B).abs() <= 1e-3 * two_B + 1e-30).all()):
        wrong.append("second distances")
    sums_KD = torch.zeros((k + 1, x_BD.shape[1]), dtype=torch.float64, device=x_BD.device)
    counts_K = torch.zeros(k + 1, dtype=torch.int64, device=x_BD.device)
    found = kernel.step(Rows(x_BD, norms_B), c_KD, sums_KD=sums_KD, counts_K=counts_K)
    compare("step", *found)
    exact_KD = torch.zeros_like(sums_KD).index_add_(0, found.labels_B, x_BD.double())
    size_KD = torch.zeros_like(sums_KD).index_add_(0, found.labels_B, x_BD.double().abs())
    if not bool(((sums_KD - exact_KD).abs() <= 1e-5 * size_KD).all()):
        wrong.append("sums")
    if not torch.equal(counts_K, found.labels_B.bincount(minlength=k + 1)):
        wrong.append("counts")
    return wrong


def wrong_in_steps(run: Run) -> list[str]:
    """What is wrong in steps whose launches are made again, beside those that Triton launches."""
    n_rows, k, wrong = run.size(5000, 12), run.size(300, 5), []
    window_ND = run.normal(2 * n_rows, 24)
    rows = [
        torch.randperm(2 * n_rows, device=run.device)[:n_rows].int() for _ in range(run.size(3, 2))
    ]
    for name in ("minibatch", "lloyd"):
        state, expected = (
            states_after(name, window_ND, rows, k, again=again) for again in (True, False)
        )
        differ = [
            each
            for each, tensor in expected.tensors().items()
            if not torch.equal(tensor.nan_to_num(-1.0), getattr(state, each).nan_to_num(-1.0))
        ]
        if differ:
            wrong.append(f"{name}, made again: {', '.join(differ)}")
        if name == "lloyd":
            whole_BD = torch.cat([window_ND[each.long()] for each in rows])
            labels_B = torch.cdist(whole_BD.double(), state.centroids_KD.double()).argmin(dim=1)
            exact_KD = torch.zeros_like(state.sums_KD).index_add_(0, labels_B, whole_BD.double())
            sums_KD = graded_total(state.pass_sums_LKD, state.pass_grades_K)
            if not torch.allclose(sums_KD, exact_KD, rtol=1e-9, atol=1e-9):
                wrong.append("sums of a pass")
    return wrong


def states_after(
    name: str, window_ND: torch.Tensor, rows: list[torch.Tensor], k: int, *, again: bool
) -> KMeansState:
    """The state after some steps, each launched anew unless `again`."""
    n_rows, d, device = len(rows[0]), window_ND.shape[1], window_ND.device
    kernel = TritonKernel(n_rows, k, F32, device)
    zeros_D = torch.zeros(d, dtype=F64, device=device)
    prepare = Preparation.for_kernel(
        Scaling(zeros_D, zeros_D + 1, normalize=False), kernel, batch_rows=n_rows, stored=F32,
        dtype=F32,
    )  # fmt: skip
    made: MiniBatch | Lloyd = Lloyd(kernel, 0)
    if name == "minibatch":
        made = MiniBatch(kernel, 10**6, 0, rate="annealed", epochs=2, batch_rows=n_rows)
    state = initial_state(window_ND[:k].clone(), 0.0)
    anew = patch.object(Replays, "__call__", lambda *given: given[-1]())
    with nullcontext() if again else anew:
        for index, each in enumerate(rows, start=1):
            made.update_(state, prepare(window_ND, each), epoch=0, index=index)
    return state


def same_bits(run: Run) -> dict[str, Any]:
    """Labels, distances, sums and counts of 100 repetitions: how many have other bits."""
    x_BD, k = run.normal(run.size(16384, 40), 128), run.size(1024, 8)
    norms_B, c_KD = x_BD.square().sum(dim=1), x_BD[:k] + 0.1
    kernel = TritonKernel(len(x_BD), k, torch.float32, run.device)
    first: list[torch.Tensor] = []
    n_runs, n_other = run.size(100, 2), 0
    for _ in range(n_runs):
        sums_KD = torch.zeros((k, 128), dtype=torch.float64, device=run.device)
        counts_K = torch.zeros(k, dtype=torch.int64, device=run.device)
        labels_B, sq_distances_B = kernel.assign(x_BD, norms_B, c_KD)
        kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)
        found = [labels_B, sq_distances_B, sums_KD, counts_K]
        first = first or found
        n_other += not all(map(torch.equal, first, found))
    return {"runs": n_runs, "with_other_bits": n_other}
