"""Reads what a run folder says of its run: settings, records, and the clusters found so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streamkm.clustering.scaling import Scaling
from streamkm.errors import RunError
from streamkm.runs.storage.checkpoint import load_checkpoint
from streamkm.runs.storage.metrics_file import read_metrics
from streamkm.runs.storage.model import load_model
from streamkm.runs.storage.model_file import MODEL
from streamkm.runs.storage.run_folder import feature_names, read_config, run_owner
from streamkm.sealed import DAMAGE, in_words

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.runs.storage.checkpoint import Checkpoint
    from streamkm.runs.storage.model import Model

__all__ = ["Clusters", "RunFacts", "read_run"]


@dataclass(frozen=True)
class Clusters:
    """K centroids and what is known of their clusters without a look at the rows."""

    centroids_KD: np.ndarray
    """In the scaled space, in the unit of reported distances, float32 or float64."""
    points_KD: np.ndarray
    """The same in the space of the input, float32."""
    sizes_K: np.ndarray
    """Rows of each cluster, int64."""
    masses_K: np.ndarray
    """The same, or the sums of their weights, float64."""
    means_KD: np.ndarray | None
    """Means of the rows that sizes count, in the scaled space; None if they are not known."""
    inertia: float | None
    """Of those rows about the centroids; None if it is not known exactly."""

    @property
    def k(self) -> int:
        """Number of clusters."""
        return len(self.centroids_KD)

    @property
    def n_features(self) -> int:
        """Number of features."""
        return int(self.centroids_KD.shape[1])


@dataclass(frozen=True)
class RunFacts:
    """All that a run folder holds for a report."""

    path: Path
    record: dict[str, Any]
    """The content of config.json."""
    metrics: list[dict[str, Any]]
    """Records of metrics.jsonl, empty if it is missing."""
    names: tuple[str, ...]
    """Names of the features; empty if they have none."""
    owner: str | None
    """The process that works on the run."""
    model: Model | None
    """None while the run is not finished."""
    clusters: Clusters | None
    """None before the first centroids."""
    stands: str
    """Where an unfinished run stands, a phrase; empty for a finished one."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the run."""
        settings: dict[str, Any] = self.record["fit"]
        return settings

    @property
    def k(self) -> int:
        """Number of clusters that the run was asked for."""
        return int(self.settings["k"])

    @property
    def n_rows(self) -> int:
        """Rows of the array."""
        return int(self.record["data"]["shape"][0])

    @property
    def n_features(self) -> int:
        """Features of the array."""
        return int(self.record["data"]["shape"][1])

    @property
    def sizes_are_exact(self) -> bool:
        """Whether sizes are those of one pass over all rows."""
        return self.clusters is not None and self.clusters.inertia is not None

    @property
    def sizes_are(self) -> str:
        """What the sizes in `clusters` count, a phrase."""
        if self.sizes_are_exact:
            return "rows of each cluster in the last pass"
        if self.model is None:
            return "rows of each cluster in the epoch under way, at the newest checkpoint"
        return "rows of each cluster as they came, all epochs counted (there was no closing pass)"


def read_run(path: Path) -> RunFacts:
    """The facts of the run in the folder `path`, finished or not.

    Raises
    ------
    RunError
        If `path` is no run, or its model or all of its checkpoints are damaged.
    """
    record = read_config(path)
    names, owner = feature_names(path), run_owner(path)
    # The records first: those of a run at work are then no newer than its checkpoint's successor.
    metrics = read_metrics(path)
    model, clusters, stands = None, None, ""
    if (path / MODEL).exists():
        model = load_model(path)
        clusters = _of_model(model)
        names = model.feature_names or names
    elif checkpoint := load_checkpoint(path / "checkpoints"):
        cursor = checkpoint.manifest["cursor"]
        stands = f"phase {cursor['phase']}, epoch {cursor['epoch']}, batch {cursor['batch']}"
        clusters = _of_checkpoint(checkpoint, record["fit"])
    else:
        stands = "no checkpoint yet"
    return RunFacts(path, record, metrics, names, owner, model, clusters, stands)


def _of_model(model: Model) -> Clusters:
    """The clusters of a finished run."""
    unit = model.scaling.unit
    is_weighted = len(model.weights_K) > 0
    mass_K = (model.weights_K if is_weighted else model.counts_K).double().numpy()
    means_KD = None
    if model.inertia is not None:
        means_KD = model.sums_KD.numpy() / np.where(mass_K > 0, mass_K, 1)[:, None] / unit
    return Clusters(
        centroids_KD=(model.centroids_KD / unit).numpy(),
        points_KD=model.centroids,
        sizes_K=model.counts_K.numpy(),
        masses_K=mass_K,
        means_KD=means_KD,
        inertia=model.inertia,
    )


def _of_checkpoint(checkpoint: Checkpoint, settings: dict[str, Any]) -> Clusters | None:
    """The clusters of a run under way; None before training."""
    tensors = checkpoint.tensors
    if "state.centroids_KD" not in tensors:
        return None
    try:
        normalize = settings["metric"] == "cosine" or settings["scale"] == "l2"
        scaling = Scaling(
            torch.from_numpy(tensors["scaling.shift_D"]),
            torch.from_numpy(tensors["scaling.factor_D"]),
            normalize=normalize,
            keeps_units=settings["scale"] == "none",
        )
        centroids_KD = torch.from_numpy(tensors["state.centroids_KD"])
        sizes_K = tensors["state.epoch_counts_K"]
        if len(sizes_K) != len(centroids_KD):
            raise ValueError(f"it has {len(centroids_KD)} centroids and {len(sizes_K)} sizes")
        return Clusters(
            centroids_KD=(centroids_KD / scaling.unit).numpy(),
            points_KD=scaling.inverse(centroids_KD).float().numpy(),
            sizes_K=sizes_K,
            masses_K=sizes_K.astype(np.float64),
            means_KD=None,
            inertia=None,
        )
    except DAMAGE as error:
        raise RunError(
            f"{checkpoint.path} is no checkpoint of a run: {in_words(error)}; delete it, so that "
            "the one before it is taken"
        ) from error
