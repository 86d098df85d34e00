"""The phase in which sizes are brought within bounds: its state, and what is said of its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamkm.bounds import Bounds
from streamkm.clustering.sizes import NEVER
from streamkm.clustering.sizing import Sizing, initial_sizes
from streamkm.runs.engine.summary import bounds_line
from streamkm.text import counted

if TYPE_CHECKING:
    from streamkm.clustering.sizing import SizeState
    from streamkm.distributed.world import World
    from streamkm.kernels import MadeKernel
    from streamkm.runs.engine.snapshot import Snapshot
    from streamkm.runs.planning.fit_plan import FitPlan

__all__ = ["begun_sizes", "size_figures", "size_line", "sizing"]


def begun_sizes(now: Snapshot, plan: FitPlan) -> SizeState:
    """The state before the first pass of the phase, after the training of `now`."""
    assert now.state is not None
    mass = now.state.epoch_mass
    return initial_sizes(plan.config.k, now.state.inertia / mass.clamp_min(1), plan.device)


def sizing(now: Snapshot, plan: FitPlan, kernel: MadeKernel, world: World) -> Sizing:
    """The algorithm of the next pass."""
    assert now.sizes is not None
    return Sizing.of(
        kernel, plan.config, now.sizes, plan.source.name, world, plan.weight_unit or 1.0
    )


def size_figures(now: Snapshot, plan: FitPlan) -> dict[str, Any]:
    """What a model says of its sizes; empty if they have no bounds.

    ``fingerprint`` names the rows that closings are about; ``free_inertia`` is that without
    bounds, at the centroids that training has found.
    """
    sizes = now.sizes
    if sizes is None or now.scaling is None:
        return {}
    n_rows = int(sizes.counts_K.sum())
    bounds = Bounds.of(plan.config, n_rows)
    return {
        "sizes": {
            "fingerprint": plan.source.fingerprint(),
            "least": bounds.least,
            "most": bounds.most,
            "rows": n_rows,
            "free_inertia": float(sizes.free_inertia) / now.scaling.unit**2,
            "given_rows": int(sizes.n_given),
            "closed": int((sizes.closes_K != NEVER).sum()),
            "passes": int(sizes.n_passes) + 1,
        }
    }


def size_line(now: Snapshot, plan: FitPlan) -> str:
    """What the bounds have cost, a phrase."""
    found = size_figures(now, plan)["sizes"]
    assert now.sizes is not None
    sizes_K = now.sizes.counts_K
    return (
        f"sizes: {int(sizes_K.min()):,} to {int(sizes_K.max()):,} rows, within "
        f"{bounds_line(found, now.settled_inertia())}; {counted(found['passes'], 'pass')}, and "
        f"{counted(found['given_rows'], 'row')} of full clusters went to the next"
    )
