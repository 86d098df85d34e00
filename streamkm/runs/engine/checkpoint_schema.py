"""The tensors that a checkpoint must hold: those that settings, data and cursor demand, no others.

A checksum proves that a file is as it was written, not that this run could have written it.
Names, shapes and dtypes are compared before any tensor is used. A checkpoint that does not fit
counts as damaged, and the one before it is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from streamkm.clustering.scaling import RunningMoments
from streamkm.clustering.seeding.plan import CANDIDATES_PER_CLUSTER
from streamkm.clustering.sizing import GATHERING, initial_sizes
from streamkm.clustering.state import initial_state
from streamkm.kernels import LEAST_GRADE, add_graded_
from streamkm.runs.engine.snapshot import Cursor
from streamkm.runs.storage.checkpoint import FORMAT

if TYPE_CHECKING:
    from typing import TypeAlias

    from streamkm.runs.planning.fit_plan import FitPlan
    from streamkm.runs.storage.checkpoint import Checkpoint

__all__ = ["check_checkpoint"]

#: The dtype and shape of a tensor by its name. A letter stands for a number of rows that only
#: the data decides; it is the same in all tensors of a checkpoint.
Demand: TypeAlias = "dict[str, tuple[str, tuple[int | str, ...]]]"

#: Tensors here have a shape, but no numbers: they take no memory.
_META = torch.device("meta")
#: Groups of tensors by phase; those of ``seed`` depend on the stage.
_GROUPS = {
    "scale": {"moments"},
    "rounds": {"moments", "scaling", "candidates"},
    "train": {"moments", "scaling", "state"},
    "close": {"moments", "scaling", "state"},
    "sizes": {"moments", "scaling", "state", "sizes"},
}


def check_checkpoint(checkpoint: Checkpoint, plan: FitPlan) -> None:
    """Check that the run of `plan` could have saved `checkpoint`.

    A checkpoint of an older version gets what that did not have (see `_add_newer_`).

    Raises
    ------
    KeyError, TypeError, ValueError
        If it could not.
    """
    _add_newer_(checkpoint, plan)
    cursor = _cursor(checkpoint, plan)
    must, may = _groups(cursor, plan)
    found = {name.partition(".")[0] for name in checkpoint.tensors}
    if not must <= found <= must | may:
        raise ValueError(f"it holds {', '.join(sorted(found))} in phase {cursor.phase}")
    demands = {
        "moments": _as_demand(RunningMoments.empty(plan.source.spec.n_features, _META).tensors()),
        "scaling": _scaling(plan),
        "candidates": _candidates(plan),
        "seeding": _seeding(cursor, plan) if "seeding" in found else {},
        "state": _state(plan),
        "sizes": _sizes(plan),
    }
    expected = {f"{group}.{name}": at for group in found for name, at in demands[group].items()}
    _compare(checkpoint.tensors, expected, plan)
    if not all(isinstance(value, str) for value in checkpoint.manifest["environment"].values()):
        raise TypeError("its environment holds a value that is no text")


def _add_newer_(checkpoint: Checkpoint, plan: FitPlan) -> None:
    """Add what an older version did not save.

    From before clusters could forget rows, the mass is that of all rows; from before epochs were
    compared, the inertia of the epoch before is not known; from before there were trees, there are
    no branches; from before rows were gathered to settle, none are. From before passes in sequence
    were cut into batches by blocks, a pass begins again.
    """
    tensors, cursor = checkpoint.tensors, checkpoint.manifest["cursor"]
    if "sizes.stage" in tensors and "sizes.rows_P" not in tensors:
        _add_gathered_(tensors, plan.config.k)
    counts_K, weights_K = tensors.get("state.counts_K"), tensors.get("state.weights_K")
    if counts_K is not None and weights_K is not None:
        whole_K = weights_K if weights_K.size else counts_K
        tensors.setdefault("state.mass_K", whole_K.astype("float64"))
        tensors.setdefault("state.former_inertia", np.array(np.nan))
        centroids_KD = tensors["state.centroids_KD"]
        tensors.setdefault("state.branches_JD", centroids_KD[:0])
        for name in ("state.listed_P", "state.n_listed_J"):
            tensors.setdefault(name, np.zeros(0, np.int64))
    if checkpoint.manifest["format"] == FORMAT:
        return
    if (sums_KD := tensors.get("state.sums_KD")) is not None and weights_K is not None:
        n_totals = 1 + weights_K.size
        tensors["state.pass_sums_LKD"] = np.zeros((2, *sums_KD.shape), np.int64)
        tensors["state.pass_grades_K"] = np.full(len(sums_KD), LEAST_GRADE)
        tensors["state.pass_totals_LT"] = np.zeros((2, n_totals), np.int64)
        tensors["state.pass_total_grades_T"] = np.full(n_totals, LEAST_GRADE)
    phase = cursor["phase"]
    if (counts_C := tensors.pop("candidates.counts_C", None)) is not None:
        masses_LC = torch.zeros((2, len(counts_C)), dtype=torch.int64)
        grades_C = torch.full((len(counts_C),), LEAST_GRADE)
        if phase == "rounds":
            tensors["candidates.keys_R"] = np.full_like(tensors["candidates.keys_R"], np.inf)
        else:
            add_graded_(masses_LC[..., None], grades_C, torch.from_numpy(counts_C)[:, None])
        tensors["candidates.masses_LC"] = masses_LC.numpy()
        tensors["candidates.grades_C"] = grades_C.numpy()
    if phase == "scale":
        n_features = len(tensors["moments.mean_D"])
        for name, tensor in RunningMoments.empty(n_features, torch.device("cpu")).tensors().items():
            tensors[f"moments.{name}"] = tensor.numpy()
    in_sequence = phase == "train" and plan.config.algorithm == "lloyd"
    if in_sequence or phase in ("scale", "rounds", "close"):
        cursor["batch"] = 0


def _add_gathered_(tensors: dict[str, np.ndarray], k: int) -> None:
    """Add the rows that are gathered, none, and count the stage of it among the stages."""
    for name, tensor in initial_sizes(k, torch.ones(()), torch.device("cpu")).tensors().items():
        tensors.setdefault(f"sizes.{name}", tensor.numpy())
    stage = tensors["sizes.stage"]
    tensors["sizes.stage"] = np.asarray(stage + (stage >= GATHERING))


def _compare(tensors: dict[str, np.ndarray], expected: Demand, plan: FitPlan) -> None:
    for name in sorted(expected.keys() - tensors.keys()):
        raise KeyError(name)
    for name in sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"it holds `{name}`, which this run does not have")
    candidates, rows = plan.seeding.candidate_rows, dict[str, int]()
    most = {"C": candidates, "S": max(plan.source.spec.n_rows, candidates)}
    for name, (dtype, shape) in sorted(expected.items()):
        found = tensors[name]
        for axis, size in enumerate(shape[: found.ndim]):
            if isinstance(size, str):
                rows.setdefault(size, min(found.shape[axis], most[size]))
        wanted = tuple(rows.get(size, size) if isinstance(size, str) else size for size in shape)
        if (found.dtype.name, found.shape) != (dtype, wanted):
            raise ValueError(
                f"`{name}` is {found.dtype} of shape {found.shape}, "
                f"this run's is {dtype} of shape {wanted}"
            )


def _cursor(checkpoint: Checkpoint, plan: FitPlan) -> Cursor:
    cursor = Cursor(**checkpoint.manifest["cursor"])
    most = {
        "seed": len(plan.seeding.stages(plan.config.init)) * plan.config.n_init,
        "train": plan.config.epochs,
    }
    epoch, batch = cursor.epoch, cursor.batch
    is_number = type(epoch) is int and type(batch) is int
    is_known = is_number and cursor.phase in (*_GROUPS, "seed")
    in_range = is_known and batch >= 0 and 0 <= epoch <= most.get(cursor.phase, epoch)
    if in_range and cursor.phase != "seed":
        in_range = batch <= plan.reading_of(cursor.phase).n_batches(epoch)
    if not in_range:
        raise ValueError(f"it stands at {cursor}, where this run never is")
    return cursor


def _groups(cursor: Cursor, plan: FitPlan) -> tuple[set[str], set[str]]:
    """Groups of tensors that a checkpoint at `cursor` must hold, and those that it may."""
    if cursor.phase != "seed":
        return _GROUPS[cursor.phase], set()
    before = {"scaling", "candidates"} if plan.seeding.candidate_rows else {"scaling"}
    if (cursor.epoch, cursor.batch) == (0, 0):
        # While the sample is drawn, before or after the rounds of k-means||.
        return {"moments"}, before
    return {"moments", "seeding", *before}, set()


def _scaling(plan: FitPlan) -> Demand:
    each_D = ("float64", (plan.source.spec.n_features,))
    return {"shift_D": each_D, "factor_D": each_D}


def _candidates(plan: FitPlan) -> Demand:
    dtype, n_features = _name(plan.dtype), plan.source.spec.n_features
    n_drawn = CANDIDATES_PER_CLUSTER * plan.config.k
    return {
        "rows_CD": (dtype, ("C", n_features)),
        "masses_LC": ("int64", (2, "C")),
        "grades_C": ("int64", ("C",)),
        "drawn_RD": (dtype, (n_drawn, n_features)),
        "keys_R": ("float64", (n_drawn,)),
    }


def _seeding(cursor: Cursor, plan: FitPlan) -> Demand:
    k, dtype = plan.config.k, _name(plan.dtype)
    centroids_KD = (dtype, (k, plan.source.spec.n_features))
    cost, each_S, index_S = ("float64", ()), (dtype, ("S",)), ("int64", ("S",))
    plus_plus: Demand = {"chosen_K": ("int64", (k,)), "closest_S": each_S}
    passes: Demand = {"centroids_KD": centroids_KD, "cost": cost}
    under_way: dict[str, Demand] = {
        "greedy": plus_plus,
        "batched": plus_plus,
        "breathing": passes
        | {
            "sq_distances_S": each_S,
            "label_S": index_S,
            "size": ("int64", ()),
            "n_refused": ("int64", ()),
        },
        "tree": {
            "centroids_KD": centroids_KD,
            "sums_KD": ("float64", centroids_KD[1]),
            "mass_K": ("float64", (k,)),
            "branch_K": ("int64", (k,)),
            "label_S": index_S,
            "closest_S": each_S,
        },
        "passes": passes,
        "final passes": passes,
    }
    kinds = plan.seeding.stages(plan.config.init)
    done, place = divmod(cursor.epoch, len(kinds))
    best: Demand = {"best_KD": centroids_KD, "best_cost": cost}
    held = best if done and plan.config.n_init > 1 else {}
    return held | (under_way[kinds[place]] if cursor.batch else {"centroids_KD": centroids_KD})


def _state(plan: FitPlan) -> Demand:
    shape = (plan.config.k, plan.source.spec.n_features)
    centroids_KD = torch.empty(shape, dtype=plan.dtype, device=_META)
    state = initial_state(
        centroids_KD, 0, weighted=plan.is_weighted, n_branches=plan.config.n_branches
    )
    return _as_demand(state.tensors())


def _sizes(plan: FitPlan) -> Demand:
    if not plan.config.is_bounded:
        return {}
    return _as_demand(initial_sizes(plan.config.k, torch.ones(()), _META).tensors())


def _as_demand(tensors: dict[str, torch.Tensor]) -> Demand:
    return {name: (_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}


def _name(dtype: torch.dtype) -> str:
    """The name that NumPy gives `dtype`."""
    return str(dtype).removeprefix("torch.")
