"""Steps in few launches and whole fits, by Triton's interpreter; run by test_kernel.py."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

import triton
import triton.language as tl

from streamkm.clustering import few_launches, lloyd, minibatch, reservoir
from streamkm.clustering.lloyd import Lloyd
from streamkm.clustering.minibatch import MiniBatch
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import Scaling
from streamkm.clustering.state import BY_NO_IMPROVEMENT, BY_TOL, RUNNING, initial_state
from streamkm.kernels.triton.kernel import TritonKernel
from streamkm.kernels.triton.state import uniform
from streamkm.tables import KERNELS
from tests.runs.helpers import Job, predicted

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
CPU = torch.device("cpu")


@triton.jit
def uniform_kernel(out_ptr, seed, n, BLOCK: tl.constexpr):  # noqa: N803
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, uniform(seed, i), mask=i < n)


class Philox:
    """torch, but for its generators and the numbers they draw, which are those of the kernels."""

    n_rows = 0
    n_offered = reservoir.OFFERED_PER_BATCH

    def __getattr__(self, name):
        return getattr(torch, name)

    def rand(self, n, *, generator, **_):
        first, stride = reservoir.offered_of(generator.initial_seed(), self.n_rows, self.n_offered)
        out = torch.empty(self.n_rows, dtype=torch.float64)
        uniform_kernel[(1,)](
            out, generator.initial_seed(), self.n_rows, BLOCK=triton.next_power_of_2(self.n_rows)
        )
        return out[first::stride].clone()


def states_after(monkeypatch, batches, c_KD, *, few: bool, made=None, **options):
    """The state after each batch, by torch's operations or in few launches.

    `made` makes the algorithm of a kernel and options; mini-batches if it is None.
    """
    philox = Philox()
    monkeypatch.setattr("streamkm.clustering.reservoir.torch", philox)
    n_rows, k = max(len(x) for x in batches), len(c_KD)
    kernel = TritonKernel(n_rows, k, torch.float32, CPU)
    d = c_KD.shape[1]
    scaling = Scaling(torch.zeros(d).double(), torch.ones(d).double(), normalize=False)
    if options.pop("affine", False):
        scaling = Scaling(
            torch.full((d,), 0.25).double(), torch.full((d,), 2.0).double(), normalize=False
        )
    prepare = Preparation.for_kernel(
        scaling, kernel, batch_rows=n_rows, stored=batches[0].dtype, dtype=torch.float32
    )
    takes = few_launches.takes_few_launches if few else lambda *_, **__: False
    for module in (minibatch, lloyd):
        monkeypatch.setattr(module, "takes_few_launches", takes)
    tolerance = options.pop("tolerance", 0.0)
    state = initial_state(c_KD.clone(), tolerance)
    if made is None:
        algorithm = MiniBatch(kernel, 500, seed=3, batch_rows=n_rows, **options)
    else:
        algorithm = made(kernel, seed=3, **options)
        philox.n_offered = n_rows if algorithm.closing else 16
    found = []
    for index, x_ND in enumerate(batches):
        if index % 3 == 0 and (made is None or index == 0):
            algorithm.begin_epoch_(state)
        philox.n_rows = len(x_ND)
        rows = slice(0, len(x_ND)) if index % 2 else torch.arange(len(x_ND)).flip(0).int()
        batch = prepare(x_ND.clone(), rows)
        algorithm.update_(state, batch, epoch=index // 3, index=index % 3)
        found.append({name: tensor.clone() for name, tensor in state.tensors().items()})
    return found


# Breaks when the kernels of a step do anything else than the operations of torch.
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {"rate": "annealed", "epochs": 3}),
        (torch.uint8, {"max_no_improvement": 1}),
        (torch.float32, {"tolerance": 300.0, "affine": True}),
    ],
    ids=["annealed", "patience", "tolerance"],
)
def test_a_step_is_that_of_torch(monkeypatch, rng, dtype: torch.dtype, options) -> None:
    for module in ("fixed", "gather", "move", "offer", "step"):
        monkeypatch.setattr(f"streamkm.kernels.ops.{module}.instruction_sets", tuple)
    monkeypatch.setattr("streamkm.clustering.step_sums.instruction_sets", tuple)
    monkeypatch.setattr(reservoir, "OFFERED_PER_BATCH", 16)
    d, k = 3, 5
    batches = []
    for index in range(4):
        n = 30 - index
        rows = rng.normal(size=(n, d)) * 9 + rng.integers(0, 3, (n, 1)) * 20 + 60
        batches.append(torch.from_numpy(rows).clamp(0, 250).to(dtype))
    if dtype == torch.float32:
        batches[1][3, 2], batches[2][5] = torch.nan, 1e25
    c_KD = batches[0][:k].float() + 1
    c_KD[-1] = 5000.0  # Of no row.
    expected = states_after(monkeypatch, batches, c_KD, few=False, **options)
    found = states_after(monkeypatch, batches, c_KD, few=True, **options)
    for step, (these, those) in enumerate(zip(found, expected, strict=True)):
        for name, tensor in those.items():
            exact = name not in ("shift", "reservoir_keys_R")
            torch.testing.assert_close(
                these[name], tensor, rtol=0 if exact else 1e-12, atol=0, equal_nan=True,
                msg=f"{name} differs after step {step}",
            )  # fmt: skip
    last = expected[-1]
    stops = {"tolerance": BY_TOL, "max_no_improvement": BY_NO_IMPROVEMENT, "rate": RUNNING}
    assert int(last["stop"]) == stops[next(iter(options))]
    assert (int(last["n_steps"]) < len(batches)) == ("rate" not in options)
    assert (int(last["no_improvement"]) > 0) == ("max_no_improvement" in options)


# Breaks when the kernels of a batch of a pass do anything else than the operations of torch: rows
# of all sizes raise grades by one and by more, of sums and of squared distances.
@pytest.mark.parametrize(
    ("dtype", "closing", "sizes"),
    [
        (torch.float32, False, (1e-18, 1e-3, 1e16)),
        (torch.uint8, True, (1.0, 1.0)),
    ],
    ids=["float32", "uint8, closing"],
)
def test_a_batch_of_a_pass_is_that_of_torch(
    monkeypatch, rng, dtype: torch.dtype, closing: bool, sizes: tuple[float, ...]
) -> None:
    for module in ("fixed", "gather", "graded", "move", "offer"):
        monkeypatch.setattr(f"streamkm.kernels.ops.{module}.instruction_sets", tuple)
    monkeypatch.setattr(lloyd, "OFFERED_PER_BATCH", 16)
    # In one read sums are rounded to float32.
    monkeypatch.setattr("streamkm.kernels.triton.kernel.fits_one_read", lambda *_: False)
    d, k = 3, 5
    batches = []
    for index, size in enumerate(sizes):
        n = 30 - index
        rows = rng.normal(size=(n, d)) * 9 + rng.integers(0, 3, (n, 1)) * 20 + 60
        batches.append((torch.from_numpy(rows).clamp(0, 250).round() * size).to(dtype))
    if dtype == torch.float32:
        batches[1][3, 2], batches[2][5] = torch.nan, 1e25
    c_KD = batches[0][:k].float() + 1
    c_KD[-1] = 1e9  # Of no row.
    expected, found = (
        states_after(monkeypatch, batches, c_KD, few=few, made=Lloyd, closing=closing)
        for few in (False, True)
    )
    for step, (these, those) in enumerate(zip(found, expected, strict=True)):
        for name, tensor in those.items():
            exact = tensor.dtype != torch.float64 and not name.startswith("pass_total")
            torch.testing.assert_close(
                these[name], tensor, rtol=0 if exact else 1e-12, atol=0, equal_nan=True,
                msg=f"{name} differs after step {step}",
            )  # fmt: skip
    last = expected[-1]
    assert int(last["n_steps"]) == (0 if closing else len(batches))
    if dtype == torch.float32:
        grades = [int(each["pass_grades_K"].max()) for each in expected]
        assert [after - before for before, after in pairwise(grades)] == [2, 1]


# Breaks when a fit on a GPU finds other clusters than one on a CPU.
@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        ("float32", {"rate": "annealed", "epochs": 2}),
        ("uint8", {"algorithm": "lloyd", "epochs": 2, "tol": 0.0}),
    ],
    ids=["minibatch", "lloyd"],
)
def test_a_fit_is_that_of_the_cpu(monkeypatch, tmp_path, rng, dtype, settings) -> None:
    entry = KERNELS["triton"]
    monkeypatch.setitem(KERNELS, "triton", replace(entry, devices=("cpu",)))
    rows = rng.normal(size=(90, 4)) * 5 + rng.integers(0, 4, (90, 1)) * 30 + 60
    np.save(tmp_path / "x.npy", rows.clip(0, 250).astype(dtype))
    found = []
    for kernel in ("cpu", "triton"):
        job = Job(
            tmp_path / "x.npy", tmp_path / kernel,
            {"k": 4, "batch_rows": 30, "seed": 3, "init": "k-means++", **settings},
        )  # fmt: skip
        job.attempt(kernel=kernel)
        labels = predicted(job.run, job.source, tmp_path / f"{kernel}.npy", kernel=kernel)
        found.append((labels, load_file(job.run / "model.safetensors")))
    (labels, model), (labels_there, model_there) = found
    assert np.array_equal(labels, labels_there)
    assert np.array_equal(model["counts"], model_there["counts"])
    np.testing.assert_allclose(model_there["centroids"], model["centroids"], rtol=1e-6)
    # In uint8 sums are whole numbers, on whatever device.
    np.testing.assert_allclose(
        model_there["sums"], model["sums"], rtol=1e-6 if dtype == "float32" else 0
    )
