"""The seam for kernels that make whole passes of Lloyd's algorithm over rows in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch

    from streamkm.kernels.rows import Rows

__all__ = ["BreathRules", "Breathed", "PassKernel", "PassedOver", "Passes"]


class PassedOver(NamedTuple):
    """What passes of Lloyd's algorithm over rows in memory found."""

    n_made: int
    """Number of passes."""
    is_full: bool
    """Whether every cluster has mass."""
    is_worth_it: bool
    """Whether the last pass gained enough for another."""
    labels_B: torch.Tensor
    """As in `Assignment`, before the last pass."""
    sq_distances_B: torch.Tensor
    """As in `Assignment`; if exact ones were asked for, without cancellation."""
    mass_K: torch.Tensor
    """Weights of the rows of each cluster, float64."""
    after_KD: torch.Tensor
    """The centroids after the last pass; those of clusters of mass 0 did not move."""
    gains_K: torch.Tensor
    """How much less the squared distances of the rows of each cluster are to these, float64."""


class BreathRules(NamedTuple):
    """How breaths are taken; see `streamkm.clustering.seeding.breathing`."""

    n_passes_in: int
    """Passes with the added centroids."""
    n_passes_out: int
    """Passes after as many were removed, with exact distances in the last."""
    step: int
    """Every `step`-th row of a cluster is looked at for those around a drawn one."""
    most_around: int
    """Rows around a drawn one that it is averaged with."""
    slack: float
    """Rows are as near as another up to this multiple of its squared distance."""
    settled: float
    """Breaths end if the cheapest merger costs more than this multiple of the costliest cluster."""
    tried: int
    """They end so only after this number of breaths in a row that were not kept."""
    blur: float
    """Power of the exponential variables that costs are multiplied by, after a breath that was not
    kept."""
    least_share: float
    """A breath is kept if it lowers the cost by more than this share."""
    shrunk: float
    """Size of a breath, as a share of that of the one before if that was not kept."""
    patience: int
    """Breaths end after this number in a row that were not kept."""


class Breathed(NamedTuple):
    """What breaths have made of K centroids."""

    n_taken: int
    """Fewer than asked for, or 0, where the next one cannot be taken in one call with others: it
    would not gain, or leaves a cluster without a row; or if patience has ended."""
    size: int
    """Centroids that the next breath adds."""
    n_refused: int
    """Breaths in a row that were not kept."""
    is_kept: bool
    """Whether any was kept. If none was, `gains_K` means nothing."""
    centroids_KD: torch.Tensor
    labels_B: torch.Tensor
    """Nearest centroid of each row before the last pass."""
    sq_distances_B: torch.Tensor
    """Squared distances to them."""
    gains_K: torch.Tensor
    """As in `PassedOver`."""


class PassKernel(Protocol):
    """A kernel that makes several passes of Lloyd's algorithm over rows in memory in one call."""

    def passes_over(
        self,
        rows: Rows,
        weights_B: torch.Tensor | None,
        unit: torch.Tensor,
        *,
        spherical: bool,
    ) -> Passes:
        """What makes passes over `rows`, which must not change meanwhile.

        Parameters
        ----------
        rows : Rows
            Any number of rows, none left out; those of weight 0 have the share 0.
        weights_B : float64 Tensor of shape (B,), or None
            Weights of the rows; None for 1.
        unit : float64 Tensor of shape ()
            By which weights are divided to give shares.
        spherical : bool
            Whether centroids move to the directions of the sums, not to the means.
        """


class Passes(Protocol):
    """Makes passes over the same rows again and again, by one kernel."""

    def make(
        self,
        centroids_KD: torch.Tensor,
        n_passes: int,
        *,
        exact: bool,
        cost_before: float = 0.0,
        least_share: float = -1.0,
    ) -> PassedOver:
        """Make `n_passes` passes, or fewer if one finds a cluster of mass 0, which stays so.

        Or if one is not worth another: if the cost of the centroids that it begins from is not
        lower than that of those before by more than a share of it.

        They give the bits that `Kernel.step` and `means_of` give one after the other.

        Parameters
        ----------
        centroids_KD : Tensor of shape (K, D)
        n_passes : int
            At least 1.
        exact : bool
            Whether distances of the last of `n_passes` are sums of squared differences.
        cost_before : float
            Cost of the centroids before `centroids_KD`.
        least_share : float
            The share; below 0 passes go on whatever they gain.
        """

    def breathe(
        self,
        centroids_KD: torch.Tensor,
        labels_B: torch.Tensor,
        sq_distances_B: torch.Tensor,
        cost: float,
        uniform_MU: torch.Tensor,
        rules: BreathRules,
        *,
        size: int,
        n_refused: int,
    ) -> Breathed:
        """Take M breaths, or fewer; not if centroids are directions.

        Parameters
        ----------
        centroids_KD : Tensor of shape (K, D)
        labels_B, sq_distances_B : Tensor of shape (B,)
            The nearest of them, int64, and squared distances to them.
        cost : float
            The cost to lower.
        uniform_MU : float64 Tensor of shape (M, B + K + size)
            Numbers from 0 to 1. The first B of each breath draw rows. The others blur the costs of
            mergers, and mean nothing in a breath after one that was kept.
        rules : BreathRules
        size : int
            Centroids that the first breath adds, at least 1.
        n_refused : int
            Breaths in a row before it that were not kept.
        """
