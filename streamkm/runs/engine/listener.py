"""What a caller may want to hear of a run while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from streamkm.clustering.state import KMeansState

__all__ = ["Listener"]


class Listener(Protocol):
    """Hears of every step and pass of training; reading a figure of `state` waits for the device.

    `unit` is the length in the scaled space of a distance of 1: squared distances are divided
    by its square.
    """

    def after_seeding(self) -> None:
        """The first centroids are there."""

    def after_step(self, state: KMeansState, unit: float, n_steps: int) -> None:
        """A batch was applied; there are `n_steps` at most."""

    def after_pass(self, state: KMeansState, unit: float, epoch: int) -> None:
        """Pass number `epoch`, from 0 on, has ended."""
