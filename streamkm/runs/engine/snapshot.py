"""The snapshot of a fit: where it stands, and every tensor that the next attempt needs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.clustering.seeding.kmeans_parallel import Candidates
from streamkm.clustering.sizing import SizeState, Sizing
from streamkm.clustering.state import KMeansState
from streamkm.runs.storage.checkpoint import Checkpoint
from streamkm.runs.storage.handed import handed_round

if TYPE_CHECKING:
    import numpy as np

    from streamkm.clustering.algorithm import Algorithm
    from streamkm.config import FitConfig
    from streamkm.distributed.world import World
    from streamkm.runs.planning.fit_plan import FitPlan

__all__ = ["Cursor", "Snapshot", "of_first"]


@dataclass(frozen=True)
class Cursor:
    """How far a run has come: batches of an epoch of a phase that were applied."""

    phase: str
    """``scale``, ``rounds`` (of k-means||), ``seed``, ``train``, ``close`` or ``sizes``."""
    epoch: int = 0
    """From 0, but in ``close`` from ``--epochs`` on, and in ``sizes`` after that. In
    ``seed``: stages that are done."""
    batch: int = 0
    """In ``seed``: steps of the next stage that are done."""

    def __str__(self) -> str:
        return f"{self.phase}, epoch {self.epoch}, batch {self.batch}"


@dataclass
class Snapshot:
    """A fit as it stands between two batches."""

    cursor: Cursor
    moments: RunningMoments
    step: int = 0
    """Batches applied in all phases; a step of seeding counts as one, and so does its end."""
    scaling: Scaling | None = None
    candidates: Candidates | None = None
    """Found by the rounds of k-means||, while seeding needs them."""
    seeding: dict[str, torch.Tensor] = field(default_factory=dict)
    """What the stages of seeding have found, and the tensors of the stage under way."""
    state: KMeansState | None = None
    sizes: SizeState | None = None
    """While sizes are brought within bounds, and after."""

    def on_device(self) -> dict[str, torch.Tensor]:
        """Every tensor by group and name, as the fit uses it."""
        groups = {"moments": self.moments.tensors(), "seeding": self.seeding}
        if self.scaling is not None:
            groups["scaling"] = self.scaling.tensors()
        if self.candidates is not None:
            groups["candidates"] = self.candidates.tensors()
        if self.state is not None:
            groups["state"] = self.state.tensors()
        if self.sizes is not None:
            groups["sizes"] = self.sizes.tensors()
        return {
            f"{group}.{name}": tensor
            for group, members in groups.items()
            for name, tensor in members.items()
        }

    def tensors(self) -> dict[str, np.ndarray]:
        """Every tensor by group and name, on the host."""
        here = self.on_device().items()
        return {name: tensor.cpu().contiguous().numpy() for name, tensor in here}

    def gathered(self, world: World, algorithm: Algorithm | None) -> Snapshot:
        """The fit as one process alone would have it; all processes of `world` call it."""
        state, candidates, sizes = self.state, self.candidates, self.sizes
        if state is not None and algorithm is not None:
            state = algorithm.gathered(state)
        if isinstance(algorithm, Sizing):
            sizes = algorithm.gathered_sizes()
        if candidates is not None and self.cursor.phase == "rounds":
            candidates = candidates.gathered(world)
        return replace(self, state=state, candidates=candidates, sizes=sizes)

    @classmethod
    def beginning(cls, plan: FitPlan) -> Snapshot:
        """A fit before its first batch."""
        moments = RunningMoments.empty(plan.source.spec.n_features, plan.device)
        scaling = None if plan.earlier is None else plan.earlier.scaling.on(plan.device)
        return cls(Cursor("scale" if plan.measures_scale else "seed"), moments, scaling=scaling)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, device: torch.device, config: FitConfig
    ) -> Snapshot:
        """The snapshot that `checkpoint` was saved from, on `device`.

        The checkpoint must have passed `engine.checkpoint_schema.check_checkpoint`.
        """
        names = ("moments", "scaling", "candidates", "seeding", "state", "sizes")
        groups: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
        for key, array in checkpoint.tensors.items():
            group, name = key.split(".")
            groups[group][name] = torch.from_numpy(array).to(device)
        return cls(
            cursor=Cursor(**checkpoint.manifest["cursor"]),
            moments=RunningMoments(**groups["moments"]),
            step=checkpoint.step,
            scaling=Scaling(
                **groups["scaling"],
                normalize=config.normalizes,
                keeps_units=config.scale == "none",
            )
            if groups["scaling"]
            else None,
            candidates=Candidates(**groups["candidates"]) if groups["candidates"] else None,
            seeding=groups["seeding"],
            state=KMeansState(**groups["state"]) if groups["state"] else None,
            sizes=SizeState(**groups["sizes"]) if groups["sizes"] else None,
        )

    def manifest(self) -> dict[str, Any]:
        """Where the run stands, for the checkpoint's manifest."""
        return {"cursor": asdict(self.cursor)}

    def settled_inertia(self) -> float | None:
        """`KMeansState.settled_inertia`, unscaled; None before a full pass ended with a move."""
        inertia = float(self.state.settled_inertia) if self.state else math.nan
        return None if math.isnan(inertia) else inertia / self._sq_unit

    @property
    def _sq_unit(self) -> float:
        return 1.0 if self.scaling is None else self.scaling.unit**2

    def figures(self) -> dict[str, Any]:
        """Scalars of the state, for people and metrics.jsonl; waits for the device."""
        if self.state is None:
            return {"epoch": self.cursor.epoch}
        state, sq_unit = self.state, self._sq_unit
        named = {
            "step": state.n_steps,
            "stop": state.stop,
            "reseeded": state.n_reseeded,
            "dropped": state.n_dropped,
            "empty": (state.epoch_counts_K == 0).sum(),
            "inertia": state.inertia / sq_unit,
            "inertia_per_row": state.inertia / sq_unit / state.epoch_mass,
            "batch_inertia_per_row": state.batch_inertia / sq_unit,
            "smoothed_inertia": state.smoothed_inertia / sq_unit,
            "shift": state.shift / sq_unit,
        }
        # One copy for all: each by itself would wait for the device.
        values = torch.stack([tensor.double() for tensor in named.values()]).tolist()
        figures: dict[str, Any] = {"epoch": self.cursor.epoch}
        for (name, tensor), value in zip(named.items(), values, strict=True):
            if not tensor.is_floating_point():
                figures[name] = int(value)
            else:  # JSON has no NaN.
                figures[name] = value if math.isfinite(value) else None
        return figures


def of_first(checkpoint: Checkpoint | None, world: World) -> Checkpoint | None:
    """The checkpoint that process 0 has read, in all processes of `world`."""
    about, arrays = None, {}
    if checkpoint is not None:
        about = [str(checkpoint.path), checkpoint.step, checkpoint.manifest]
        arrays = checkpoint.tensors
    found, arrays = handed_round(about, arrays, world)
    if found is None:
        return None
    path, step, manifest = found
    return Checkpoint(Path(path), step, arrays, manifest)
