"""The contract of kernels; each kernel's test class inherits it.

The oracle is float64 NumPy with differences, not the expanded square. A kernel
may expand: |x|^2 - 2 x.c + |c|^2 in a dtype of unit roundoff u is wrong by some
multiple of u (|x| + |c|)^2. In the worst case the multiple is D + 3, one for
every addition; for sums in blocks, of errors that are not all of one sign, a
few times sqrt(D) (Higham and Mary 2019). `error_bound` is the latter, so that
TF32 or bfloat16 products, whose u is 2^13 times larger, do not pass for float32.
It bounds distances; labels must be the oracle's, whatever a kernel screens in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import pytest
import torch

from streamkm.kernels import Rows

if TYPE_CHECKING:
    from streamkm.kernels import Assignment, Kernel

# (rows, clusters, features): one of each, off every power of two, and the large.
SHAPES = [
    (1, 1, 1),
    (2, 3, 1),
    (7, 1, 3),
    (1, 2, 768),
    (130, 5, 17),
    (257, 2, 3),
    (513, 33, 768),
    (1000, 64, 16),
    (300, 1000, 3),
    (129, 5000, 17),
    (5, 5000, 768),
]
DTYPES = [torch.float32, torch.float64]


class MakeKernel(Protocol):
    def __call__(
        self, batch_rows: int, k: int, dtype: torch.dtype, device: torch.device
    ) -> Kernel: ...


def exact_sq_distances(x_BD: torch.Tensor, centroids_KD: torch.Tensor) -> np.ndarray:
    """Sums of squared differences in float64, shape (B, K)."""
    x, c = x_BD.cpu().double().numpy(), centroids_KD.cpu().double().numpy()
    return np.stack([np.square(x - centroid).sum(axis=1) for centroid in c], axis=1)


def error_bound(x_BD: torch.Tensor, centroids_KD: torch.Tensor) -> np.ndarray:
    """By how much a squared distance of each row may be wrong; see above."""
    x, c = x_BD.cpu().double().numpy(), centroids_KD.cpu().double().numpy()
    unit = torch.finfo(x_BD.dtype).eps / 2
    reach = np.linalg.norm(x, axis=1) + np.linalg.norm(c, axis=1).max()
    bound: np.ndarray = (4 * np.sqrt(x.shape[1]) + 3) * unit * np.square(reach)
    return bound


def sq_norms(x_BD: torch.Tensor) -> torch.Tensor:
    return x_BD.double().square().sum(dim=1).to(x_BD.dtype)


def normal(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The same numbers for the same shape."""
    return torch.from_numpy(np.random.default_rng(shape).normal(size=shape)).to(device, dtype)


def permuted(n_window: int, n_rows: int) -> torch.Tensor:
    """Positions of rows of a window, in an order that is the same for the same numbers."""
    return torch.randperm(n_window, generator=torch.Generator().manual_seed(1)).int()[:n_rows]


class KernelContract:
    """Subclasses give a fixture `make` -> `MakeKernel`, and may override `device`."""

    many_features, flat_rows, many_rows = 16384, 100, 5000
    """Fewer where a kernel is interpreted."""
    threads_round = False
    """Whether the last bits of a distance may depend on the number of threads."""

    @pytest.fixture
    def device(self) -> torch.device:
        return torch.device("cpu")

    def assign(self, make: MakeKernel, x_BD: torch.Tensor, c_KD: torch.Tensor) -> Assignment:
        kernel = make(len(x_BD), len(c_KD), x_BD.dtype, x_BD.device)
        return kernel.assign(x_BD, sq_norms(x_BD), c_KD)

    def sums(
        self, make: MakeKernel, x_BD: torch.Tensor, labels_B: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sums_KD = x_BD.new_zeros((k, x_BD.shape[1]), dtype=torch.float64)
        counts_K = torch.zeros(k, dtype=torch.int64, device=x_BD.device)
        kernel = make(len(x_BD), k, x_BD.dtype, x_BD.device)
        kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)
        return sums_KD, counts_K

    # ---- assign -------------------------------------------------------------

    # Breaks when distances are compared after a square root: both are 1 then, to rounding.
    def test_the_nearest_by_less_than_a_distance_can_tell(self, make, device) -> None:
        x_BD = torch.zeros((3, 2), device=device)
        c_KD = torch.tensor([[1.0, 2.0**-26], [1.0, 0.0]], device=device)
        assert self.assign(make, x_BD, c_KD).labels_B.tolist() == [1, 1, 1]

    # Breaks when a tile is scored against other rows, or precision is given away.
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(("b", "k", "d"), SHAPES)
    def test_labels_and_distances_are_float64_s(self, make, device, b, k, d, dtype) -> None:
        x_BD = normal(b, d, dtype=dtype, device=device)
        c_KD = normal(k, d, dtype=dtype, device=device)
        labels_B, distances_B = self.assign(make, x_BD, c_KD)
        assert labels_B.dtype == torch.int64
        assert distances_B.dtype == dtype
        assert labels_B.shape == distances_B.shape == (b,)
        exact_BK, bound_B = exact_sq_distances(x_BD, c_KD), error_bound(x_BD, c_KD)
        labels = labels_B.cpu().numpy()
        chosen_B = exact_BK[np.arange(b), labels]
        assert labels.tolist() == exact_BK.argmin(axis=1).tolist()
        assert (np.abs(distances_B.cpu().double().numpy() - chosen_B) <= bound_B).all()

    # Breaks when sums run in sequence over many features that are alike: all additions round
    # the same way, by more than a bound for errors of either sign allows.
    def test_labels_of_flat_rows(self, make, device) -> None:
        levels = np.random.default_rng(5).uniform(0.5, 1.5, (2, 100)).astype(np.float32)
        x_BD, c_KD = (torch.from_numpy(level).to(device)[:, None] for level in levels)
        d = self.many_features
        x_BD, c_KD = (
            x_BD[: self.flat_rows].expand(-1, d).contiguous(),
            c_KD[:64].expand(64, d).contiguous(),
        )
        expected = np.abs(levels[0][: self.flat_rows, None] - levels[1][None, :64]).argmin(axis=1)
        assert self.assign(make, x_BD, c_KD).labels_B.tolist() == expected.tolist()

    # Breaks when clamping is forgotten: rows on a centroid come out at -1e-6.
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_distances_are_never_negative(self, make, device, dtype) -> None:
        c_KD = normal(40, 31, dtype=dtype, device=device) + 30
        x_BD = c_KD.repeat(20, 1)
        labels_B, distances_B = self.assign(make, x_BD, c_KD)
        assert (distances_B >= 0).all()
        assert torch.equal(labels_B, torch.arange(40, device=device).repeat(20))

    # Breaks where |x|^2 - 2 x.c + |c|^2 is all that is computed: here it has no digit of the truth.
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(("k", "d"), [(6, 2), (40, 31), (3, 130)])
    def test_small_distances_far_from_the_origin(self, make, device, k, d, dtype) -> None:
        eps = torch.finfo(dtype).eps
        c_KD = normal(k, d, dtype=dtype, device=device)
        c_KD = torch.where(torch.arange(k, device=device)[:, None] % 2 == 0, 1, -1) * (
            c_KD.abs() + 1
        )
        labels_B = torch.arange(200, device=device) % k
        x_BD = c_KD[labels_B] * (1 + 64 * eps * normal(200, d, dtype=dtype, device=device))
        x_BD[:k] = c_KD
        found = self.assign(make, x_BD, c_KD)
        assert torch.equal(found.labels_B, labels_B)
        exact_B = exact_sq_distances(x_BD, c_KD)[np.arange(200), labels_B.cpu().numpy()]
        np.testing.assert_allclose(found.sq_distances_B.cpu().numpy(), exact_B, rtol=1e-4)
        assert (found.sq_distances_B[:k] == 0).all()
        kernel = make(200, 2 * k, dtype, device)
        both_KD = torch.cat((c_KD, c_KD * (1 + 8 * eps)))
        _, _, second_B = kernel.assign_two(x_BD, sq_norms(x_BD), both_KD)
        exact_B = np.sort(exact_sq_distances(x_BD, both_KD), axis=1)[:, 1]
        np.testing.assert_allclose(second_B.cpu().numpy(), exact_B, rtol=0.1)

    # Breaks when the last columns of a product, or another tile, round otherwise
    # than the first, or the reduction prefers a later lane.
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(
        ("b", "k", "d"),
        [(513, 5, 17), (513, 5, 64), (513, 5, 768), (600, 2, 1), (700, 129, 3), (300, 999, 17)],
    )
    def test_equal_centroids_tie_to_the_lowest_index(self, make, device, b, k, d, dtype) -> None:
        half_HD = normal((k + 1) // 2, d, dtype=dtype, device=device)
        shuffled = torch.from_numpy(np.random.default_rng(k).permutation(k)).to(device)
        # d = 1 gets centroids of equal length that differ.
        c_KD = torch.cat((half_HD, half_HD))[:k][shuffled]
        alike_KK = (c_KD[:, None] == c_KD[None]).all(dim=2)
        first_K = alike_KK.int().argmax(dim=1)
        labels_B, _ = self.assign(make, normal(b, d, dtype=dtype, device=device), c_KD)
        assert torch.equal(first_K[labels_B], labels_B)

    # Breaks when equal centroids are taken for one only if nothing lies between them
    # that has their length.
    def test_a_tie_is_of_equal_centroids_only(self, make, device) -> None:
        c_KD = torch.tensor([[3.0], [-3.0], [3.0], [-3.0], [0.0]], device=device)
        x_BD = torch.tensor([[-2.9], [2.9], [-4.0], [0.1], [5.0]], device=device)
        labels_B, distances_B = self.assign(make, x_BD, c_KD)
        assert labels_B.tolist() == [1, 0, 1, 4, 0]
        expected = torch.tensor([0.01, 0.01, 1.0, 0.01, 4.0], device=device)
        torch.testing.assert_close(distances_B, expected, atol=1e-5, rtol=0)

    # Breaks when "no centroid yet" is index 0 only by luck, or NaN wins a comparison.
    def test_a_row_between_two_goes_to_the_lower(self, make, device) -> None:
        c_KD = torch.tensor([[9.0, 9.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], device=device)
        labels_B, distances_B = self.assign(make, torch.zeros((3, 2), device=device), c_KD)
        assert labels_B.tolist() == [1, 1, 1]
        assert distances_B.tolist() == [1.0, 1.0, 1.0]

    # Breaks when buffers keep something of the batch before, or need its length.
    def test_one_kernel_serves_batches_of_any_length(self, make, device) -> None:
        x_BD = normal(900, 6, dtype=torch.float32, device=device)
        c_KD = normal(7, 6, dtype=torch.float32, device=device)
        kernel = make(900, 7, torch.float32, device)
        whole = kernel.assign(x_BD, sq_norms(x_BD), c_KD)
        kernel.assign(x_BD.flip(0), sq_norms(x_BD).flip(0), c_KD + 1)
        for b in (1, 5, 899):
            part = kernel.assign(x_BD[:b], sq_norms(x_BD[:b]), c_KD)
            assert torch.equal(part.labels_B, whole.labels_B[:b])
        # A result is the caller's: the next call must not write into it.
        assert torch.equal(whole.labels_B, self.assign(make, x_BD, c_KD).labels_B)

    # Breaks when a kernel refuses fewer centroids than it is made for, which seeding gives it, or
    # goes on over what its buffers hold of the others.
    @pytest.mark.parametrize("k", [1, 2, 70])
    def test_one_kernel_serves_any_number_of_centroids(self, make, device, k) -> None:
        x_BD = normal(20, 6, dtype=torch.float32, device=device)
        every_KD = normal(130, 6, dtype=torch.float32, device=device)
        exact_BK, kernel = exact_sq_distances(x_BD, every_KD), make(20, 130, torch.float32, device)
        for n in (130, k, 130):
            c_KD, labels = every_KD[:n], exact_BK[:, :n].argmin(axis=1).tolist()
            sums_KD = torch.zeros((n + 1, 6), dtype=torch.float64, device=device)
            counts_K = torch.zeros(n + 1, dtype=torch.int64, device=device)
            rows = Rows(x_BD, sq_norms(x_BD))
            found = kernel.step(rows, c_KD, sums_KD=sums_KD, counts_K=counts_K)
            assert found.labels_B.tolist() == labels
            assert kernel.assign(x_BD, sq_norms(x_BD), c_KD).labels_B.tolist() == labels
            assert counts_K[:n].tolist() == np.bincount(labels, minlength=n).tolist()
            labels_B, _, second_B = kernel.assign_two(x_BD, sq_norms(x_BD), c_KD)
            assert labels_B.tolist() == labels
            if n > 1:
                second = np.sort(exact_BK[:, :n], axis=1)[:, 1]
                np.testing.assert_allclose(second_B.cpu().numpy(), second, rtol=1e-3)
            else:
                assert second_B.isinf().all()

    # Breaks when input is scaled or centred in place.
    def test_leaves_its_input_alone(self, make, device) -> None:
        x_BD = normal(50, 6, dtype=torch.float32, device=device)
        c_KD, norms_B = normal(7, 6, dtype=torch.float32, device=device), sq_norms(x_BD)
        before = [tensor.clone() for tensor in (x_BD, norms_B, c_KD)]
        kernel = make(50, 7, torch.float32, device)
        labels_B, _ = kernel.assign(x_BD, norms_B, c_KD)
        self.sums(make, x_BD, labels_B, 7)
        for tensor, same in zip((x_BD, norms_B, c_KD), before, strict=True):
            assert torch.equal(tensor, same)

    # ---- two nearest ------------------------------------------------------

    # Breaks when the second is the nearest of another tile, or that of a row in doubt is lost.
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(("b", "k", "d"), [(33, 1, 3), (70, 2, 1), (40, 5, 17), (60, 150, 3)])
    def test_distances_to_the_two_nearest(self, make, device, b, k, d, dtype) -> None:
        x_BD = normal(b, d, dtype=dtype, device=device)
        c_KD = normal(k, d, dtype=dtype, device=device)
        x_BD[0] = c_KD[-1]
        c_KD[k // 2] = c_KD[0]
        kernel = make(b, k, dtype, device)
        labels_B, first_B, second_B = kernel.assign_two(x_BD, sq_norms(x_BD), c_KD)
        exact_BK, bound_B = exact_sq_distances(x_BD, c_KD), error_bound(x_BD, c_KD)
        assert labels_B.tolist() == exact_BK.argmin(axis=1).tolist()
        assert first_B.dtype == second_B.dtype == dtype
        exact_BK = np.sort(exact_BK, axis=1)
        assert (np.abs(first_B.cpu().double().numpy() - exact_BK[:, 0]) <= bound_B).all()
        if k == 1:
            assert second_B.isinf().all()
        else:
            assert (np.abs(second_B.cpu().double().numpy() - exact_BK[:, 1]) <= bound_B).all()

    # ---- step -------------------------------------------------------------

    # Breaks when a row left out is counted, a share is rounded or forgotten, or a row in
    # doubt is added to the cluster that it was screened for.
    @pytest.mark.parametrize("has_shares", [False, True])
    @pytest.mark.parametrize(("b", "k", "d"), [(1, 1, 1), (150, 5, 3), (70, 33, 17), (5, 300, 2)])
    def test_a_step_assigns_and_adds(self, make, device, b, k, d, has_shares) -> None:
        draws = np.random.default_rng((b, k, d))
        x_BD = torch.from_numpy(draws.integers(-255, 256, (b, d))).to(device).float()
        # Half a unit between neighbours: many rows are as far from two centroids.
        c_KD = torch.from_numpy(draws.integers(-60, 60, (k, d)) * 4 + 0.5).to(device).float()
        shares = 2.0 ** draws.integers(-2, 3, b) if has_shares else np.ones(b)
        left_out = draws.random(b) < 0.2
        x_BD[-1], left_out[-1] = 0, False
        rows = Rows(
            x_BD,
            sq_norms(x_BD),
            torch.from_numpy(shares).to(device) if has_shares else None,
            torch.from_numpy(left_out).to(device),
            zeros_first=has_shares,
        )
        sums_KD = torch.full((k + 1, d), 3.0, dtype=torch.float64, device=device)
        counts_K = torch.full((k + 1,), 7, device=device)
        kernel = make(b, k, torch.float32, device)
        labels_B, distances_B = kernel.step(rows, c_KD, sums_KD=sums_KD, counts_K=counts_K)
        exact_BK = exact_sq_distances(x_BD, c_KD)
        labels = exact_BK.argmin(axis=1)
        labels[(x_BD == 0).all(dim=1).cpu().numpy() & has_shares] = 0
        assert labels_B.tolist() == labels.tolist()
        kept = (np.abs(distances_B.cpu().numpy() - exact_BK[np.arange(b), labels])
                <= error_bound(x_BD, c_KD))  # fmt: skip
        assert kept[:-1].all()
        expected = np.full((k, d), 3.0)
        counted = ~left_out
        weighted = x_BD.cpu().double().numpy() * shares[:, None]
        np.add.at(expected, labels[counted], weighted[counted])
        assert np.array_equal(sums_KD[:k].cpu().double().numpy(), expected)
        sizes = np.bincount(labels[counted], minlength=k)
        assert counts_K[:k].tolist() == (7 + sizes).tolist()

    # Breaks when the three terms that rows are split in lose a digit.
    def test_a_step_adds_up_in_float32_at_least(self, make, device) -> None:
        x_BD = normal(300, 5, dtype=torch.float32, device=device) * 10.0 ** torch.arange(
            -12, 13, 6, device=device
        )
        c_KD, counts_K = x_BD[:3].clone(), torch.zeros(4, dtype=torch.int64, device=device)
        sums_KD = torch.zeros((4, 5), dtype=torch.float64, device=device)
        kernel = make(300, 3, torch.float32, device)
        rows = Rows(x_BD, sq_norms(x_BD))
        labels_B, _ = kernel.step(rows, c_KD, sums_KD=sums_KD, counts_K=counts_K)
        exact, sizes = torch.zeros((3, 5)).double(), torch.zeros((3, 5)).double()
        exact.index_add_(0, labels_B.cpu(), x_BD.cpu().double())
        sizes.index_add_(0, labels_B.cpu(), x_BD.cpu().double().abs())
        error = (sums_KD[:3].cpu().double() - exact).abs()
        assert (error <= 2 * 300**0.5 * torch.finfo(torch.float32).eps / 2 * sizes).all()

    # ---- accumulate ---------------------------------------------------------

    # Breaks when a row is added twice, to a neighbour, or not at all.
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(("b", "k", "d"), SHAPES)
    def test_sums_of_integers_are_exact(self, make, device, b, k, d, dtype) -> None:
        draws = np.random.default_rng((b, k, d))
        rows, labels = draws.integers(-255, 256, (b, d)), draws.integers(0, k, b)
        x_BD = torch.from_numpy(rows).to(device, dtype)
        sums_KD, counts_K = self.sums(make, x_BD, torch.from_numpy(labels).to(device), k)
        expected = np.zeros((k, d))
        np.add.at(expected, labels, rows)
        assert np.array_equal(sums_KD.cpu().double().numpy(), expected)
        assert counts_K.cpu().tolist() == np.bincount(labels, minlength=k).tolist()

    # Breaks when sums are taken in less than the dtype of the rows.
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_sums_are_float64_s_to_rounding(self, make, device, dtype) -> None:
        x_BD = normal(4000, 17, dtype=dtype, device=device)
        labels_B = torch.arange(4000, device=device) % 3
        sums_KD, _ = self.sums(make, x_BD, labels_B, 3)
        exact = torch.zeros((3, 17), dtype=torch.float64)
        exact.index_add_(0, labels_B.cpu(), x_BD.cpu().double())
        sizes = torch.zeros_like(exact).index_add_(0, labels_B.cpu(), x_BD.cpu().double().abs())
        error = (sums_KD.cpu().double() - exact).abs()
        # In sequence, 1333 additions: sqrt(n) of them for errors of either sign.
        assert (error <= 4 * 1333**0.5 * torch.finfo(dtype).eps / 2 * sizes).all()

    # Breaks when sums, or parts of them, are kept in the dtype of the rows: the mean of equal rows
    # is then another row.
    @pytest.mark.parametrize(("n", "d"), [(1, 3), (7, 17), (37, 3), (None, 17), (None, 2)])
    def test_the_mean_of_equal_rows_is_that_row(self, make, device, n, d) -> None:
        n = n or self.many_rows
        rows_KD = 37 * normal(3, d, dtype=torch.float32, device=device)
        labels_B = torch.arange(3 * n, device=device) * 2 % 3
        sums_KD, counts_K = self.sums(make, rows_KD[labels_B], labels_B, 3)
        assert torch.equal((sums_KD / counts_K[:, None]).float(), rows_KD)

    # Breaks when shares are float32, where these are 0: a cluster of light rows would have no sum.
    @pytest.mark.parametrize("d", [2, 17])
    def test_shares_of_any_size(self, make, device, d) -> None:
        x_BD = normal(50, d, dtype=torch.float32, device=device)
        labels_B = torch.arange(50, device=device) % 2
        shares_B = torch.exp2(-300 * labels_B.double())
        sums_KD = torch.zeros((2, d), dtype=torch.float64, device=device)
        counts_K = torch.zeros(2, dtype=torch.int64, device=device)
        kernel = make(50, 2, torch.float32, device)
        kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K, shares_B=shares_B)
        sums_KD[1] *= 2.0**300
        expected_KD = torch.zeros((2, d), dtype=torch.float64)
        expected_KD.index_add_(0, labels_B.cpu(), x_BD.double().cpu())
        torch.testing.assert_close(sums_KD.cpu(), expected_KD, rtol=1e-12, atol=1e-12)
        assert counts_K.tolist() == [25, 25]

    # Breaks when buffers are overwritten, not added to.
    def test_adds_to_what_is_there(self, make, device) -> None:
        x_BD = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], device=device)
        labels_B = torch.tensor([2, 0, 2], device=device)
        sums_KD = torch.full((3, 2), 100.0, dtype=torch.float64, device=device)
        counts_K = torch.full((3,), 10, device=device)
        kernel = make(3, 3, torch.float32, device)
        for _ in range(2):
            kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)
        assert sums_KD.tolist() == [[106.0, 108.0], [100.0, 100.0], [112.0, 116.0]]
        assert counts_K.tolist() == [12, 10, 14]

    # Breaks when counts pass through float32 (frozen at 2^24) or int32.
    @pytest.mark.parametrize("before", [2**24 - 1, 2**24, 2**31 - 1, 2**53])
    def test_counts_grow_past_every_float_and_int32(self, make, device, before) -> None:
        counts_K = torch.tensor([before, 0], device=device)
        x_BD, labels_B = torch.ones((3, 1), device=device), torch.zeros(3, device=device).long()
        kernel = make(3, 2, torch.float32, device)
        for step in range(1, 4):
            sums_KD = torch.zeros((2, 1), dtype=torch.float64, device=device)
            kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)
            assert counts_K.tolist() == [before + 3 * step, 0]

    # ---- bits ---------------------------------------------------------------

    # Breaks with atomics on floats, and with sums cut by the number of threads.
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(("b", "k", "d"), [(5000, 3, 64), (700, 33, 768), (4099, 999, 3)])
    def test_same_bits_again_and_with_other_threads(self, make, device, b, k, d, dtype) -> None:
        x_BD = normal(b, d, dtype=dtype, device=device)
        c_KD = normal(k, d, dtype=dtype, device=device)
        n_threads = torch.get_num_threads()
        results: list[tuple[torch.Tensor, ...]] = []
        distances: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
        try:
            for threads in (1, 2, 2, 1):
                torch.set_num_threads(threads)
                labels_B, distances_B = self.assign(make, x_BD, c_KD)
                results.append((labels_B, *self.sums(make, x_BD, labels_B, k)))
                distances[threads if self.threads_round else 0].append(distances_B)
        finally:
            torch.set_num_threads(n_threads)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
        for alike in distances.values():
            assert all(torch.equal(alike[0], other) for other in alike)
