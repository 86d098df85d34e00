"""The seam for algorithms: when and how centroids move, given batches of rows.

A new algorithm is one class with the members of `Algorithm`, one line in
`streamkm.tables.ALGORITHMS` (its defaults, and whether a closing pass follows it) and one
subclass of the contract test in ``tests/clustering/contract.py``. The engine streams the rows,
saves and resumes; an algorithm only changes the state.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, Self

from streamkm.clustering.branches import BranchKernel
from streamkm.clustering.growing import Growing
from streamkm.clustering.lloyd import Lloyd
from streamkm.clustering.state import STOP_REASONS
from streamkm.clustering.tree import ClosingTree
from streamkm.distributed.world import ALONE
from streamkm.tables import ALGORITHMS, load_class

if TYPE_CHECKING:
    from streamkm.clustering.batch import Batch
    from streamkm.clustering.carried import CarriedRows
    from streamkm.clustering.state import KMeansState
    from streamkm.config import ResolvedFitConfig
    from streamkm.distributed.world import World
    from streamkm.kernels import MadeKernel

__all__ = ["Algorithm", "closing_algorithm", "make_algorithm", "stop_reason"]


class Algorithm(Protocol):
    """Updates a state, in place, from the batches of each pass.

    All that decides the next step is in the state: a resumed run makes a new object. If the
    state stops within an epoch, the rest of the epoch leaves it as it is, to the bit: the host
    may learn of the stop only at the end.
    """

    @property
    def kernel(self) -> MadeKernel:
        """The kernel that does the arithmetic."""

    @classmethod
    def make(
        cls, kernel: MadeKernel, config: ResolvedFitConfig, n_rows: int,
        world: World = ALONE, weight_unit: float = 1.0,
    ) -> Self:  # fmt: skip
        """The algorithm that `config` asks for, on an array of `n_rows` rows.

        `weight_unit` is a power of two above every weight.

        If `world` has several processes, each brings its rows of every batch, or none. After
        `finish_epoch_` the state is the same in all, and the same as that of one process alone.
        """

    def begin_epoch_(self, state: KMeansState) -> None:
        """Begin an epoch: reset what it gathers. Not called by a run resumed within one."""

    def update_(self, state: KMeansState, batch: Batch, *, epoch: int, index: int) -> None:
        """Update the state from `batch`, which is number `index` of `epoch`.

        Draws depend on the seed, `epoch` and `index` alone. No value is read back from a GPU.
        """

    def gathered(self, state: KMeansState) -> KMeansState:
        """The state within an epoch as one process alone would have it; `state` stays as it is.

        A collective: every process of the world calls it after the same batch.
        """

    def keep_own_(self, state: KMeansState) -> None:
        """Of a `gathered` state that each process has, leave to each what it shall bring."""

    def finish_epoch_(self, state: KMeansState) -> None:
        """Update the state after the last batch of an epoch."""


def make_algorithm(
    kernel: MadeKernel, config: ResolvedFitConfig, n_rows: int,
    world: World = ALONE, weight_unit: float = 1.0, carried: CarriedRows | None = None,
) -> Algorithm:  # fmt: skip
    """The algorithm that ``--algorithm`` names, or `Growing`; see `Algorithm.make`.

    `carried` is for Lloyd's, whose passes leave something in it for the next ones.
    """
    grows = config.from_run is not None
    home = Growing if grows else load_class(ALGORITHMS[config.algorithm].home)
    made: Algorithm = home.make(kernel, config, n_rows, world, weight_unit)
    return replace(made, carried=carried) if isinstance(made, Lloyd) else made


def stop_reason(code: int, algorithm: str, epochs: int) -> str:
    """Why training ended: the words for the `code` of a state, or that all `epochs` are done."""
    all_done = f"all epochs are done ({epochs:,})"
    if not ALGORITHMS[algorithm].closes:
        all_done += ", and centroids still move"
    return STOP_REASONS.get(code, all_done)


def closing_algorithm(
    kernel: MadeKernel, config: ResolvedFitConfig, world: World = ALONE, weight_unit: float = 1.0
) -> Algorithm:
    """Lloyd's algorithm for the closing passes of every run; it never stops the state.

    Those of a tree search by its branches too.
    """
    spherical = config.metric == "cosine"
    kind = Lloyd
    if config.n_branches:
        kind, kernel = ClosingTree, BranchKernel(kernel, config.batch_rows)
    return kind(kernel, config.seed, spherical, closing=True, world=world, weight_unit=weight_unit)
