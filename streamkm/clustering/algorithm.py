"""What an algorithm is: when and how centroids move, given batches of rows.

A new algorithm is one class with the members of `Algorithm`, one line in
`streamkm.tables.ALGORITHMS` (its defaults, and whether a closing pass follows it) and one
subclass of the contract test in ``tests/clustering/contract.py``. The engine streams the rows,
saves and resumes; an algorithm only changes the state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from streamkm.clustering.lloyd import Lloyd
from streamkm.tables import ALGORITHMS, load_class

if TYPE_CHECKING:
    from streamkm.clustering.batch import Batch
    from streamkm.clustering.state import KMeansState
    from streamkm.config import ResolvedFitConfig
    from streamkm.kernels import Kernel

__all__ = ["Algorithm", "closing_algorithm", "make_algorithm"]


class Algorithm(Protocol):
    """Updates a state, in place, from the batches of one pass after the other.

    Everything that decides what comes next is in the state: a run that is resumed makes a
    new object. A state that has stopped is left as it is, to the bit.
    """

    @property
    def kernel(self) -> Kernel:
        """Who does the arithmetic."""

    @classmethod
    def make(cls, kernel: Kernel, config: ResolvedFitConfig, n_rows: int) -> Self:
        """The algorithm that `config` asks for, on an array of `n_rows` rows."""

    def begin_epoch_(self, state: KMeansState) -> None:
        """Called before the first batch of an epoch; not when a run is resumed within one."""

    def update_(self, state: KMeansState, batch: Batch, *, epoch: int, index: int) -> None:
        """Take in `batch`, the `index`-th of `epoch`.

        Draws depend on the seed, `epoch` and `index` alone. No value is asked of the device.
        """

    def finish_epoch_(self, state: KMeansState) -> None:
        """Called after the last batch of an epoch."""


def make_algorithm(kernel: Kernel, config: ResolvedFitConfig, n_rows: int) -> Algorithm:
    """The algorithm that ``--algorithm`` names, on an array of `n_rows` rows."""
    made: Algorithm = load_class(ALGORITHMS[config.algorithm].home).make(kernel, config, n_rows)
    return made


def closing_algorithm(kernel: Kernel, config: ResolvedFitConfig) -> Algorithm:
    """What closes a run after whatever algorithm: passes of Lloyd's that come to no verdict."""
    return Lloyd(kernel, config.seed, spherical=config.metric == "cosine", closing=True)
