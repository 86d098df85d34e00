"""The choice of a kernel: an explicit one runs or raises, `auto` takes what suits the device."""

from __future__ import annotations

import pytest
import torch

from streamkm.errors import DeviceError
from streamkm.kernels import KernelRequest, make_kernel, resolve_kernel
from streamkm.kernels.reference import ReferenceKernel
from streamkm.tables import KERNELS

CPU = torch.device("cpu")


def test_an_explicit_name_is_taken_as_it_is() -> None:
    assert isinstance(
        make_kernel("reference", KernelRequest(4, 2, torch.float32, CPU)), ReferenceKernel
    )
    assert resolve_kernel("reference", CPU) == "reference"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_takes_a_kernel_that_there_is(device: str) -> None:
    assert resolve_kernel("auto", torch.device(device)) in KERNELS


# Breaks when a kernel falls back in silence, or fails with an error that names no remedy.
def test_triton_without_a_gpu_is_refused() -> None:
    with pytest.raises(DeviceError, match="kernel='triton' needs a CUDA GPU, the device is cpu"):
        resolve_kernel("triton", CPU)


def test_auto_on_cuda_is_triton_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamkm.kernels.select._is_installed", lambda _: True)
    assert resolve_kernel("auto", torch.device("cuda")) == "triton"
    monkeypatch.setattr("streamkm.kernels.select._is_installed", lambda _: False)
    assert resolve_kernel("auto", torch.device("cuda")) == "reference"
    with pytest.raises(DeviceError, match="Triton is not installed"):
        resolve_kernel("triton", torch.device("cuda"))


# Breaks when `fast` rescores all the same, or leaves labels that no screening gave.
def test_fast_labels_are_those_of_the_screening(rng) -> None:
    ends = torch.tensor([[-1e6, 0], [-1e6, 4], [1e6, 0], [1e6, 4]])
    draws = torch.from_numpy(rng.normal(0, 0.5, (3000, 2))).float()
    x_BD = ends[torch.from_numpy(rng.integers(4, size=3000))] + draws
    exact = make_kernel("reference", KernelRequest(3000, 4, torch.float32, CPU))
    fast = make_kernel("reference", KernelRequest(3000, 4, torch.float32, CPU, "fast"))
    norms_B = x_BD.square().sum(dim=1)
    exact_labels_B = exact.assign(x_BD, norms_B, ends).labels_B
    fast_labels_B = fast.assign(x_BD, norms_B, ends).labels_B
    assert (fast_labels_B < 4).all()
    # Which end a row lies at, float32 can tell; which of the two there, not always.
    assert torch.equal(fast_labels_B // 2, exact_labels_B // 2)
    assert not torch.equal(fast_labels_B, exact_labels_B)
    assert int(exact.n_rechecked) > 1000
    assert int(fast.n_rechecked) == 0
