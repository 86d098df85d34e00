"""A setting of the program around this package must not reach into labels."""

from __future__ import annotations

import pytest
import torch

from streamkm.kernels.precision import full_precision
from streamkm.kernels.reference import ReferenceKernel
from tests.kernels.contract import exact_sq_distances, normal, sq_norms

CPU = torch.device("cpu")


@pytest.fixture(params=["medium", "high"])
def low_precision(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def test_products_are_full_within_and_the_setting_comes_back(low_precision: str) -> None:
    a, b = (normal(256, 256, dtype=torch.float32, device=CPU) for _ in range(2))
    exact = a.double() @ b.double()
    with full_precision():
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert ((a @ b).double() - exact).abs().max() < 1e-4
    assert torch.get_float32_matmul_precision() == low_precision


# Breaks where the processor has bfloat16 products and the caller allows them.
def test_labels_and_distances_do_not_depend_on_it(low_precision: str) -> None:
    x_BD = normal(500, 64, dtype=torch.float32, device=CPU)
    c_KD = normal(100, 64, dtype=torch.float32, device=CPU)
    kernel = ReferenceKernel(500, 100, torch.float32, CPU)
    labels_B, sq_distances_B = kernel.assign(x_BD, sq_norms(x_BD), c_KD)
    exact_BK = torch.from_numpy(exact_sq_distances(x_BD, c_KD))
    assert torch.equal(labels_B, exact_BK.argmin(dim=1))
    torch.testing.assert_close(sq_distances_B.double(), exact_BK.amin(dim=1), rtol=1e-4, atol=0)
