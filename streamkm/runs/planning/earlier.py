"""The run that a fit goes on from, checked against the new rows and settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamkm.errors import ConfigError, Option

if TYPE_CHECKING:
    import torch

    from streamkm.clustering.scaling import Scaling
    from streamkm.config import FitConfig
    from streamkm.sources.base import ArraySpec

__all__ = ["Earlier"]


@dataclass(frozen=True)
class Earlier:
    """What a finished run leaves for one that goes on from it; see `Model` for the tensors."""

    centroids_KD: torch.Tensor
    sums_KD: torch.Tensor
    counts_K: torch.Tensor
    weights_K: torch.Tensor
    scaling: Scaling
    metric: str
    scale: str
    algorithm: str = "minibatch"

    def notes(self, config: FitConfig) -> list[str]:
        """What the log has to say of a run that another algorithm made."""
        if self.algorithm == config.algorithm:
            return []
        is_of = f"the run to go on from is one of algorithm {self.algorithm}"
        return [f"{is_of}: its centroids go on as those of {config.algorithm}"]

    def check(self, config: FitConfig, spec: ArraySpec, name: str) -> None:
        """Refuse rows or settings that do not fit; `spec` is of the new rows, `name` their source.

        Raises
        ------
        ConfigError
            If they have another number of features or clusters, another metric or scaling.
        """
        run, (k, n_features) = Option("from_run", config.from_run), self.centroids_KD.shape
        if n_features != spec.n_features:
            raise ConfigError(
                run,
                f" has centroids of {n_features} features, {name} has {spec.n_features}: they "
                "must agree; name rows of the same features in the same order",
            )
        for setting, before, now in (
            ("k", k, config.k),
            ("metric", self.metric, config.metric),
            ("scale", self.scale, config.scale),
        ):
            if before != now:
                raise ConfigError(
                    run, " was made with ", Option(setting, before), ", this fit asks for ",
                    Option(setting, now), "; leave that out, or fit anew",
                )  # fmt: skip
