"""The table of devices: one that is asked for exists or is refused with a remedy."""

from __future__ import annotations

import warnings

import pytest
import torch

from streamkm.devices import (
    device_name,
    is_host,
    memory_of,
    resolve_device,
    sharing,
    synchronize,
)
from streamkm.errors import DeviceError

CPU = torch.device("cpu")


@pytest.fixture
def n_gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)


@pytest.mark.usefixtures("n_gpus")
@pytest.mark.parametrize(
    ("n_gpus", "name", "device"),
    [(0, "auto", "cpu"), (0, "cpu", "cpu"), (2, "auto", "cuda:0"), (2, "cpu", "cpu"),
     (2, "cuda", "cuda:0"), (2, "cuda:1", "cuda:1")],
    indirect=["n_gpus"],
)  # fmt: skip
def test_what_is_asked_for_is_taken(name: str, device: str) -> None:
    assert resolve_device(name) == torch.device(device)


# Breaks when a device that was asked for is replaced in silence.
@pytest.mark.usefixtures("n_gpus")
@pytest.mark.parametrize(
    ("n_gpus", "name", "said"),
    [(0, "cuda", r"sees no CUDA GPU; use device='cpu'"), (0, "cuda:1", "sees no CUDA GPU"),
     (2, "cuda:2", "device='cuda:2': there are 2 GPUs, counted from 0")],
    indirect=["n_gpus"],
)  # fmt: skip
def test_what_is_not_there_is_refused(name: str, said: str) -> None:
    with pytest.raises(DeviceError, match=said):
        resolve_device(name)


# Breaks when the reason is left to a warning with an address in it, or the remedy is to look at a
# driver that is all right.
@pytest.mark.parametrize(
    ("visible", "warned", "said"),
    [
        ("", "", "GPU; use device='cpu', or unset CUDA_VISIBLE_DEVICES, which is empty and"),
        ("7", "", "or check CUDA_VISIBLE_DEVICES, which is 7, and the driver"),
        (None, "The driver is too old (found version 11040). Please update (Triggered at c.cpp)",
         "sees no CUDA GPU (The driver is too old (found version 11040)); use"),
    ],
)  # fmt: skip
def test_why_no_gpu_is_seen_is_said(
    visible: str | None, warned: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> bool:
        if warned:
            warnings.warn(warned, UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", look)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(DeviceError) as caught:
        resolve_device("cuda")
    assert said in str(caught.value)


# Breaks when what torch keeps from an earlier fit counts as taken, or a card that has gone ends a
# command with a traceback.
@pytest.mark.usefixtures("n_gpus")
@pytest.mark.parametrize("n_gpus", [2], indirect=True)
def test_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert memory_of(gpu) == (130, 1000)
    assert [sharing(gpu, n) for n in (1, 2, 3)] == [1, 1, 2]
    assert sharing(CPU, 3) == 3

    def lost(device: torch.device) -> tuple[int, int]:
        raise RuntimeError("CUDA error: GPU is lost\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lost)
    with pytest.raises(DeviceError, match=r"device='cuda:1' does not answer: .* is lost .*'cpu'$"):
        memory_of(gpu)


# Breaks when a forked child, which may not use CUDA if its parent has, ends with a traceback.
@pytest.mark.usefixtures("n_gpus")
@pytest.mark.parametrize("n_gpus", [2], indirect=True)
@pytest.mark.parametrize("name", ["auto", "cuda:1"])
def test_a_device_that_refuses_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.\nUse 'spawn'")

    monkeypatch.setattr(torch.cuda, "init", refuse)
    with pytest.raises(DeviceError, match=r"cuda.* cannot be used in this process: .* 'spawn'$"):
        resolve_device(name)
    assert resolve_device("cpu") == CPU


def test_the_host_is_the_cpu() -> None:
    assert is_host(CPU)
    assert not is_host(torch.device("cuda", 1))
    assert device_name(CPU) == "cpu"
    synchronize(CPU)
