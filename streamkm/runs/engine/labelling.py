"""Reads an array in order and assigns every row: the loop behind all uses of a model."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streamkm.clustering.assignment import nearest, nearest_several, nearest_two, sums_by_label
from streamkm.clustering.branch_plan import LISTS_PER_SEARCHED
from streamkm.clustering.branches import BranchKernel
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import compute_dtype
from streamkm.clustering.size_plan import priced_bytes
from streamkm.clustering.sizes import PricedKernel, SizeRule, bounded_nearest
from streamkm.config import default_branches, largest_batch_rows
from streamkm.devices import is_host, resolve_device, sharing
from streamkm.distributed.world import ALONE
from streamkm.errors import ConfigError, MemoryBudgetError
from streamkm.kernels import (
    KernelRequest,
    cores_for_kernels,
    kernel_notes,
    make_kernel,
    nearest_bytes,
    sq_distances_to,
)
from streamkm.runs.engine.labelled import EvaluatedBatch, LabelledBatch, LookedAt
from streamkm.runs.engine.labelling_checks import check_search, kernel_for, type_notes_of
from streamkm.runs.planning.device_memory import plan_device_memory
from streamkm.runs.planning.environment import describe_kernel
from streamkm.runs.planning.memory import plan_memory, predict_bytes
from streamkm.sources.names import in_order
from streamkm.stream.pipeline import open_slots, stream
from streamkm.stream.plan import WINDOW_BYTES, plan_reading
from streamkm.stream.stages import StageTimes
from streamkm.stream.transfer import as_stored_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamkm.clustering.batch import Batch
    from streamkm.clustering.carried import CarriedRows
    from streamkm.config import ExecutionConfig
    from streamkm.distributed.world import World
    from streamkm.kernels import Assignment, MadeKernel
    from streamkm.runs.planning.memory import MemoryPlan
    from streamkm.runs.storage.model import Model
    from streamkm.sources.base import ArraySpec, Source
    from streamkm.sources.weights import Weights
    from streamkm.stream.plan import Place, Window
    from streamkm.stream.seat import Seat
    from streamkm.stream.slots import HostSlots

__all__ = ["Labelling", "label_dtype", "plan_labelling"]

#: From this number of clusters on, labels are int64.
INT64_CLUSTERS = 2**31
#: Bytes of a row that travel to who writes it, at most, for each of its nearest centroids: a label
#: and a distance, and for a second table a distance.
SENT_BYTES = 16
#: Rows that a fast search is checked on, about, in all batches and in each at least: enough to know
#: the share within a per cent, few enough to take less time than the search.
LOOKED_AT_ROWS, LEAST_LOOKED_AT_ROWS = 10_000, 64
#: How many times the rows that suit a CPU a GPU labels at once: each launch takes the same time.
LONGER = 4
#: Batches that a GPU may be ahead of who takes the labels of an earlier one to the host.
MOST_AHEAD = 2
#: Types of the devices that a fast search runs on, and what the message calls it.
_FAST = (("cpu",), "search fast")


def label_dtype(k: int) -> np.dtype[Any]:
    """The dtype of the labels of `k` clusters: int32, or int64 from `INT64_CLUSTERS` on."""
    return np.dtype(np.int64 if k >= INT64_CLUSTERS else np.int32)


def plan_labelling(
    spec: ArraySpec, model: Model, execution: ExecutionConfig, *, n_processes: int = 1
) -> MemoryPlan:
    """The memory of a `Labelling` that finds the clusters of `model`, of one process.

    `n_processes` share the memory of the machine.

    Raises
    ------
    DeviceError
        If there is no such device.
    MemoryBudgetError
        If the budget does not hold it.
    """
    device = resolve_device(execution.device)
    batch_rows = rows_at_once(spec, device)
    reading = plan_reading(spec, batch_rows=batch_rows, seed=None)
    finding = predict_bytes(spec, reading, model.k, on_host=True)
    if model.sizes is not None:
        dtype = torch.promote_types(_compute_dtype_of(spec), model.centroids_KD.dtype)
        finding += priced_bytes(model.k, spec.n_features, batch_rows, dtype.itemsize)
    plan_device_memory(
        spec, reading, execution, device, fixed_bytes=finding,
        n_processes=sharing(device, n_processes),
    )  # fmt: skip
    on_host = is_host(device)
    needed = finding if on_host else predict_bytes(spec, reading, model.k, on_host=False)
    return plan_memory(spec, reading, execution, fixed_bytes=needed, n_processes=n_processes)


def _compute_dtype_of(spec: ArraySpec) -> torch.dtype:
    return compute_dtype(as_stored_tensor(np.empty((0, 0), spec.storage), spec.dtype).dtype)


def rows_at_once(spec: ArraySpec, device: torch.device, n_branches: int = 0) -> int:
    """Rows of a batch of a `Labelling` that is not told how many."""
    rows = largest_batch_rows(spec.n_rows, spec.n_features, n_branches)
    if is_host(device):
        return rows
    return min(max(min(LONGER * rows, WINDOW_BYTES // spec.row_bytes), rows), spec.n_rows)


class Labelling:
    """Assigns the rows of one source to the centroids of one model.

    Several processes share the batches: each reads and assigns its own. A batch is the same rows on
    any number of processes. All must have the same model, rows and weights.
    """

    centroids_KD: torch.Tensor
    """In the scaled space, on the device, in the dtype of `prepared` rows."""
    _rule: SizeRule | None = None
    """Which rows go elsewhere, and at which clusters close, if they do."""
    _carried: CarriedRows | None = None
    """What a pass of the fit has left, if `go_by` was told."""
    type_notes: list[str]
    """What is to be said of the type of the rows."""

    def __init__(
        self,
        model: Model,
        source: Source,
        execution: ExecutionConfig,
        weights: Weights | None = None,
        batch_rows: int | None = None,
        output_bytes: int = 0,
        world: World = ALONE,
        seat: Seat | None = None,
        *,
        n_nearest: int = 1,
        fast: bool = False,
    ) -> None:
        """`output_bytes` are those that outputs hold at once; `world` shares the batches.

        With a `seat` other models may share the reads. With `n_nearest` above 1, `batches` rank
        the `n_nearest` centroids of each row. If `fast`, rows are compared with the centroids
        around one branch alone (see `clustering.branches`), on the CPU.
        """
        source = in_order(source, model.feature_names, "the run")
        spec = source.spec
        if spec.n_features != model.n_features:
            raise ConfigError(
                f"{source.name} has {spec.n_features} features, the run's centroids have "
                f"{model.n_features}: they must agree; name the array that was clustered, or one "
                "with the same features in the same order"
            )
        self._source, self._weights, self.world, self._seat = source, weights, world, seat
        self.type_notes = type_notes_of(spec.dtype, model.figures.get("dtype", spec.dtype))
        self._agree(model)
        self._n_nearest = n_nearest
        if model.sizes is not None:
            check_search(n_nearest, fast=fast)
        self._asked_kernel = kernel_for(n_nearest, execution.kernel, fast=fast)
        self._is_spherical = model.settings["metric"] == "cosine"
        n_branches = default_branches(model.k) if fast else 0
        self.device = resolve_device(execution.device, *(_FAST if fast else ()))
        stored = as_stored_tensor(np.empty((0, 0), spec.storage), spec.dtype).dtype
        dtype = torch.promote_types(compute_dtype(stored), model.centroids_KD.dtype)
        batch_rows = batch_rows or rows_at_once(spec, self.device, n_branches)
        self._reading = plan_reading(spec, batch_rows=batch_rows, seed=None)
        needed = output_bytes + self._arithmetic_bytes(model, n_branches, batch_rows, dtype)
        needed += weights.resident_bytes if weights is not None else 0
        n_here = world.hosts.count(world.host)
        self._planned: Callable[[int], MemoryPlan] = lambda n_more: plan_memory(
            spec, self._reading, execution, fixed_bytes=needed + n_more,
            weighted=weights is not None, n_processes=n_here,
        )  # fmt: skip
        self.memory = self._planned(0)
        finding = self._finding_bytes(model, n_branches, batch_rows, dtype)
        self.device_memory = plan_device_memory(
            spec, self._reading, execution, self.device, fixed_bytes=finding,
            weighted=weights is not None, n_processes=sharing(self.device, n_here),
        )  # fmt: skip
        self.centroids_KD = model.centroids_KD.to(self.device, dtype)
        self._scaling = model.scaling.on(self.device)
        request = KernelRequest(batch_rows, model.k, dtype, self.device, tune=execution.tune)
        self._flat_kernel = make_kernel(self._asked_kernel, request)
        self.kernel: MadeKernel = self._flat_kernel
        if fast:
            self.kernel = self._fast_kernel(n_branches, batch_rows)
        if model.sizes is not None:
            self._bound(model, model.sizes)
        self._stored, self.times = stored, StageTimes()

    def go_by(self, carried: CarriedRows | None) -> None:
        """Compare no more than what the last pass of the fit, over the same rows, leaves to do.

        Where there were other batches, or memory does not hold it too, it is freed.
        """
        if carried is None:
            return
        if carried.order == self._reading:
            with suppress(MemoryBudgetError):
                self.memory = self._planned(carried.n_bytes)
                self._carried = carried
                carried.begin_pass_(self.centroids_KD)
                return
        carried.forget_()

    def _agree(self, model: Model) -> None:
        """Check that all processes have the same model, rows and weights."""
        if self.world.size > 1:
            bits = model.centroids_KD.cpu().numpy().tobytes()
            weights = self._weights
            self.world.agree(
                {
                    "model": sha256(bits).hexdigest()[:12],
                    "data": self._source.fingerprint(),
                    "weights": None if weights is None else weights.fingerprint,
                }
            )

    def _bound(self, model: Model, sizes: SizeRule) -> None:
        """Find clusters by `sizes`; they close only if the model was fitted on these rows."""
        self.kernel = PricedKernel(self.kernel, sizes.prices_K.to(self.device))
        if self._source.fingerprint() == model.figures["sizes"]["fingerprint"]:
            self._rule = SizeRule(*(each.to(self.device) for each in sizes))

    def _arithmetic_bytes(
        self, model: Model, n_branches: int, batch_rows: int, dtype: torch.dtype
    ) -> int:
        """Host bytes that finding takes, and what is found on its way to who writes it."""
        n_nearest, n_processes, on_host = self._n_nearest, self.world.size, is_host(self.device)
        if on_host:
            needed = self._finding_bytes(model, n_branches, batch_rows, dtype)
        else:
            spec, k = self._source.spec, model.k
            needed = predict_bytes(spec, self._reading, k, n_branches, on_host=False)
        n_copies = self.most_waiting + n_processes if n_processes > 1 else int(n_nearest > 1)
        n_copies += 0 if on_host else self.most_ahead + 1
        return needed + SENT_BYTES * n_nearest * batch_rows * n_copies

    def _finding_bytes(
        self, model: Model, n_branches: int, batch_rows: int, dtype: torch.dtype
    ) -> int:
        """Bytes that finding takes where it is done, on the host or the device."""
        spec, k = self._source.spec, model.k
        needed = predict_bytes(spec, self._reading, k, n_branches, on_host=True)
        if model.sizes is not None:
            needed += priced_bytes(k, spec.n_features, batch_rows, dtype.itemsize)
        # Of several, what is ranked, and the ranks once more as they are written.
        if self._n_nearest > 1:
            needed += nearest_bytes(batch_rows, k, self._n_nearest, dtype.itemsize)
        return needed

    def _fast_kernel(self, n_branches: int, batch_rows: int) -> BranchKernel:
        """The kernel that searches by branches over the centroids, the same in all processes."""
        search = BranchKernel(self._flat_kernel, batch_rows)
        branches = search.find_branches(
            self.centroids_KD, n_branches, seed=0, n_lists=LISTS_PER_SEARCHED
        )
        self.world.broadcast_(*branches)
        return search.on(branches)

    @property
    def memory_description(self) -> str:
        """The memory of the host, and of the device if it is another, as the log shows it."""
        return "; ".join(str(plan) for plan in (self.memory, self.device_memory) if plan)

    @property
    def kernel_description(self) -> str:
        """The kernel as the log shows it."""
        said = describe_kernel(self._asked_kernel, self.kernel.name)
        return f"{said}, which alone ranks several" if self._n_nearest > 1 else said

    @property
    def notes(self) -> list[str]:
        """What the log has to say of the kernel and the rows."""
        notes = kernel_notes(self._asked_kernel, self.device) + self.type_notes
        if isinstance(self.kernel, PricedKernel) and self._rule is None:
            notes.append(
                "these are not the rows of the fit, byte for byte and by modification time: labels "
                "go by the prices of its clusters, and bounds on their sizes are not kept"
            )
        return notes

    @property
    def most_ahead(self) -> int:
        """Batches that may be queued before the rows of one are fetched; the CPU queues nothing."""
        return 0 if is_host(self.device) else MOST_AHEAD

    @property
    def most_waiting(self) -> int:
        """Batches whose labels are on their way to who writes them, at most: a unit, and some."""
        return self._reading.unit_batches + 2

    def places(self, start_row: int = 0) -> Iterator[Place]:
        """Where each batch of all processes lies, from the one that holds `start_row` on."""
        first = self._reading.batch_at(start_row)
        return self._reading.places(first, n_processes=self.world.size)

    @contextmanager
    def batches(self, start_row: int = 0) -> Iterator[Iterator[LabelledBatch]]:
        """Own batches from the one that holds `start_row` on, in the order of the rows."""
        with (
            cores_for_kernels(self.kernel.name),
            self._stream(start_row, self._preparation(in_place=True)) as batches,
        ):
            yield (self._label(start, batch) for start, batch in batches)

    @contextmanager
    def prepared(self) -> Iterator[Iterator[tuple[int, Batch]]]:
        """Own batches without labels: (number of its first row, rows in the scaled space)."""
        dtype = self.centroids_KD.dtype
        prepare = Preparation.widened(
            self._scaling, batch_rows=self._reading.batch_rows, dtype=dtype
        )
        with self._stream(0, prepare) as batches:
            yield batches

    @contextmanager
    def evaluated(self) -> Iterator[Iterator[EvaluatedBatch]]:
        """Own batches with distances to the second nearest centroids, and sums by cluster."""
        with (
            cores_for_kernels(self.kernel.name),
            self._stream(0, self._preparation(in_place=False)) as batches,
        ):
            yield (self._evaluate(start, batch) for start, batch in batches)

    def _preparation(self, *, in_place: bool) -> Preparation:
        return Preparation.for_kernel(
            self._scaling, self.kernel, batch_rows=self._reading.batch_rows,
            stored=self._stored, dtype=self.centroids_KD.dtype, in_place=in_place,
            weight_unit=None if self._weights is None else self._weights.unit,
        )  # fmt: skip

    @contextmanager
    def _stream(
        self, start_row: int, prepare: Preparation
    ) -> Iterator[Iterator[tuple[int, Batch]]]:
        """(number of the first row, batch) for each own batch from that of `start_row` on."""
        first = self._reading.batch_at(start_row)
        windows = self._reading.windows(0, first, rank=self.world.rank, n_processes=self.world.size)
        self.times = StageTimes()
        slots: HostSlots | None = self._seat
        if slots is None:
            slots = open_slots(self._source, self.memory.stream, self.device)
        with (
            slots,
            stream(self._source, windows, slots, self.times, self._weights, 0) as on_device,
        ):
            yield (
                (
                    _first_row(window.window, index),
                    prepare(window.x_ND, rows, window.weights_N, is_shared=window.is_shared),
                )
                for window in on_device
                for index, rows in window.batches(first)
                if isinstance(rows, slice)  # always, where rows are read in sequence
                and rows.start < rows.stop  # else it belongs to another process
            )

    def _evaluate(self, start_row: int, batch: Batch) -> EvaluatedBatch:
        labels_B, sq_distances_B, second_B = nearest_two(
            self._flat_kernel if self._is_priced else self.kernel,
            batch, self.centroids_KD, spherical=self._is_spherical,
        )  # fmt: skip
        if self._is_priced:
            nearest_B, least_B = labels_B, sq_distances_B
            labels_B, sq_distances_B = self._find(start_row, batch)
            # Of the other centroids, the nearest.
            second_B = torch.where(labels_B == nearest_B, second_B, least_B.to(second_B.dtype))
        sums_KD = sums_by_label(self.kernel, batch, labels_B, self.centroids_KD)
        looked_at = LookedAt(0, 0)
        if self.kernel is not self._flat_kernel and not self._is_priced:
            looked_at = self._look_at(batch, labels_B, sq_distances_B)
        labelled = self._labelled(start_row, batch, labels_B, sq_distances_B)
        return EvaluatedBatch(labelled, second_B, sums_KD, looked_at)

    def _look_at(
        self, batch: Batch, labels_B: torch.Tensor, sq_distances_B: torch.Tensor
    ) -> LookedAt:
        """Compare some rows of a batch, evenly spaced, with all centroids."""
        n_rows = max(LOOKED_AT_ROWS // self._reading.n_batches(0), LEAST_LOOKED_AT_ROWS)
        rows = slice(0, None, max(len(batch) // n_rows, 1))
        x_RD, labels_R = batch.x_BD[rows], labels_B[rows]
        true_R, _ = self._flat_kernel.assign(x_RD, batch.sq_norms_B[rows], self.centroids_KD)
        # Several may be nearest.
        least_R = sq_distances_to(x_RD, true_R, self.centroids_KD)
        is_found_R = (labels_R == true_R) | (sq_distances_B[rows] <= least_R)
        if batch.dropped_B is not None:
            is_found_R = is_found_R[~batch.dropped_B[rows]]
        return LookedAt(len(is_found_R), int(is_found_R.sum()))

    def _label(self, start_row: int, batch: Batch) -> LabelledBatch:
        if self._n_nearest > 1:
            several = nearest_several(
                batch, self.centroids_KD, self._n_nearest, spherical=self._is_spherical
            )
            if batch.dropped_B is not None:
                several.labels_BM.masked_fill_(batch.dropped_B[:, None], -1)
                several.sq_distances_BM.masked_fill_(batch.dropped_B[:, None], torch.nan)
            first = (several.labels_BM[:, 0], several.sq_distances_BM[:, 0])
            return replace(self._labelled(start_row, batch, *first), several=several)
        return self._labelled(start_row, batch, *self._find(start_row, batch))

    @property
    def _is_priced(self) -> bool:
        return isinstance(self.kernel, PricedKernel)

    def _find(self, start_row: int, batch: Batch) -> Assignment:
        """The cluster of each row, and its squared distance."""
        if isinstance(self.kernel, PricedKernel):
            return bounded_nearest(self.kernel, batch, self.centroids_KD, self._rule, start_row)
        carried = None
        if self._carried is not None and batch.lies_in_window:
            index = self._reading.batch_at(start_row)
            carried = self._carried.of_batch(index, len(batch))
        return nearest(
            self.kernel, batch, self.centroids_KD, spherical=self._is_spherical, carried=carried
        )

    def _labelled(
        self, start_row: int, batch: Batch, labels_B: torch.Tensor, sq_distances_B: torch.Tensor
    ) -> LabelledBatch:
        if batch.dropped_B is not None:
            labels_B.masked_fill_(batch.dropped_B, -1)
            sq_distances_B.masked_fill_(batch.dropped_B, torch.nan)
        return LabelledBatch(start_row, labels_B, sq_distances_B, batch.weights_B)


def _first_row(window: Window, index: int) -> int:
    """Number of the first row of batch `index`; the rows of a window follow each other."""
    whole = window.whole
    return whole.reads[0].start + whole.batch_edges[index - whole.first_batch]
