"""The memory plan: slots, readers and bytes of a run, fixed before anything is read or written.

Imports no torch, so that wrong arguments and unusable input are refused before
the seconds that importing it takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from streamkm.clustering.branch_plan import LISTS_PER_SEARCHED, branch_bytes, listed
from streamkm.clustering.reservoir_plan import reservoir_rows
from streamkm.clustering.seeding.plan import (
    CANDIDATES_PER_CLUSTER,
    MAX_PROPOSED,
    breath_size,
    greedy_trials,
    plan_seeding,
)
from streamkm.clustering.size_plan import priced_bytes, size_state_bytes, sizing_bytes
from streamkm.config import INITS
from streamkm.errors import MemoryBudgetError, Option
from streamkm.machine import memory_limit, n_cores
from streamkm.sources.weights import MAX_HEAVY
from streamkm.stream.slots import WEIGHT_BYTES, StreamMemory, slot_bytes
from streamkm.text import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamkm.config import ExecutionConfig, ResolvedFitConfig
    from streamkm.machine import MemoryLimit
    from streamkm.sources.base import ArraySpec
    from streamkm.stream.plan import ReadingPlan

__all__ = [
    "FULL_SLOTS",
    "RUNTIME_BYTES",
    "MemoryPlan",
    "bytes_together",
    "carried_bytes",
    "checkpoint_bytes",
    "fit_bytes",
    "greatest_k",
    "plan_memory",
    "predict_bytes",
    "within_memory",
    "working_bytes",
]

#: Budget where none is given, at most; half of the memory that this process may use if that is
#: less.
DEFAULT_HOST_MEMORY = 8 << 30
#: Readers where no number is given: one a core but at most this many; this many for a remote
#: source.
MAX_READ_THREADS = 16
#: Slots that let reading and arithmetic overlap (one worked on, one being copied or ready, one
#: being read), and slots at most.
FULL_SLOTS, MAX_SLOTS = 3, 8
#: Bytes that the matrix library and the allocators of some threads take on first use.
RUNTIME_BYTES = 48 << 20
#: Bytes of a tile's scores, and rows that a tile holds at least: see `kernels.reference`.
TILE_BYTES, TILE_ROWS = 4 << 20, 128
#: The compiled kernel pads its copy of the centroids to a multiple of this: two vectors of
#: AVX-512 in float32, the widest panel.
PANEL_LANES = 32
#: Bytes that are kept of a row from pass to pass: its label, int32, and a distance, float32.
CARRIED_BYTES = 8
#: Centroids from which on a kernel may search them by groups, or by heads.
MIN_GROUPED = 2048
#: Bytes of the single numbers of a checkpoint.
CHECKPOINT_SCALARS = 1 << 10

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Host memory of a run beyond what importing the package takes."""

    stream: StreamMemory
    """Slots and readers."""
    reader_bytes: int
    """Bytes that one reader allocates beside the slots, at most."""
    fixed_bytes: int
    """Bytes of everything else, whose size does not depend on slots and readers."""
    budget: int
    """Bytes that the run may take."""
    origin: str = ""
    """The limit that the budget is half of, in words; empty if none set by a job decides it."""
    carried_bytes: int = 0
    """Bytes of what passes leave for the next ones."""

    @property
    def total_bytes(self) -> int:
        """Bytes that the run takes, at most."""
        slots = self.stream.n_slots * self.stream.slot_bytes
        readers = max(self.stream.n_readers, 1) * self.reader_bytes
        return self.fixed_bytes + slots + readers + self.carried_bytes

    def carrying(self, n_bytes: int) -> MemoryPlan:
        """The plan with room for `n_bytes` that are carried from pass to pass, if they fit."""
        fits = self.total_bytes + n_bytes <= self.budget
        return replace(self, carried_bytes=n_bytes) if fits else self

    def __str__(self) -> str:
        half = f" (half of the {self.origin})" if self.origin else ""
        carried = format_bytes(self.carried_bytes)
        bounds = f", bounds of rows {carried}" if self.carried_bytes else ""
        return (
            f"{format_bytes(self.total_bytes)} of {format_bytes(self.budget)} host memory{half}: "
            f"slots {self.stream.n_slots} x {format_bytes(self.stream.slot_bytes)}, "
            f"readers {self.stream.n_readers} x {format_bytes(self.reader_bytes)}, "
            f"arithmetic and libraries {format_bytes(self.fixed_bytes)}"
            f"{bounds}"
        )


def plan_memory(
    spec: ArraySpec,
    reading: ReadingPlan,
    execution: ExecutionConfig,
    *,
    fixed_bytes: int,
    weighted: bool = False,
    n_processes: int = 1,
) -> MemoryPlan:
    """As many slots and readers as the budget holds and the stream can use.

    Parameters
    ----------
    spec, reading, execution : ArraySpec, ReadingPlan, ExecutionConfig
        The array, the order in which it is read, and the budget.
    fixed_bytes : int
        Bytes of everything but slots and readers, as `fit_bytes` or `predict_bytes` gives them.
    weighted : bool
        Whether rows have weights.
    n_processes : int
        Processes of the run on this machine: they share its memory and cores where no option says
        what each may take.

    Raises
    ------
    MemoryBudgetError
        If one slot and one reader do not fit; the message names a budget that is enough.
    """
    limit = memory_limit(n_processes)
    default, origin = DEFAULT_HOST_MEMORY, ""
    if limit.n_bytes // 2 < default:
        default, origin = limit.n_bytes // 2, limit.origin
    budget = execution.max_host_memory or default
    wanted = execution.read_threads
    if wanted is None:
        useful = MAX_READ_THREADS if spec.is_remote else n_cores() // n_processes
        wanted = min(max(useful, 1), MAX_READ_THREADS)
    # If windows hold few blocks, several must be open for all readers to have work.
    enough = min(FULL_SLOTS - 1 + -(-wanted // reading.window_blocks), MAX_SLOTS)

    n_bytes = slot_bytes(reading.window_rows, spec.row_bytes, weighted=weighted)
    # A reader holds the weights of one block as they are stored.
    reader_bytes = spec.scratch_bytes + weighted * reading.block_rows * WEIGHT_BYTES

    def sized(n_slots: int, n_readers: int) -> MemoryPlan:
        return MemoryPlan(
            StreamMemory(n_slots, reading.window_rows, n_bytes, n_readers, weighted),
            reader_bytes=reader_bytes,
            fixed_bytes=fixed_bytes,
            budget=budget,
            origin="" if execution.max_host_memory else origin,
        )

    # A second slot comes before more readers: without it nothing overlaps.
    for n_slots, n_readers in (
        *((n, wanted) for n in range(max(enough, FULL_SLOTS), 1, -1)),
        *((2, n) for n in range(wanted - 1, 0, -1)),
        (1, 1),
    ):
        memory = sized(n_slots, n_readers)
        if memory.total_bytes <= budget:
            _check_limit(memory, limit)
            return memory
    raise _too_small(sized(1, 1), limit, n_processes)


def _check_limit(memory: MemoryPlan, limit: MemoryLimit) -> None:
    """Refuse a plan that takes more than the job may use: the system would end it midway."""
    if limit.origin and memory.total_bytes > limit.n_bytes:
        raise MemoryBudgetError(
            Option("max_host_memory", format_bytes(memory.budget)),
            f" is more than this job may use, {format_bytes(limit.n_bytes)} ({limit.origin}), and "
            f"the run would take {format_bytes(memory.total_bytes)}; ask the batch system for "
            "more, or give at most ",
            Option("max_host_memory", format_bytes(limit.n_bytes // 2)),
        )


def _too_small(least: MemoryPlan, limit: MemoryLimit, n_processes: int) -> MemoryBudgetError:
    """The error for a budget below `least`, the smallest plan; it names one that is enough."""
    window_rows, n_bytes = least.stream.slot_rows, least.stream.slot_bytes
    parts = (
        f"there must be room for {format_bytes(n_bytes)} of one window of {window_rows:,} rows, "
        f"{format_bytes(least.reader_bytes)} of one reader and "
        f"{format_bytes(least.fixed_bytes)} of arithmetic and libraries"
    )
    enough = _round_up_mib(least.total_bytes)
    if least.origin:
        error = MemoryBudgetError(
            f"this job may use {format_bytes(limit.n_bytes)} ({limit.origin}), and half of that "
            f"is too small: {parts}; ask the batch system for at least "
            f"{_round_up_mib(2 * n_processes * least.total_bytes)}, or give ",
            Option("max_host_memory", enough),
        )
    else:
        error = MemoryBudgetError(
            Option("max_host_memory", format_bytes(least.budget)),
            f" is too small: {parts}; give at least ",
            Option("max_host_memory", enough),
        )
    error.least_bytes = least.total_bytes
    return error


def fit_bytes(
    spec: ArraySpec,
    reading: ReadingPlan,
    config: ResolvedFitConfig,
    *,
    on_host: bool,
    weighted: bool = False,
    probed: bool = False,
) -> int:
    """Host bytes of a fit beside slots and readers.

    Parameters
    ----------
    spec, reading, config : ArraySpec, ReadingPlan, ResolvedFitConfig
        The array, the order in which it is read, and the settings.
    on_host : bool
        Whether the device is the CPU.
    weighted : bool
        Whether rows have weights.
    probed : bool
        Whether a probe trains a copy of the state.
    """
    # Of a GPU, one lies in page-locked memory while the next is saved.
    total = (
        RUNTIME_BYTES + reading.order_bytes + 2 * checkpoint_bytes(spec, config, weighted=weighted)
    )
    if not on_host:
        return total
    working = working_bytes(spec, reading, config, weighted=weighted, probed=probed)
    return total + working + config.k * 64


def carried_bytes(spec: ArraySpec, reading: ReadingPlan, k: int) -> int:
    """Host bytes of what passes of Lloyd's algorithm leave for the next ones.

    Beside what is kept of rows and centroids, copies of some centroids and numbers of the rows of a
    batch (``kernels/native/carried.h``).
    """
    width = _compute_width(spec)
    of_centroids = k * spec.n_features * 2 * width + 16 * k
    return CARRIED_BYTES * spec.n_rows + of_centroids + reading.batch_rows * (width * 2 + 64)


def checkpoint_bytes(spec: ArraySpec, config: ResolvedFitConfig, *, weighted: bool) -> int:
    """Bytes of the tensors of a checkpoint, at most, on the host."""
    k, n_features, width = config.k, spec.n_features, _compute_width(spec)
    # Centroids, sums, and the sums of a pass; the reservoir; what is known of each cluster.
    total = k * n_features * (width + 24) + reservoir_rows(k) * (n_features * width + 24)
    total += k * (32 + 40 * weighted) + CHECKPOINT_SCALARS + 64 * n_features
    total += config.n_branches * (n_features * width + 8) + 8 * listed(k, config.n_branches)
    return total + config.is_bounded * size_state_bytes(k)


def greatest_k(k: int, fits: Callable[[int], bool]) -> int:
    """The most clusters below `k` that fit, if any number that is less than one that fits does."""
    most, too_many = 0, k
    while most + 1 < too_many:
        middle = (most + too_many) // 2
        most, too_many = (middle, too_many) if fits(middle) else (most, middle)
    return most


def within_memory(config: ResolvedFitConfig, planned: Callable[[ResolvedFitConfig], T]) -> T:
    """What is `planned` of `config`; an error names the most clusters for which it would be.

    Raises
    ------
    MemoryBudgetError
        If `planned` raises it.
    """

    def fits(k: int) -> bool:
        try:
            planned(replace(config, k=k))
        except MemoryBudgetError:
            return False
        return True

    try:
        return planned(config)
    except MemoryBudgetError as error:
        # Centroids that are there already are as many as they are.
        is_open = config.from_run is None and config.init in INITS
        if is_open and (most := greatest_k(config.k, fits)):
            error.args += ("; the most clusters that fit are ", Option("k", most))
        raise


def working_bytes(
    spec: ArraySpec,
    reading: ReadingPlan,
    config: ResolvedFitConfig,
    *,
    weighted: bool = False,
    probed: bool = False,
) -> int:
    """Bytes that a fit takes where its arithmetic is done, on the host or a device.

    Parameters are those of `fit_bytes`.
    """
    width = _compute_width(spec)
    state = config.k * spec.n_features
    seeding = _seeding_bytes(spec, reading, config, weighted=weighted)
    # Centroids, sums, and the copies of both that an update or the end of a pass makes.
    training = _batch_bytes(spec, reading, config.k) + state * (5 * width + 80)
    training += branch_bytes(
        config.k, spec.n_features, config.n_branches, reading.batch_rows, width
    )
    if config.is_bounded:
        training += sizing_bytes(config.k)
        training += priced_bytes(config.k, spec.n_features, reading.batch_rows, width)
    training += probed * state * (2 * width + 24)
    # A copy of the rows, times their weights.
    weighing = reading.batch_rows * (spec.n_features * width + 5 * WEIGHT_BYTES)
    return max(seeding, training + weighted * weighing)


def bytes_together(fixed_bytes: Sequence[int], shared_bytes: int = 0) -> int:
    """Host bytes beside slots and readers of several runs in one process.

    `fixed_bytes` are those of each alone, as `fit_bytes` or `predict_bytes` gives them. What
    libraries take, and `shared_bytes` that each of them has counted, is there once.
    """
    return sum(fixed_bytes) - (len(fixed_bytes) - 1) * (RUNTIME_BYTES + shared_bytes)


def _seeding_bytes(
    spec: ArraySpec, reading: ReadingPlan, config: ResolvedFitConfig, *, weighted: bool
) -> int:
    """Bytes of the sample and of the stages that work on it."""
    width, k, n_features = _compute_width(spec), config.k, spec.n_features
    seeding = plan_seeding(spec.n_rows, n_features, k, config.init, config.n_init, config.epochs)
    n_heavy = weighted * min(MAX_HEAVY, spec.n_rows)
    n_drawn = seeding.sample_rows + seeding.judged_rows + n_heavy
    n_trials, most = greedy_trials(k), k + breath_size(k)
    # Twice the sample: leaving rows out copies the others.
    total = n_drawn * 2 * n_features * width
    n_rows = max(seeding.sample_rows + n_heavy, seeding.candidate_rows)
    # For each row: its nearest centroid before and after a step, a copy in a checkpoint, and the
    # cumulative weights of the draws. For each row and candidate of a draw: distances.
    total += n_rows * (96 + n_trials * (3 * width + 24))
    # Centroids before and after a pass, their sums, and the best seeding so far.
    total += most * n_features * (5 * width + 40) + _kernel_bytes(spec, reading, most)
    if seeding.tree is not None:
        # Sums before and after a step, and those of halves and of pairs of clusters.
        total += k * n_features * (3 * width + 40)
    total += min(k, MAX_PROPOSED) ** 2 * 2 * width
    total += reading.batch_rows * (n_features + 8) * (width + 8)
    if seeding.candidate_rows:
        # Candidates so far and those of one round, twice while they are joined; and the kernel
        # with all candidates as centroids.
        n_round = CANDIDATES_PER_CLUSTER * k + reading.batch_rows
        total += 2 * (seeding.candidate_rows + n_round) * (n_features * width + 16)
        total += _kernel_bytes(spec, reading, seeding.candidate_rows)
    return total


def _kernel_bytes(spec: ArraySpec, reading: ReadingPlan, k: int) -> int:
    """Bytes of a kernel: copies of `k` centroids, a tile's scores, and the choice among them."""
    width, n_lanes = _compute_width(spec), -(-k // PANEL_LANES) * PANEL_LANES
    # As they are, and in sixteen bits at most with what is known of each.
    packed = n_lanes * (spec.n_features * (width + 2) + 32)
    if k >= MIN_GROUPED:
        # By groups, each in whole panels, and the rows sorted by them; or heads of at most 0.8 of
        # the features, in float32 and in bytes.
        packed += n_lanes * (spec.n_features * 4 + 128) + reading.batch_rows * 64
    scores = max(TILE_BYTES, min(TILE_ROWS, reading.batch_rows) * k * width)
    return packed + scores + 3 * TILE_BYTES


def predict_bytes(
    spec: ArraySpec, reading: ReadingPlan, k: int, n_branches: int = 0, *, on_host: bool
) -> int:
    """Host bytes of predict and evaluate beside slots and readers; `on_host` as in `fit_bytes`.

    A fast search has `n_branches`, an exact one none.
    """
    # The model, and beside it either its file while it is loaded or the float64 centroids of a
    # recheck.
    state = k * spec.n_features * 2 * (_compute_width(spec) + 8)
    # The sums of evaluate: of all rows, in whole numbers and at the end in float64, and of one
    # batch before and after they are widened.
    state += k * spec.n_features * (_compute_width(spec) + 40)
    width = _compute_width(spec)
    state += branch_bytes(
        k, spec.n_features, n_branches, reading.batch_rows, width, LISTS_PER_SEARCHED
    )
    total = RUNTIME_BYTES + reading.order_bytes + state
    return total + (_batch_bytes(spec, reading, k) if on_host else 0)


def _batch_bytes(spec: ArraySpec, reading: ReadingPlan, k: int) -> int:
    """Bytes of one batch on its way through preparation and the kernel."""
    width = _compute_width(spec)
    rows = reading.batch_rows * (spec.n_features * (width + spec.storage.itemsize) + 96)
    return rows + _kernel_bytes(spec, reading, k) + 4 * reading.window_rows * FULL_SLOTS


def _compute_width(spec: ArraySpec) -> int:
    """Bytes of an element in the dtype in which distances are computed."""
    return 8 if spec.dtype in ("float64", "int32", "int64", "uint32", "uint64") else 4


def _round_up_mib(n_bytes: int) -> str:
    return f"{-(-n_bytes // (1 << 20))}MiB"
