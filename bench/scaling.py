"""The model of `bench.scale_model`: rows/s of a fit on many processes, from rates of its stages.

A unit of work is what lies between two synchronisations, a step of mini-batches or a pass of lloyd.
Reading, copying and arithmetic overlap, so that the slowest of them sets the pace; reductions
follow the arithmetic. Where the arithmetic runs on the cores that read, there is a third bound:
cores x time is at least the processor time of both. Left out are seeding, start-up, checkpoints and
the closing pass, which costs about what a pass of lloyd does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import torch

from streamkm.config import FitConfig
from streamkm.runs.dry_run.shares import pass_bytes, step_bytes
from streamkm.runs.planning.memory import FULL_SLOTS
from streamkm.sources.base import ArraySpec
from streamkm.stream.plan import plan_reading

if TYPE_CHECKING:
    from streamkm.runs.planning.fit_plan import FitPlan
    from streamkm.stream.plan import ReadingPlan

__all__ = ["Job", "Machine", "Network", "Prediction", "Rates", "predict", "where_it_ends"]

#: Reductions of a step of mini-batches that wait for each other: of sums, and on a GPU of exponents
#: before them.
STEP_REDUCTIONS = {"cpu": 1, "cuda": 2}
#: Those at the end of a pass of lloyd: of grades, then of sums.
PASS_REDUCTIONS = 2

#: Scaling ends where twice the processes give less than this many times the rows/s.
PAYS = 1.5


@dataclass(frozen=True)
class Job:
    """One fit: what is computed, on which array. Rows have no weights."""

    algorithm: str
    k: int
    d: int
    n_rows: int
    batch_rows: int
    block_rows: int
    dtype: str = "float32"

    @classmethod
    def usual(cls, algorithm: str, k: int, d: int, n_rows: int, block_bytes: int) -> Job:
        """The fit of a float32 array with the batches that streamkm takes by itself."""
        settings = FitConfig(k=k, algorithm=algorithm).resolved(n_rows, d)
        block_rows = max(block_bytes // (4 * d), 1)
        return cls(algorithm, k, d, n_rows, settings.batch_rows, block_rows)

    @property
    def spec(self) -> ArraySpec:
        return ArraySpec(self.n_rows, self.d, self.dtype, self.block_rows, "")

    @property
    def reading(self) -> ReadingPlan:
        seed = 0 if self.in_steps else None
        return plan_reading(self.spec, batch_rows=self.batch_rows, seed=seed)

    @property
    def in_steps(self) -> bool:
        """Whether processes synchronise after every batch, not after a pass."""
        return self.algorithm == "minibatch"

    @property
    def n_units(self) -> int:
        """Parts of what lies between two synchronisations; one is read by one process."""
        reading = self.reading
        n_blocks = reading.window_blocks if self.in_steps else reading.n_blocks
        return -(-n_blocks // reading.unit_blocks)

    @property
    def rows(self) -> float:
        """Rows between two synchronisations."""
        if not self.in_steps:
            return self.n_rows
        window_rows = self.reading.window_rows
        return window_rows / -(-window_rows // self.batch_rows)

    @property
    def reduced_bytes(self) -> int:
        """Bytes that a synchronisation adds up, as ``--dry-run`` counts them."""
        dtype = torch.float64 if self.dtype == "float64" else torch.float32
        plan = SimpleNamespace(
            config=SimpleNamespace(k=self.k), source=SimpleNamespace(spec=self.spec),
            dtype=dtype, weights=None, device=torch.device("cpu"),
        )  # fmt: skip
        return (step_bytes if self.in_steps else pass_bytes)(cast("FitPlan", plan))


@dataclass(frozen=True)
class Rates:
    """Seconds that one process takes for each stage."""

    read_s: float
    """A row, by one reader thread."""
    deal_s: float
    """A row of a window, whoever reads it: its place in the order of mini-batches."""
    copy_s: float
    """A row, from the host to the GPU; 0 on a CPU."""
    prepare_s: float
    """A row: gather, widen, scale."""
    assign_s: float
    """A row: find the nearest centroid, add it to the sums."""
    batch_s: float
    """A batch, however few its rows: calls of its operations, or launches."""
    move_s: float
    """A synchronisation: centroids follow their sums."""
    least_rows: int = 1
    """Rows that keep a GPU busy: fewer take as long to assign."""


@dataclass(frozen=True)
class Machine:
    """A node."""

    readers: int
    """Reader threads of each process."""
    cores: int | None = None
    """Cores that reading and arithmetic share; None where GPUs do the arithmetic."""
    storage: float = math.inf
    """Bytes/s that the node can read."""


@dataclass(frozen=True)
class Network:
    """What an all-reduce takes: a latency for each, and the bytes by the slowest link."""

    base_s: float
    bandwidth: float
    """Bytes/s that a process sends within a node."""
    hop_s: float = 0.0
    """From one process of a node to the next, which form a chain."""
    node_bandwidth: float = math.inf
    """Bytes/s that a node sends, over all its adapters."""
    node_hop_s: float = 0.0
    """From one node to another; nodes form a tree."""
    core_s: float = 0.0
    """Processor time of a reduction in each process: threads of gloo work and wait on the cores."""

    def seconds(self, n_bytes: int, n_nodes: int, n_local: int, n_reductions: int) -> float:
        """Of `n_reductions`, which add up `n_bytes` in all, over nodes of `n_local` processes."""
        n_processes = n_nodes * n_local
        if n_processes == 1:
            return 0.0
        hops_s = (n_local - 1) * self.hop_s + math.ceil(math.log2(n_nodes)) * self.node_hop_s
        bandwidth = self.bandwidth if n_nodes == 1 else min(self.bandwidth, self.node_bandwidth)
        sent = 2 * (n_processes - 1) / n_processes * n_bytes
        # To the root of the tree and back.
        return n_reductions * (self.base_s + 2 * hops_s) + sent / bandwidth


@dataclass(frozen=True)
class Prediction:
    """Rows/s of all processes together, and why they are not more."""

    n_processes: int
    n_working: int
    """Processes that have rows."""
    rows_per_s: float
    bound: str
    """The stage that takes longest."""
    seconds: dict[str, float]
    """Of each stage, between two synchronisations."""


def predict(
    job: Job,
    rates: Rates,
    machine: Machine,
    network: Network,
    n_nodes: int = 1,
    n_local: int = 1,
    *,
    n_reductions: int | None = None,
) -> Prediction:
    """The pace of `job` by `n_local` processes on each of `n_nodes` nodes."""
    n_processes, n_units, rows = n_nodes * n_local, job.n_units, job.rows
    n_working = min(n_processes, n_units)
    # The process with most units holds the others up.
    own_units = -(-n_units // n_processes)
    own = rows * own_units / n_units
    n_batches = 1 if job.in_steps else own_units * job.reading.unit_batches
    least = n_batches * rates.least_rows
    if n_reductions is None:
        device = "cuda" if machine.cores is None else "cpu"
        n_reductions = STEP_REDUCTIONS[device] if job.in_steps else PASS_REDUCTIONS
    assigning = "small batch" if own < least else "assigning"
    computed = {
        assigning: own * rates.prepare_s + max(own, least) * rates.assign_s,
        "launching": n_batches * rates.batch_s,
        "moving": rates.move_s,
    }
    reduction_s = network.seconds(job.reduced_bytes, n_nodes, n_local, n_reductions)
    read_s, deal_s = own * rates.read_s, rows * rates.deal_s
    row_bytes = job.spec.row_bytes
    stages = {
        # The order of a window is made by one thread.
        "reading": read_s / machine.readers + deal_s / min(machine.readers, FULL_SLOTS),
        "storage": own * min(n_local, n_working) * row_bytes / machine.storage,
        "copying": own * rates.copy_s,
        **computed,
        "reduction": reduction_s,
    }
    in_turn = computed | {"reduction": reduction_s}
    overlapped = {name: stages[name] for name in ("reading", "storage", "copying")}
    overlapped[max(in_turn, key=in_turn.__getitem__)] = sum(in_turn.values())
    if machine.cores is not None:
        working_s = read_s + deal_s + sum(computed.values())
        reducing_s = n_reductions * network.core_s if n_processes > 1 else 0.0
        core_s = min(n_local, n_working) * working_s + n_local * reducing_s
        stages["cores"] = core_s / machine.cores
        overlapped["cores"] = stages["cores"] + reduction_s
    bound = max(overlapped, key=overlapped.__getitem__)
    return Prediction(n_processes, n_working, rows / overlapped[bound], bound, stages)


def where_it_ends(job: Job, predictions: list[Prediction]) -> str:
    """The number of processes beyond which more do not pay, and why.

    Each of `predictions` has twice the processes of the one before it.
    """
    for now, twice in pairwise(predictions):
        if twice.rows_per_s >= PAYS * now.rows_per_s:
            continue
        why = f"{twice.bound} takes longest"
        if twice.n_working == now.n_working:
            whole = "a window" if job.in_steps else "the array"
            why = f"{whole} has {job.n_units:,} blocks, one for a process"
        return f"pays up to {now.n_processes}; then {why}"
    last = predictions[-1]
    return f"pays up to {last.n_processes} at least; there {last.bound} takes longest"
