"""Kernels on one batch, by shape; gathering a batch; and seeding."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.cluster import kmeans_plusplus as sklearn_plusplus

from bench.measure import rate, seconds
from bench.peers import in_a_slot
from streamkm.clustering.seeding.kmeans_plusplus import kmeans_plusplus
from streamkm.clustering.seeding.plan import plan_seeding
from streamkm.kernels import KernelRequest, make_kernel
from streamkm.kernels.ops.gather import gather

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from bench.conftest import Measure
    from bench.measure import Session

#: (features, clusters)
SHAPES = [(3, 16), (16, 64), (64, 256), (128, 64), (128, 1024), (768, 1024)]
BATCH_ROWS = 16384
#: Operations of one sample, about: short calls are repeated until they make as many.
FLOP_PER_SAMPLE = 2e9
CPU = torch.device("cpu")


@pytest.mark.parametrize(("d", "k"), SHAPES)
def test_assign(d: int, k: int, measure: Measure, session: Session) -> None:
    n_rows = 1024 if session.quick else BATCH_ROWS
    x_BD, centroids_KD = _normal(n_rows, d), _normal(k, d, seed=1)
    sq_norms_B = x_BD.square().sum(dim=1)
    kernel, reference = (
        make_kernel(name, KernelRequest(n_rows, k, torch.float32, CPU))
        for name in ("auto", "reference")
    )
    model = MiniBatchKMeans(k, init=centroids_KD.numpy(), n_init=1)
    model.partial_fit(x_BD[: max(k, 256)].numpy())
    x_array, scores_BK = x_BD.numpy(), torch.empty((n_rows, k))
    flop = 2.0 * d * k
    repeats = 1 if session.quick else max(1, round(FLOP_PER_SAMPLE / (flop * n_rows)))
    contenders: dict[str, Callable[[], object]] = {
        "streamkm": lambda: kernel.assign(x_BD, sq_norms_B, centroids_KD),
        "reference kernel": lambda: reference.assign(x_BD, sq_norms_B, centroids_KD),
        "sklearn predict": lambda: model.predict(x_array),
        "torch.mm alone": lambda: torch.mm(x_BD, centroids_KD.T, out=scores_BK),
    }
    if importlib.util.find_spec("faiss"):
        contenders["faiss search"] = _faiss_search(x_array, centroids_KD.numpy())
    result = measure(
        f"assign, d={d}, k={k}",
        "Mrow/s",
        {
            name: rate(repeats * n_rows / 1e6, _repeated(action, repeats))
            for name, action in contenders.items()
        },
    )
    gflops = {name: result.median(name) * flop / 1e3 for name in contenders}
    result.extra["gflop_per_s"] = gflops
    result.remark = "GFLOP/s: " + ", ".join(f"{value:.0f}" for value in gflops.values())


@pytest.mark.parametrize(("d", "k"), SHAPES)
def test_accumulate(d: int, k: int, measure: Measure, session: Session) -> None:
    n_rows = 1024 if session.quick else BATCH_ROWS
    x_BD = _normal(n_rows, d)
    labels_B = torch.randint(k, (n_rows,), generator=torch.Generator().manual_seed(2))
    kernel, reference = (
        make_kernel(name, KernelRequest(n_rows, k, torch.float32, CPU))
        for name in ("auto", "reference")
    )
    sums_KD, counts_K = torch.zeros((k, d), dtype=torch.float64), torch.zeros(k, dtype=torch.int64)
    onehot_BK = torch.nn.functional.one_hot(labels_B, k).float()
    contenders: dict[str, Callable[[], object]] = {
        "streamkm": lambda: kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K),
        "reference kernel": lambda: reference.accumulate(
            x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K
        ),
        "one-hot product": lambda: torch.mm(onehot_BK.T, x_BD),
        "copy of the rows": lambda: x_BD.clone(),
    }
    repeats = 1 if session.quick else 10
    measure(
        f"accumulate, d={d}, k={k}",
        "Mrow/s",
        {
            name: rate(repeats * n_rows / 1e6, _repeated(action, repeats))
            for name, action in contenders.items()
        },
    )


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.uint8], ids=str)
@pytest.mark.parametrize("d", [3, 128, 768])
def test_gather(stored: torch.dtype, d: int, measure: Measure, session: Session) -> None:
    """Rows in random order out of a window of 64 MiB, as every batch takes them."""
    n_rows = 1024 if session.quick else BATCH_ROWS
    n_window = (1 << 20 if session.quick else 64 << 20) // (d * stored.itemsize)
    x_ND = in_a_slot((_normal(n_window, d) + 5).to(stored))
    order_N = torch.randperm(len(x_ND), generator=torch.Generator().manual_seed(3)).int()
    workspace_BD = torch.empty((n_rows, d))
    batches = order_N.split(n_rows)

    def in_torch() -> None:
        for rows in batches:
            x_BD = workspace_BD[: len(rows)]
            if x_ND.dtype == x_BD.dtype:
                torch.index_select(x_ND, 0, rows, out=x_BD)
            else:
                x_BD.copy_(x_ND.index_select(0, rows))
            torch.linalg.vector_norm(x_BD, dim=1).square_()

    def ours() -> None:
        for rows in batches:
            gather(x_ND, rows, workspace_BD)

    measure(
        f"gather and measure, {str(stored).removeprefix('torch.')}, d={d}",
        "Mrow/s",
        {
            name: rate(len(x_ND) / 1e6, way)
            for name, way in (("streamkm", ours), ("torch", in_torch))
        },
    )


@pytest.mark.parametrize("k", [64, 1024])
def test_seeding(k: int, measure: Measure, session: Session) -> None:
    d, k = (8, k // 16) if session.quick else (128, k)
    n_rows = plan_seeding(1_000_000, d, k, "k-means++", 1).sample_rows
    sample_SD = _normal(512 if session.quick else n_rows, d)
    array = sample_SD.numpy()
    measure(
        f"k-means++, {len(sample_SD):,} x {d}, k={k}",
        "s",
        {
            "streamkm": seconds(lambda: kmeans_plusplus(sample_SD, k, 0)),
            "scikit-learn": seconds(lambda: sklearn_plusplus(array, k, random_state=0)),
        },
    )


def _faiss_search(x_BD: np.ndarray, centroids_KD: np.ndarray) -> Callable[[], object]:
    import faiss

    index = faiss.IndexFlatL2(centroids_KD.shape[1])
    index.add(centroids_KD)
    return lambda: index.search(x_BD, 1)


def _normal(n: int, d: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn((n, d), generator=torch.Generator().manual_seed(seed))


def _repeated(action: Callable[[], object], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            action()

    return run
