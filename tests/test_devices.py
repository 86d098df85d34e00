"""The table of devices: one that is asked for exists or is refused with a remedy."""

from __future__ import annotations

import pytest
import torch

from streamkm.devices import device_name, is_host, resolve_device, synchronize
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
