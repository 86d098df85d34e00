"""Chooses the network that the processes of several machines use on CPUs.

gloo listens at the address that the name of its machine has. Debian gives that name 127.0.1.1,
some machines do not know their own name, and others cannot connect to either. The processes have
reached the store of the run over some network. So that is the one that gloo gets, by the variable
that torch reads. (NCCL looks for a network by itself.)
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["address_towards", "gloo_towards"]

VARIABLE = "GLOO_SOCKET_IFNAME"
#: Linux's request for the address of an interface; of BSD and macOS it has another number.
SIOCGIFADDR = 0x8915
#: Any will do: nothing is sent.
PORT = 9


def address_towards(machine: str) -> str:
    """The IPv4 address of this machine in the network that leads to `machine`; "" if none does."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((machine, PORT))
        return str(probe.getsockname()[0])
    return ""


@contextmanager
def gloo_towards(mine: str, others: Sequence[str]) -> Iterator[None]:
    """Let groups that are made in the ``with`` block use the network of the run.

    The user's own choice stays. So does torch's where all are on one machine.

    Parameters
    ----------
    mine : str
        The address from which this process has reached the store.
    others : sequence of str
        Those of the other processes. The machine that holds the store has reached it at home, and
        takes the network that leads to the others.
    """
    outside = next(filter(_leads_outside, others), None)
    if outside is not None and not _leads_outside(mine):
        mine = address_towards(outside)
    name = interface_of(mine) if _leads_outside(mine) else None
    if name is None or VARIABLE in os.environ:
        yield
        return
    os.environ[VARIABLE] = name
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def _leads_outside(address: str) -> bool:
    return bool(address) and not address.startswith("127.")


def interface_of(address: str) -> str | None:
    """The interface that has `address`; None if none is found, as on systems but Linux."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # It has no address.
                request = struct.pack("256s", name.encode())
                answer = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None
