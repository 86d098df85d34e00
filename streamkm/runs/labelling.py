"""Reading an array in order and assigning every row: what all that uses a model shares."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from streamkm.clustering.minibatch import nearest, nearest_two, sums_by_label
from streamkm.clustering.scaling import compute_dtype
from streamkm.config import default_batch_rows
from streamkm.errors import ConfigError
from streamkm.kernels import kernel_notes, make_kernel, measuring
from streamkm.kernels.extension import cores_for_kernels
from streamkm.runs.devices import describe_kernel, resolve_device
from streamkm.runs.preflight import plan_memory, predict_bytes
from streamkm.stream.pipeline import stream
from streamkm.stream.plan import make_plan
from streamkm.stream.slots import HostSlots
from streamkm.stream.stages import StageTimes
from streamkm.stream.transfer import as_stored_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamkm.clustering.batch import Batch
    from streamkm.config import ExecutionConfig
    from streamkm.kernels import CpuKernel
    from streamkm.runs.model import Model
    from streamkm.sources.base import Source
    from streamkm.sources.weights import Weights

__all__ = ["LabelledBatch", "Labelling", "MeasuredBatch"]


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """Consecutive rows and their nearest centroids, on the device."""

    start_row: int
    labels_B: torch.Tensor
    """int64; -1 for rows that are not finite."""
    sq_distances_B: torch.Tensor
    """Squared distances in the scaled space, float64; NaN for rows that are not finite."""
    n_dropped: int
    weights_B: torch.Tensor | None = None
    """Weights of the rows, float64, 0 for those that are not finite; None without weights."""


@dataclass(frozen=True, slots=True)
class MeasuredBatch:
    """What `Labelling.measured` says of consecutive rows."""

    labelled: LabelledBatch
    second_sq_distances_B: torch.Tensor
    """Squared distances to the second nearest centroid; infinite if there is one only."""
    sums_KD: torch.Tensor
    """Sum of the rows of each cluster, times their weights, float64."""


class Labelling:
    """Assigns the rows of one source to the centroids of one model."""

    centroids_KD: torch.Tensor
    """In the scaled space, on the device, in the dtype of `prepared` rows."""

    def __init__(
        self,
        model: Model,
        source: Source,
        execution: ExecutionConfig,
        weights: Weights | None = None,
        batch_rows: int | None = None,
    ) -> None:
        spec = source.spec
        if spec.n_features != model.n_features:
            raise ConfigError(
                f"{source.name} has {spec.n_features} features, the run's centroids have "
                f"{model.n_features}: they must agree"
            )
        self._source, self._weights = source, weights
        self._is_spherical = model.settings["metric"] == "cosine"
        self.device = resolve_device(execution.device)
        batch_rows = batch_rows or default_batch_rows(spec.n_rows, spec.n_features)
        self._plan = make_plan(spec, batch_rows=batch_rows, seed=None)
        on_host = self.device.type == "cpu"
        needed = predict_bytes(spec, self._plan, model.k, on_host=on_host)
        needed += weights.resident_bytes if weights is not None else 0
        self.memory = plan_memory(
            spec, self._plan, execution, fixed_bytes=needed, weighted=weights is not None
        )
        stored = as_stored_tensor(np.empty((0, 0), spec.storage), spec.dtype).dtype
        dtype = torch.promote_types(compute_dtype(stored), model.centroids_KD.dtype)
        self.centroids_KD = model.centroids_KD.to(self.device, dtype)
        self._scaling = replace(
            model.scaling,
            shift_D=model.scaling.shift_D.to(self.device),
            factor_D=model.scaling.factor_D.to(self.device),
        )
        self.arithmetic = make_kernel(
            execution.kernel, batch_rows, model.k, dtype, self.device, tune=execution.tune
        )
        self.kernel = describe_kernel(execution.kernel, self.arithmetic.name)
        self.notes = kernel_notes(execution.kernel, self.device)
        taken = self.arithmetic.stored_dtypes
        self._row_dtype = self._scaling.row_dtype(stored, dtype, taken)
        self.times = StageTimes()

    @contextmanager
    def batches(self, start_row: int = 0) -> Iterator[Iterator[LabelledBatch]]:
        """Every batch from the one that holds `start_row` on, in the order of the rows."""
        with (
            cores_for_kernels(self.arithmetic.name),
            self._prepared(start_row, self._row_dtype, measuring(self.arithmetic)) as batches,
        ):
            yield (self._label(start, batch) for start, batch in batches)

    @contextmanager
    def prepared(self, start_row: int = 0) -> Iterator[Iterator[tuple[int, Batch]]]:
        """The same without labels: number of the first row, and rows in the scaled space."""
        with self._prepared(start_row, self.centroids_KD.dtype) as batches:
            yield batches

    @contextmanager
    def _prepared(
        self, start_row: int, dtype: torch.dtype, kernel: CpuKernel | None = None
    ) -> Iterator[Iterator[tuple[int, Batch]]]:
        """Batches of which nothing is known yet, where `kernel` can measure them."""
        workspace_BD = torch.empty(
            (self._plan.batch_rows, self._source.spec.n_features), dtype=dtype, device=self.device
        )
        first = self._plan.batch_at(start_row)
        windows = self._plan.windows(0, first)
        self.times = StageTimes()
        with (
            HostSlots(self.memory.stream, self.device) as slots,
            stream(self._source, windows, slots, self.times, self._weights) as on_device,
        ):
            yield (
                (
                    window.window.reads[0].start + rows.start,
                    self._scaling.prepare(
                        window.x_ND, rows, workspace_BD, window.weights_N, measured_by=kernel
                    ),
                )
                for window in on_device
                for _, rows in window.batches(first)
                if isinstance(rows, slice)  # always, where rows are read in sequence
            )

    @contextmanager
    def measured(self) -> Iterator[Iterator[MeasuredBatch]]:
        """Every batch with the distances to the second nearest centroids, and sums."""
        with (
            cores_for_kernels(self.arithmetic.name),
            self._prepared(0, self._row_dtype) as batches,
        ):
            yield (self._measure(start, batch) for start, batch in batches)

    def _measure(self, start_row: int, batch: Batch) -> MeasuredBatch:
        labels_B, sq_distances_B, second_B = nearest_two(
            self.arithmetic, batch, self.centroids_KD, spherical=self._is_spherical
        )
        sums_KD = sums_by_label(self.arithmetic, batch, labels_B, self.centroids_KD)
        labelled = self._labelled(start_row, batch, labels_B, sq_distances_B)
        return MeasuredBatch(labelled, second_B, sums_KD)

    def _label(self, start_row: int, batch: Batch) -> LabelledBatch:
        assignment = nearest(
            self.arithmetic, batch, self.centroids_KD, spherical=self._is_spherical
        )
        return self._labelled(start_row, batch, *assignment)

    def _labelled(
        self, start_row: int, batch: Batch, labels_B: torch.Tensor, sq_distances_B: torch.Tensor
    ) -> LabelledBatch:
        n_dropped = 0
        if batch.dropped_B is not None:
            labels_B.masked_fill_(batch.dropped_B, -1)
            sq_distances_B.masked_fill_(batch.dropped_B, torch.nan)
            n_dropped = int(batch.dropped_B.sum())
        return LabelledBatch(start_row, labels_B, sq_distances_B, n_dropped, batch.weights_B)
