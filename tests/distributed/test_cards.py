"""Processes that can work together, and those that cannot."""

from __future__ import annotations

import dataclasses

import pytest

from streamkm.distributed.cards import Card, check_cards, local_device
from streamkm.errors import ConfigError, DeviceError


def test_each_process_gets_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert [local_device(name, 3) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda:3", "cuda:3", "cuda:1", "cpu",
    ]  # fmt: skip
    # Slurm shows each process the GPU that it has got.
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert local_device("auto", 3) == "cuda:0"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert local_device("auto", 3) == "auto"


CARD = Card("n1", 0, "auto", "cuda", "GPU-a", "H200", "1.0", "2.13", "")


def change(**what):
    return dataclasses.replace(CARD, **what)


@pytest.mark.parametrize(
    ("cards", "error", "message"),
    [
        ([CARD, change(gpu="GPU-b"), change(host="n2", gpu="GPU-c")], None, ""),
        ([change(gpu=None)] * 2, None, ""),
        (
            [CARD, change(gpu="GPU-b"), change(device="cuda:0")],
            DeviceError,
            (
                "--device cuda:0: processes 0 and 2 on n1 would share one GPU; start one process "
                "for each GPU of a machine, and use --device cuda"
            ),
        ),
        (
            [CARD, change(host="n2", device_type="cpu", gpu=None)],
            ConfigError,
            (
                "all processes of a run need the same type of device: rank 0 on n1 has cuda, "
                "rank 1 on n2 has cpu; start them with the same command, data and versions"
            ),
        ),
        (
            [CARD, change(gpu="GPU-b", streamkm="1.1")],
            ConfigError,
            (
                "all processes of a run need the same version of streamkm: rank 0 on n1 has 1.0, "
                "rank 1 on n1 has 1.1; start them with the same command, data and versions"
            ),
        ),
        ([CARD, change(gpu="GPU-b", torch="2.11")], ConfigError, None),
    ],
)
def test_processes_that_cannot_work_together_are_refused(cards, error, message):
    if error is None:
        check_cards(cards)
        return
    with pytest.raises(error) as caught:
        check_cards(cards)
    assert message is None or caught.value.for_command_line == message
