"""Steps of greedy k-means++: by hand, and the same compiled and by torch."""

from __future__ import annotations

import pytest
import torch

from streamkm.kernels import choose_, drawn_by
from streamkm.kernels.extension import instruction_sets
from streamkm.kernels.ops import choose as module

needs_extension = pytest.mark.skipif(not instruction_sets(), reason="the extension was not built")
COMPILED = pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_extension), False])


def sq_norms(x_SD: torch.Tensor) -> torch.Tensor:
    norms_S: torch.Tensor = torch.linalg.vector_norm(x_SD, dim=1)
    return norms_S.square_()


# Breaks when a weight draws more or less than its share, or a weight of 0 draws anything.
def test_weights_are_drawn_by_their_shares() -> None:
    uniform = (torch.arange(1000).double() + 0.5) / 1000
    drawn = drawn_by(uniform, torch.tensor([0.0, 1.0, 3.0, 0.0, 6.0, 0.0]))
    assert drawn.bincount(minlength=6).tolist() == [0, 100, 300, 0, 600, 0]


# Rows at 0, 10, 11 and 30. From 0 the squared distances are 0, 100, 121 and 900.
@COMPILED
@pytest.mark.parametrize("weighted", [False, True])
def test_the_row_that_leaves_the_least_cost_by_hand(monkeypatch, compiled, weighted) -> None:
    if not compiled:
        monkeypatch.setattr(module, "instruction_sets", tuple)
    x_SD = torch.tensor([[0.0], [10.0], [11.0], [30.0]])
    # Weighted, the row at 10 is worth more than the one at 30, which leaves 10 and 11 alone.
    weights_S = torch.tensor([1.0, 9, 9, 1]).double() if weighted else None
    left_S = torch.ones(4).double() if weights_S is None else weights_S.clone()
    closest_S = torch.full((4,), torch.inf)

    def choose(*uniform: float, is_first: bool) -> int:
        (chosen,) = choose_(
            x_SD, sq_norms(x_SD), weights_S, torch.tensor(uniform).double(),
            closest_S=closest_S, left_S=left_S, is_first=is_first,
        ).tolist()  # fmt: skip
        return int(chosen)

    assert choose(0.0, is_first=True) == 0
    assert closest_S.tolist() == [0, 100, 121, 900]
    assert left_S[0] == 0
    # 0.05 draws the row at 10, 0.99 the one at 30. Left: 1 + 400 = 401, or 100 + 121 = 221;
    # weighted 9 + 400 = 409, or 9 * 221 = 1989.
    assert choose(0.05, 0.99, is_first=False) == (1 if weighted else 3)
    if not weighted:
        assert closest_S.tolist() == [0, 100, 121, 0]


@COMPILED
def test_where_all_rows_lie_on_chosen_ones_another_is_taken(monkeypatch, compiled) -> None:
    if not compiled:
        monkeypatch.setattr(module, "instruction_sets", tuple)
    x_SD, left_S = torch.ones((3, 2)), torch.tensor([0.0, 1.0, 0.0]).double()
    chosen = choose_(
        x_SD, sq_norms(x_SD), None, torch.tensor([0.1, 0.9]).double(),
        closest_S=torch.zeros(3), left_S=left_S, is_first=False,
    )  # fmt: skip
    assert chosen.tolist() == [1]
    assert not left_S.any()


# Breaks when the two ways draw or choose other rows, or keep other distances; or when a result
# depends on the threads.
@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n_rows", "n_features"), [(1, 1), (200, 3), (3000, 33)])
def test_compiled_and_torch_agree(monkeypatch, dtype, weighted, n_rows, n_features) -> None:
    generator = torch.Generator().manual_seed(n_rows)
    x_SD = torch.randn(n_rows, n_features, generator=generator, dtype=torch.float64).to(dtype)
    weights_S = torch.rand(n_rows, generator=generator, dtype=torch.float64) if weighted else None
    uniform_KL = torch.rand(min(n_rows, 20), 5, generator=generator, dtype=torch.float64)
    results = []
    for compiled, n_threads in ((True, 1), (True, 3), (False, 1)):
        left_S = torch.ones(n_rows).double() if weights_S is None else weights_S.clone()
        closest_S, chosen = torch.full((n_rows,), torch.inf, dtype=dtype), []
        with monkeypatch.context() as patch:
            patch.setattr(module, "n_threads_for", lambda _, n=n_threads: n)
            if not compiled:
                patch.setattr(module, "instruction_sets", tuple)
            for step, uniform_L in enumerate(uniform_KL):
                chosen += choose_(
                    x_SD, sq_norms(x_SD), weights_S, uniform_L if step else uniform_L[:1],
                    closest_S=closest_S, left_S=left_S, is_first=step == 0,
                ).tolist()  # fmt: skip
        assert len(set(chosen)) == len(chosen)
        results.append((chosen, left_S, closest_S))
    for chosen, left_S, closest_S in results[1:]:
        assert chosen == results[0][0]
        assert torch.equal(left_S, results[0][1])
        assert torch.equal(closest_S, results[0][2])
