"""What a dry run says of several processes: their blocks, idle ones, bytes on the wire."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from streamkm.clustering.assignment import nearest_and_fixed_sums
from streamkm.clustering.lloyd import Lloyd
from streamkm.clustering.state import initial_state
from streamkm.clustering.step_sums import Sharing
from streamkm.config import ExecutionConfig, FitConfig
from streamkm.distributed.world import Pending, World
from streamkm.kernels.reference import ReferenceKernel
from streamkm.runs.dry_run.shares import (
    n_working,
    pass_bytes,
    share_facts,
    share_notes,
    step_bytes,
)
from streamkm.runs.fit import plan_fit
from streamkm.sources import open_source
from streamkm.sources.weights import open_weights
from streamkm.text import format_bytes
from tests.clustering.streams import CPU, batch_of
from tests.runs.processes import ROOT


class Wire(World):
    """Two processes of which the other has no rows; counts the bytes that are added up."""

    def __init__(self) -> None:
        super().__init__(0, 0, ["a", "b"])
        self.n_bytes = 0

    def _count(self, *tensors: torch.Tensor) -> None:
        self.n_bytes += sum(tensor.nbytes for tensor in tensors)

    sum_ = max_ = _count

    def sum_later(self, *tensors: torch.Tensor) -> Pending:
        self._count(*tensors)
        return Pending(lambda _: None, [])

    def gather_rows(self, rows: torch.Tensor) -> list[torch.Tensor]:
        return [rows]


@pytest.fixture
def plan(tmp_path):
    """Makes the plan of a fit of 1000 x 7 rows."""

    def plan(dtype="float32", *, weighted=False, **settings):
        path, weights = tmp_path / "x.npy", None
        np.save(path, np.random.default_rng(0).normal(size=(1000, 7)).astype(dtype))
        source = open_source(path)
        if weighted:
            np.save(tmp_path / "w.npy", np.ones(1000))
            weights = open_weights(tmp_path / "w.npy", 1000)
        config = FitConfig(k=3, batch_rows=100, **settings)
        return plan_fit(source, config, ExecutionConfig(device="cpu"), weights=weights)

    return plan


# Breaks when something is added to what processes exchange, and the report does not know it.
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bytes_are_those_that_are_added_up(plan, dtype, weighted):
    made = plan(dtype, weighted=weighted)
    rows = np.random.default_rng(1).normal(size=(20, 7)).astype(dtype)
    batch = batch_of(rows, torch.from_numpy(rows).dtype)
    if weighted:
        batch = replace(batch, weights_B=torch.ones(20, dtype=torch.float64))
    state = initial_state(batch.x_ND[:3].clone(), 0.0, weighted=weighted)
    kernel, wire = ReferenceKernel(3, 7, batch.x_ND.dtype, CPU), Wire()
    sharing = Sharing(wire)
    sharing.has_held = True
    nearest_and_fixed_sums(
        kernel, batch, state.centroids_KD, spherical=False, sharing=sharing,
        usual=torch.tensor(7.0).double(),
    )  # fmt: skip
    assert sharing.has_held == (not weighted)
    assert step_bytes(made) == wire.n_bytes
    of_pass = Wire()
    Lloyd(kernel, 0, world=of_pass).gathered(state)
    assert pass_bytes(made) == of_pass.n_bytes


# Breaks when the table of docs/scale-out.md is not what a dry run says.
def test_the_manual_has_these_bytes(plan):
    made, text = plan(), (ROOT / "docs/scale-out.md").read_text()
    rows = re.findall(r"^\| ([\d,]+) \| (\d+) \| (\S+ \wiB) \| (\S+ \wiB) \|$", text, re.MULTILINE)
    assert len(rows) == 4
    for k, n_features, of_step, of_pass in rows:
        source = SimpleNamespace(spec=SimpleNamespace(n_features=int(n_features)))
        config = replace(made.config, k=int(k.replace(",", "")))
        sized = replace(made, config=config, source=source)
        assert (format_bytes(step_bytes(sized)), format_bytes(pass_bytes(sized))) == (
            of_step, of_pass,
        )  # fmt: skip


@pytest.mark.parametrize(("n_processes", "algorithm"), [(3, "minibatch"), (4, "lloyd")])
def test_blocks_are_those_that_each_process_reads(plan, n_processes, algorithm):
    made = plan(algorithm=algorithm)
    made = replace(made, reading=replace(made.reading, block_rows=30, window_blocks=6))
    counts = [
        sum(
            len(window.reads)
            for window in made.reading.windows(0, rank=rank, n_processes=n_processes)
        )
        for rank in range(n_processes)
    ]
    facts = dict(share_facts(made, World(0, 0, ["a"] * n_processes), "a"))
    said = f"{n_processes} (a): each reads {min(counts)} to {max(counts)} of 34 blocks an epoch"
    assert facts["processes"] == said
    assert sum(counts) == 34


# Breaks when processes that have nothing to do are not told of, or those that have are.
@pytest.mark.parametrize(
    ("algorithm", "block_rows", "window_blocks", "busy"),
    [
        ("minibatch", 50, 4, 4),  # All have a block of each window.
        ("minibatch", 50, 2, 2),  # Steps wait for the two whose blocks are in the window.
        ("lloyd", 100, 2, 4),  # Passes do not.
        ("lloyd", 400, 3, 3),
        ("lloyd", 50, 4, 4),
    ],
)
def test_idle_processes_are_told(plan, algorithm, block_rows, window_blocks, busy):
    made = plan(algorithm=algorithm)
    reading = replace(made.reading, block_rows=block_rows, window_blocks=window_blocks)
    made = replace(made, reading=reading)
    assert n_working(made, "train", 4) == busy
    notes = share_notes(made, 4)
    assert len(notes) == (busy < 4)
    for note in notes:
        assert note.startswith(f"{4 - busy} of 4 processes are idle in training: ")
        assert f"; start {busy}, or" in note
