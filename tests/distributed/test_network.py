"""Which network processes of several machines use. Two real ones: in test_machines.py."""

from __future__ import annotations

import os

import pytest

from streamkm.distributed.network import VARIABLE, address_towards, gloo_towards, interface_of

HOME = "127.0.0.1"


def chosen(mine: str, others: list[str]) -> str | None:
    with gloo_towards(mine, others):
        return os.environ.get(VARIABLE)


def test_the_address_towards_this_machine():
    assert address_towards(HOME) == HOME
    assert address_towards("localhost") == HOME
    assert address_towards("no-such-machine.invalid") == ""


@pytest.fixture
def interfaces(monkeypatch):
    """Networks of a machine, and the one that leads to 10.0.1.x."""
    monkeypatch.delenv(VARIABLE, raising=False)
    found = {"10.0.0.5": "eth0", "10.0.1.5": "ib0", HOME: "lo"}
    monkeypatch.setattr("streamkm.distributed.network.interface_of", found.get)
    monkeypatch.setattr(
        "streamkm.distributed.network.address_towards",
        lambda machine: "10.0.1.5" if machine.startswith("10.0.1.") else "",
    )


def test_the_network_of_the_store_is_used(interfaces):
    assert chosen("10.0.0.5", [HOME, "10.0.0.5"]) == "eth0"
    # The store is here, and the others come over that network.
    assert chosen(HOME, [HOME, "10.0.1.7"]) == "ib0"
    assert VARIABLE not in os.environ


# Breaks when a choice of the user's is lost, or one machine depends on a network.
def test_what_need_not_be_chosen_stays(interfaces, monkeypatch):
    assert chosen(HOME, [HOME, HOME]) is None
    assert chosen("", ["", ""]) is None
    assert chosen("10.0.2.5", ["10.0.2.6"]) is None  # of no interface
    assert chosen(HOME, ["10.0.2.6"]) is None  # no way there
    monkeypatch.setenv(VARIABLE, "eth7")
    assert chosen("10.0.0.5", [HOME, "10.0.0.5"]) == "eth7"
    assert os.environ[VARIABLE] == "eth7"


def test_the_interface_of_an_address_is_found():
    assert interface_of(HOME) == "lo"
    assert interface_of("192.0.2.1") is None
