"""What each process says of itself before they work together, and whether they can.

Versions and devices are compared before anything can fail between unlike processes.
"""

from __future__ import annotations

import socket
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from streamkm import __version__
from streamkm.distributed.world import World
from streamkm.errors import DeviceError, Option
from streamkm.machine import processor_name

if TYPE_CHECKING:
    from streamkm.distributed.seats import Seat

__all__ = ["Card", "check_cards", "fill_in", "local_device"]


def local_device(name: str, local_rank: int) -> str:
    """The device of one of several processes: with ``auto`` and ``cuda``, a GPU each.

    A batch system may show each process only its own GPU, and then that is number 0 for all.
    """
    if name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{local_rank % torch.cuda.device_count()}"


@dataclass(frozen=True)
class Card:
    """What a process says of itself in the waiting room."""

    host: str
    local_rank: int
    device: str
    """As it was named."""
    device_type: str
    gpu: str | None
    """What identifies the GPU, of all there are; None on a CPU."""
    processor: str
    """Model of the GPU, or of the CPU."""
    streamkm: str
    torch: str
    mark: str
    """Tells apart two processes that say they have the same rank."""


def fill_in(seat: Seat, device: str) -> Card:
    """The card of this process."""
    name = local_device(device, seat.local_rank)
    used = torch.device("cpu" if name == "auto" else name)
    is_gpu = used.type == "cuda" and torch.cuda.is_available()
    if is_gpu and (used.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            Option("device", device), f": there are {torch.cuda.device_count()} GPUs, from 0"
        )
    found = torch.cuda.get_device_properties(used) if is_gpu else None
    return Card(
        host=socket.gethostname(),
        local_rank=seat.local_rank,
        device=device,
        device_type=used.type,
        gpu=None if found is None else str(found.uuid),
        processor=processor_name() if found is None else found.name,
        streamkm=__version__,
        torch=torch.__version__,
        mark=uuid.uuid4().hex,
    )


def check_cards(cards: list[Card]) -> None:
    """Raise unless the processes can work together; the same error in all of them."""
    records = [
        {
            "host": card.host,
            "what": {
                "version of streamkm": card.streamkm,
                "version of torch": card.torch,
                "type of device": card.device_type,
            },
        }
        for card in cards
    ]
    World.compare(records)
    users: dict[str, int] = {}
    for rank, card in enumerate(cards):
        first = users.setdefault(card.gpu, rank) if card.gpu is not None else rank
        if first != rank:
            raise DeviceError(
                Option("device", card.device),
                f": processes {first} and {rank} on {card.host} would share one GPU; start one "
                "process for each GPU of a machine, and use ",
                Option("device", "cuda"),
            )
