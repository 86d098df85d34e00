"""Rows that the compiled kernel takes from a window where they lie, measured in the same pass."""

from __future__ import annotations

import ctypes
import mmap
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from streamkm.clustering.assignment import nearest
from streamkm.clustering.lloyd import Lloyd
from streamkm.clustering.minibatch import MiniBatch
from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.clustering.state import initial_state
from streamkm.kernels import sq_distances_to
from streamkm.kernels.cpu import CpuKernel
from streamkm.kernels.extension import instruction_sets
from streamkm.kernels.ops.gather import gather
from streamkm.kernels.reference import ReferenceKernel
from tests.clustering.streams import bits
from tests.kernels.contract import normal
from tests.runs.helpers import Job, predicted

CPU = torch.device("cpu")
MOST = 1e30


@pytest.fixture(params=instruction_sets(), ids=lambda entry: entry.name)
def make(request):
    return partial(CpuKernel, instruction_set=request.param)


def permuted(n_window: int, n_rows: int) -> torch.Tensor:
    return torch.randperm(n_window, generator=torch.Generator().manual_seed(1)).int()[:n_rows]


# Breaks when a position is taken for a number of the batch, when lengths of another tile are taken,
# or when features behind the last line are left out.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("b", [1, 12, 13, 192, 193, 500])
@pytest.mark.parametrize("k", [1, 70, 3000])
@pytest.mark.parametrize("d", [1, 9, 16, 17, 130])
@pytest.mark.parametrize("in_order", [False, True])
def test_is_what_gathering_first_gives(make, b, k, d, dtype, in_order) -> None:
    window_ND = normal(b if in_order else b + 300, d, dtype=dtype, device=CPU)
    centroids_KD = normal(k, d, dtype=dtype, device=CPU)
    positions_B = None if in_order else permuted(len(window_ND), b)
    rows = slice(None) if positions_B is None else positions_B
    x_BD, norms_B = gather(window_ND, rows, torch.empty((b, d), dtype=dtype))
    kernel = make(b, k, dtype, CPU)
    # Gathering takes the best instruction set, of which the others may differ in the last bit.
    unit = torch.finfo(dtype).eps
    close = partial(torch.testing.assert_close, rtol=4 * unit, atol=4 * unit * float(norms_B.max()))
    labels_B, sq_distances_B = kernel.assign(x_BD, norms_B, centroids_KD)
    take = partial(kernel.assign_in_place, window_ND, positions_B, centroids_KD, most_sq_norm=MOST)
    found = take(exact=False)
    assert torch.equal(found.labels_B, labels_B)
    close(found.sq_distances_B, sq_distances_B)
    close(found.sq_norms_B, norms_B)
    assert found.dropped_B is None
    exact = take(exact=True)
    assert torch.equal(exact.labels_B, labels_B)
    close(exact.sq_distances_B, sq_distances_to(x_BD, labels_B, centroids_KD))
    sums_KD, counts_K = torch.zeros_like(centroids_KD), torch.zeros(k, dtype=torch.int64)
    expected_KD, expected_K = torch.zeros_like(centroids_KD), torch.zeros(k, dtype=torch.int64)
    kernel.accumulate(
        window_ND, labels_B, sums_KD=sums_KD, counts_K=counts_K, positions_B=positions_B
    )
    kernel.accumulate(x_BD, labels_B, sums_KD=expected_KD, counts_K=expected_K)
    assert torch.equal(sums_KD, expected_KD)
    assert torch.equal(counts_K, expected_K)


def before_a_wall(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that ends where memory does: to read one byte more ends the process."""
    n_bytes = -(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, n_bytes + mmap.PAGESIZE)
    wall = ctypes.addressof(ctypes.c_char.from_buffer(pages, n_bytes))
    no_access = 0
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(wall), mmap.PAGESIZE, no_access) == 0
    flat = torch.frombuffer(pages, dtype=tensor.dtype, offset=n_bytes - tensor.nbytes)
    return flat[: tensor.numel()].view(tensor.shape).copy_(tensor)


# Breaks (crashes) when the rows ahead, or the last vector of a row, are taken from beyond the end.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d", [1, 3, 7, 9, 15, 17, 31, 33, 130, 145])
def test_nothing_is_read_beyond_the_end(make, d, dtype) -> None:
    window_ND, positions_B = normal(60, d, dtype=dtype, device=CPU), permuted(60, 50)
    centroids_KD, sums_KD = normal(5, d, dtype=dtype, device=CPU), torch.zeros(5, d, dtype=dtype)
    kernel, found = make(50, 5, dtype, CPU), []
    for at_the_end in (torch.Tensor.clone, before_a_wall):
        window, positions, centroids, sums = map(
            at_the_end, (window_ND, positions_B, centroids_KD, sums_KD)
        )
        measured = kernel.assign_in_place(
            window, positions, centroids, most_sq_norm=MOST, exact=True
        )
        labels, counts = at_the_end(measured.labels_B), at_the_end(torch.zeros(5).long())
        kernel.accumulate(window, labels, sums_KD=sums, counts_K=counts, positions_B=positions)
        found.append((*measured[:3], sums, counts))
    assert all(map(torch.equal, *found))


# Breaks when a row that is dropped keeps its length or its numbers: what it leaves is NaN.
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e16])
@pytest.mark.parametrize("d", [8, 20])
def test_rows_without_a_length_count_as_zeros(make, d: int, bad: float) -> None:
    window_ND = normal(400, d, dtype=torch.float32, device=CPU)
    centroids_KD = normal(40, d, dtype=torch.float32, device=CPU)
    positions_B = permuted(400, 300)
    places = [0, 11, 12, 191, 192, 299]
    window_ND[positions_B[places].long(), 7] = bad
    kernel = make(300, 40, torch.float32, CPU)
    for exact in (False, True):
        found = kernel.assign_in_place(
            window_ND, positions_B, centroids_KD, most_sq_norm=MOST, exact=exact
        )
        assert found.dropped_B is not None
        assert found.dropped_B.nonzero().squeeze(1).tolist() == places
        assert found.sq_norms_B[places].tolist() == [0] * len(places)
        lengths_K = centroids_KD.double().square().sum(dim=1)
        assert found.labels_B[places].tolist() == [int(lengths_K.argmin())] * len(places)
        assert found.sq_distances_B.isfinite().all()
    assert not window_ND[positions_B[places].long(), 7].eq(0).any()


# Breaks when what lies in a window is clustered by other numbers than what was copied out of it.
@pytest.mark.parametrize("algorithm", ["minibatch", "lloyd"])
@pytest.mark.parametrize("n_bad", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d", [9, 20])
def test_states_are_the_same_to_the_bit(
    algorithm: str, n_bad: int, dtype: torch.dtype, d: int
) -> None:
    x_ND = normal(3000, d, dtype=dtype, device=CPU)
    start_KD = x_ND[:12].clone()
    x_ND[20 : 20 + n_bad, 4] = torch.nan
    scaling = Scaling.fit("none", "euclidean", RunningMoments.of(x_ND[:20]), dtype)

    def state_after(*, in_place: bool) -> dict[str, bytes]:
        kernel = CpuKernel(700, 12, dtype, CPU)
        works = (
            Lloyd(kernel, seed=0) if algorithm == "lloyd" else MiniBatch(kernel, len(x_ND), seed=0)
        )
        state = initial_state(start_KD.clone(), 0.0)
        for index, rows in enumerate(permuted(3000, 3000).split(700)):
            batch = scaling.prepare(
                x_ND.clone(), rows, torch.empty((700, d), dtype=dtype), in_place=in_place
            )
            assert len(batch) == len(rows)
            works.update_(state, batch, epoch=0, index=index)
        works.finish_epoch_(state)
        assert int(state.n_dropped) == n_bad
        return bits(state)

    assert state_after(in_place=True) == state_after(in_place=False)


# Breaks when rows that have to be widened, scaled or weighted are taken as they lie.
def test_only_rows_that_are_ready_are_left_where_they_lie() -> None:
    x_ND = normal(60, 4, dtype=torch.float32, device=CPU)
    kernel, rows, workspace_BD = (
        CpuKernel(60, 3, torch.float32, CPU),
        permuted(60, 40),
        x_ND.clone(),
    )
    moments = RunningMoments.of(x_ND)
    plain = Scaling.fit("none", "euclidean", moments, torch.float32)
    for scaling, window_ND, weights_N in (
        (Scaling.fit("zscore", "euclidean", moments, torch.float32), x_ND, None),
        (Scaling.fit("none", "cosine", moments, torch.float32), x_ND, None),
        (plain, x_ND.half(), None),
        (plain, x_ND, torch.ones(60, dtype=torch.float64)),
    ):
        batch = scaling.prepare(window_ND, rows, workspace_BD, weights_N, in_place=True)
        assert not batch.lies_in_window
        assert batch.positions_B is None
        assert torch.equal(batch.sq_norms_B > 0, torch.ones(40, dtype=torch.bool))
    batch = plain.prepare(x_ND, rows, workspace_BD, in_place=True)
    assert batch.lies_in_window
    assert batch.x_ND is x_ND
    assert batch.positions_B is rows
    labels_B, sq_distances_B = nearest(kernel, batch, x_ND[:3], spherical=False)
    assert sq_distances_B.dtype == torch.float64
    assert torch.equal(labels_B, torch.cdist(x_ND[rows.long()], x_ND[:3]).argmin(dim=1))


# Breaks when a run copies rows out of its windows all the same: what it finds does not tell.
def test_runs_leave_rows_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", normal(400, 6, dtype=torch.float32, device=CPU).numpy())
    job = Job(tmp_path / "x.npy", tmp_path / "run", {"k": 3, "epochs": 2, "batch_rows": 90})
    n_rows: Counter[str] = Counter()
    take = CpuKernel.assign_in_place

    def counting(kernel, x_ND, positions_B, *args, **options):
        found = take(kernel, x_ND, positions_B, *args, **options)
        n_rows["in order" if positions_B is None else "by position"] += len(found.labels_B)
        return found

    monkeypatch.setattr(CpuKernel, "assign_in_place", counting)
    job.attempt(kernel="cpu")
    assert n_rows == {"by position": 2 * 400, "in order": 400}  # The pass that closes a run.
    n_rows.clear()
    predicted(job.run, job.source, tmp_path / "labels.npy", kernel="cpu")
    assert n_rows == {"in order": 400}


def test_only_the_compiled_kernel_takes_rows_where_they_lie() -> None:
    assert ReferenceKernel(5, 2, torch.float32, CPU).in_place is None
    kernel = CpuKernel(5, 2, torch.float32, CPU)
    assert kernel.in_place is kernel


# Breaks when positions are passed on unchecked: the extension would read beyond the window.
def test_refuses_positions_outside_the_window(make) -> None:
    kernel = make(10, 4, torch.float32, CPU)
    window_ND, centroids_KD = torch.zeros((20, 3)), torch.zeros((4, 3))
    sums_KD, counts_K = torch.zeros((4, 3)), torch.zeros(4, dtype=torch.int64)
    labels_B = torch.zeros(2, dtype=torch.int64)
    for positions in ([0, 20], [-1, 0]):
        positions_B = torch.tensor(positions, dtype=torch.int32)
        with pytest.raises(IndexError, match="within a window of 20"):
            kernel.assign_in_place(
                window_ND, positions_B, centroids_KD, most_sq_norm=MOST, exact=False
            )
        with pytest.raises(IndexError, match="within a window of 20"):
            kernel.accumulate(
                window_ND, labels_B, sums_KD=sums_KD, counts_K=counts_K, positions_B=positions_B
            )
    for positions_B in (torch.zeros(2, dtype=torch.int64), torch.zeros(4, dtype=torch.int32)[::2]):
        with pytest.raises(ValueError, match="positions must be int32"):
            kernel.assign_in_place(
                window_ND, positions_B, centroids_KD, most_sq_norm=MOST, exact=False
            )
    with pytest.raises(ValueError, match="at most 10 rows"):
        kernel.assign_in_place(window_ND, None, centroids_KD, most_sq_norm=MOST, exact=False)
    with pytest.raises(ValueError, match="not 0"):
        kernel.assign_in_place(window_ND[:2], None, centroids_KD[:0], most_sq_norm=MOST, exact=True)
    assert not sums_KD.any()
