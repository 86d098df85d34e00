"""One update of a model by rows that the caller brings, as ``partial_fit`` makes it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from streamkm.clustering.lloyd import Lloyd
from streamkm.clustering.state import initial_state
from streamkm.config import largest_batch_rows
from streamkm.runs.engine.labelling import Labelling
from streamkm.runs.reporting.bad_rows import non_finite_error

if TYPE_CHECKING:
    from streamkm.config import ExecutionConfig
    from streamkm.runs.storage.model import Model
    from streamkm.sources import Source, Weights

__all__ = ["update_once"]


def update_once(
    model: Model,
    source: Source,
    execution: ExecutionConfig,
    *,
    nan: str,
    weights: Weights | None = None,
) -> Model:
    """`model` after one update by all rows of `source`, in however many batches they come.

    Every row is assigned to the centroids as they are. Then each centroid moves to the mean
    of all rows that it ever got. An empty cluster is not reseeded: its rows may still
    come, and only the caller knows when all have been seen.

    Raises
    ------
    NonFiniteError
        If a row holds NaN or infinity and `nan` is ``error``.
    """
    spec = source.spec
    batch_rows = largest_batch_rows(spec.n_rows, spec.n_features)
    labelling = Labelling(model, source, execution, weights, batch_rows)
    spherical = model.settings["metric"] == "cosine"
    step = model.figures["n_steps"]
    # A state of these rows alone; the sums and counts so far are added once all are assigned.
    state = initial_state(labelling.centroids_KD.clone(), tolerance=0, weighted=weights is not None)
    # Its draws for empty clusters, which the seed decides, are not used.
    gather = Lloyd(labelling.kernel, seed=0, spherical=spherical)
    gather.begin_epoch_(state)
    with labelling.prepared() as batches:
        for index, (_, batch) in enumerate(batches):
            gather.update_(state, batch, epoch=step, index=index)
    gather.gather_(state)
    if nan == "error" and int(state.n_dropped):
        raise non_finite_error(source, int(state.n_dropped))
    touched_K = state.counts_K > 0
    state.sums_KD += model.sums_KD.to(labelling.device)
    if state.is_weighted or len(model.weights_K):
        # A row without a weight counts as one of weight 1.
        before_K = model.weights_K if len(model.weights_K) else model.counts_K
        state.weights_K = state.whole_mass_K.double() + before_K.to(labelling.device)
    state.counts_K += model.counts_K.to(labelling.device)
    state.mass_K.copy_(state.whole_mass_K)
    state.move_(touched_K, spherical=spherical)
    inertia = float(state.inertia) / model.scaling.unit**2
    return replace(
        model,
        centroids_KD=state.centroids_KD,
        counts_K=state.counts_K,
        sums_KD=state.sums_KD,
        weights_K=state.weights_K,
        inertia=None,
        figures={**model.figures, "n_steps": step + 1, "epoch_inertia": inertia},
    ).on_host()
