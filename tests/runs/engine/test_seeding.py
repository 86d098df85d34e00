"""Seeding within a run: how good it is, what is said of it, and how it is stopped."""

from __future__ import annotations

import signal
import time
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import zarr
from sklearn.datasets import load_digits

from bench.process import import_rss, peak_rss
from streamkm.clustering.seeding.kmeans_parallel import Candidates
from streamkm.clustering.seeding.plan import N_ROUNDS
from streamkm.config import FitConfig
from streamkm.distributed.world import World
from streamkm.runs.engine.agreement import Agreement
from streamkm.runs.engine.run_kernel import RunKernel
from streamkm.runs.engine.seeding import StageRunner
from streamkm.runs.planning.memory import fit_bytes
from streamkm.runs.storage.checkpoint import load_checkpoint
from streamkm.runs.storage.model import load_model
from streamkm.sources import open_source
from streamkm.stream.plan import plan_reading
from tests.runs.helpers import RESULTS, Job, clusters, metrics_of, steps_saved, untimed
from tests.runs.processes import finish, run, start, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.kernels import Kernel

MIB = 1 << 20


def job_on(tmp_path: Path, rows: np.ndarray, *, chunk: int, **settings: Any) -> Job:
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=rows.shape, chunks=(chunk, rows.shape[1]), dtype=rows.dtype
    )
    array[:] = rows
    return Job(tmp_path / "x.zarr", tmp_path / "run", settings)


# ---- several processes ---------------------------------------------------------


# Breaks when the quick steps of one stage decide how seldom processes look for each other in the
# next, or when nobody looks within a long step.
@pytest.mark.usefixtures("small_windows")
def test_processes_look_for_each_other_at_every_stage_and_amid_its_steps(tmp_path, monkeypatch):
    events: list[str] = []

    def noted(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def call(self, *arguments, **more):
            events.append(name)
            return real(self, *arguments, **more)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((StageRunner, "_stage"), (Agreement, "begin"), (World, "check")):
        noted(owner, name)
    noted(StageRunner, "_as_first")
    job_on(tmp_path, clusters(4000, 8, n_clusters=40), chunk=400, k=40).attempt()
    stages = " ".join(events).split("_stage ")[1:]
    assert len(stages) > 2
    assert all(stage.startswith("begin ") for stage in stages)
    # Each step ends with a look; some look in between.
    assert any("check check" in stage.split(" begin")[0] for stage in stages)


# ---- how good it is ---------------------------------------------------------


# Breaks when any part of seeding stops working: k-means++ and Lloyd alone miss some of 30
# clusters in most runs. Sorted, a sample of few blocks would miss whole clusters.
@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("order", ["mixed", "sorted"])
@pytest.mark.parametrize("init", ["auto", "k-means||"])
def test_every_separated_cluster_is_found(init, order, tmp_path):
    rng = np.random.default_rng(7)
    centres = rng.normal(scale=10**0.5, size=(30, 16))
    labels = rng.integers(30, size=12_000)
    if order == "sorted":
        labels = np.sort(labels)
    rows = (centres[labels] + rng.normal(size=(12_000, 16))).astype(np.float32)
    job = job_on(tmp_path, rows, chunk=400, k=30, init=init)
    for seed in range(4):
        job.settings["seed"], job.run = seed, tmp_path / f"{seed}"
        job.attempt()
        distances = torch.cdist(
            torch.as_tensor(centres).float(), torch.as_tensor(load_model(job.run).centroids)
        )
        assert len(set(distances.argmin(dim=1).tolist())) == 30, seed
        assert float(distances.min(dim=1).values.max()) < 1.0


# Breaks when breaths find nothing: the excess of passes alone is 1.7 %. The
# best of 30 converged Lloyd runs is 1,165,188.
def test_digits_by_default(tmp_path):
    rows = load_digits().data
    job = job_on(tmp_path, rows, chunk=500, k=10)
    inertias = []
    for seed in range(7):
        job.settings["seed"], job.run = seed, tmp_path / f"{seed}"
        job.attempt()
        centroids = torch.as_tensor(load_model(job.run).centroids).double()
        sq_distances = torch.cdist(torch.as_tensor(rows), centroids).min(dim=1).values.square()
        inertias.append(float(sq_distances.sum()))
    assert np.median(inertias) <= 1.006 * 1_165_188.3


# Breaks when the worse of two is kept, or all are the same.
def test_the_best_of_several_is_kept(tmp_path):
    rng = np.random.default_rng(3)
    centres = rng.normal(scale=4, size=(12, 4))
    rows = (centres[rng.integers(12, size=3000)] + rng.normal(size=(3000, 4))).astype(np.float32)
    job = job_on(tmp_path, rows, chunk=500, k=12, init="random", algorithm="lloyd", epochs=1)
    one: list[float] = []
    many: list[float] = []
    for seed in range(6):
        for n_init, inertias in ((1, one), (12, many)):
            job.settings |= {"seed": seed, "n_init": n_init}
            job.run = tmp_path / f"{seed}-{n_init}"
            job.attempt()
            # Of the seeds: those of the pass are counted as it goes.
            passes = [r for r in metrics_of(job.run) if r["phase"] == "train"]
            inertias.append(passes[-1]["inertia_per_row"])
    assert np.mean(many) < 0.9 * np.mean(one)
    assert all(best <= first for best, first in zip(many, one, strict=True))


# Breaks when the sample is drawn without regard to weights: of 100,000 rows 32,768 are drawn,
# so that one of four heavy ones is missed by nearly all seeds.
@pytest.mark.parametrize("n_init", [1, 2])
def test_a_row_that_weighs_much_gets_its_cluster(n_init, tmp_path):
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(100_000, 16)).astype(np.float32)
    weights = np.full(len(rows), 2.0)
    heavy = np.array([11_111, 20_000, 20_001, 39_999])
    rows[heavy] += 100 * rng.normal(size=(4, 16)).astype(np.float32)
    weights[heavy] = 4000
    job = job_on(tmp_path, rows, chunk=5000, k=6, n_init=n_init)
    job.weights = tmp_path / "w.npy"
    np.save(job.weights, weights)
    for seed in range(2):
        job.settings["seed"], job.run = seed, tmp_path / f"{seed}"
        job.attempt()
        centroids = torch.as_tensor(load_model(job.run).centroids)
        distances = torch.cdist(torch.as_tensor(rows[heavy]), centroids)
        assert float(distances.min(dim=1).values.max()) < 1e-2


# Breaks when a product of two weights, or one divided by another, is 0 or infinite: seeds then
# cost up to three times as much.
@pytest.mark.parametrize("k", [10, 70])
@pytest.mark.parametrize("init", ["auto", "k-means||"])
def test_light_and_heavy_weights_seed_alike(k, init, tmp_path):
    rng = np.random.default_rng(8)
    rows = rng.normal(size=(80, 4))[rng.integers(80, size=1500)] + rng.normal(0, 0.1, (1500, 4))
    weights, found = rng.uniform(0.1, 1, size=len(rows)), []
    job = job_on(tmp_path, rows, chunk=500, k=k, init=init)
    job.weights = tmp_path / "w.npy"
    for exponent in (0, -990, 990):
        np.save(job.weights, weights * 2.0**exponent)
        job.run = tmp_path / f"{exponent}"
        job.attempt()
        found.append(load_model(job.run).centroids)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


# ---- what is said -----------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "k", "said"),
    [
        ("auto", 70, "a tree of 5 -> 70 clusters, 8 exchanges on 900 of 900 rows, best of 2"),
        ("auto", 5, "breaths, Lloyd's algorithm on 900 of 900 rows"),
        ("k-means||", 5, "candidates from 5 rounds of k-means||"),
        ("k-means++", 5, "greedy k-means++ on 900 of 900 rows, best of 2"),
        ("random", 5, "random rows on 900 of 900 rows"),
    ],
)
def test_what_was_chosen_and_what_it_cost_is_said(init, k, said, tmp_path, capsys):
    rows = np.random.default_rng(0).normal(size=(900, 3)).astype(np.float32)
    job_on(tmp_path, rows, chunk=300, k=k, init=init, n_init=2).attempt()
    line = next(s for s in untimed(capsys.readouterr().err) if s.startswith("seeded"))
    assert line.startswith(f"seeded ({init})")
    assert said in line
    assert " s" in line.rpartition(";")[2]
    record = next(r for r in metrics_of(tmp_path / "run") if r["phase"] == "seeded")
    assert record["seconds"] >= 0
    assert record["sample_rows"] == 900


@pytest.mark.parametrize("init", ["auto", "k-means||", "k-means++", "random"])
@pytest.mark.parametrize("k", [5, 70])
def test_fewer_distinct_rows_than_clusters_is_said(init, k, tmp_path, capsys):
    rows = np.repeat(np.eye(3, 4, dtype=np.float32), 100, axis=0)
    job = job_on(tmp_path, rows, chunk=50, k=k, init=init, epochs=2)
    job.attempt()
    assert f"fewer than {k} distinct rows" in capsys.readouterr().err
    found = load_model(job.run).centroids
    assert np.isfinite(found).all()
    assert {tuple(row) for row in found.tolist()} >= {tuple(row) for row in np.eye(3, 4).tolist()}


# Breaks when copies of one row get several centroids while other rows have none.
@pytest.mark.parametrize("init", ["auto", "k-means||", "k-means++"])
def test_as_many_clusters_as_distinct_rows(init, tmp_path, capsys):
    rng = np.random.default_rng(1)
    rows = np.concatenate((np.ones((2000, 3)), 10 * rng.normal(size=(7, 3)))).astype(np.float32)
    job = job_on(tmp_path, rows, chunk=400, k=8, init=init)
    job.attempt()
    found = torch.as_tensor(load_model(job.run).centroids)
    labels = torch.cdist(torch.as_tensor(rows), found).argmin(dim=1)
    assert len(labels.unique()) == 8
    assert "distinct" not in capsys.readouterr().err


# ---- how it is stopped ------------------------------------------------------


# A real process, stopped while it seeds: it answers at once, and goes on to the same bits.
@pytest.mark.slow
def test_stopped_in_the_middle_of_seeding(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(60_000, 16)).astype(np.float32))
    arguments = ["fit", tmp_path / "x.npy", "--device", "cpu", "--k", 2000]
    assert run(*arguments, "--out", tmp_path / "whole")[0] == 0
    out = tmp_path / "stopped"
    process = start(*arguments, "--out", out, "--checkpoint-every", 2)
    assert wait_until(lambda: bool(steps_saved(out)), process)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    status, stderr = finish(process)
    assert status == 75, stderr
    assert time.monotonic() - began < 5
    stopped = load_checkpoint(out / "checkpoints")
    assert stopped is not None
    assert stopped.manifest["cursor"]["phase"] == "seed"
    assert run(*arguments, "--out", out, "--resume")[0] == 0
    for name in RESULTS:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# ---- memory -----------------------------------------------------------------


# Breaks when a stage allocates what the plan does not count. The plan is that of the run, slots
# and readers included; a tenth is for what importing takes on top of what it takes alone.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "k", "init"),
    [((60_000, 64), 1500, "auto"), ((60_000, 64), 1500, "k-means||"), ((400_000, 192), 8, "auto")],
)
def test_peak_memory_is_within_the_plan(shape, k, init, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.npy"
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for start_row in range(0, len(rows), 50_000):
        part = rows[start_row : start_row + 50_000]
        part[:] = rng.integers(256, size=part.shape)
    spec = open_source(str(path)).spec
    config = FitConfig(k=k, init=init).resolved(*shape)
    plan = plan_reading(spec, batch_rows=config.batch_rows, seed=0)
    fixed = fit_bytes(spec, plan, config, on_host=True)
    budget = fixed + 2 * (plan.window_rows * spec.row_bytes + spec.scratch_bytes)
    peak = peak_rss(
        "-m", "streamkm", "fit", str(path), "--k", str(k), "--init", init, "--device", "cpu",
        "--max-host-memory", str(budget), "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert peak <= 1.1 * (import_rss() + budget / MIB)


# Breaks when the kernel of a round, which holds a copy of the candidates so far, is kept while they
# are joined with those of the round, or beside the kernel of the next.
def test_the_kernel_of_a_round_is_freed_with_it(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", clusters(600, 4))
    made: list[weakref.ref[Kernel]] = []
    make, join = RunKernel.for_centroids, Candidates.finish_round_
    n_alive: list[int] = []

    def counted(run_kernel: RunKernel, n_centroids: int) -> Kernel:
        n_alive.append(sum(kernel() is not None for kernel in made))
        kernel = make(run_kernel, n_centroids)
        made.append(weakref.ref(kernel))
        return kernel

    def joined(candidates: Candidates) -> None:
        n_alive.append(sum(kernel() is not None for kernel in made))
        join(candidates)

    monkeypatch.setattr(RunKernel, "for_centroids", counted)
    monkeypatch.setattr(Candidates, "finish_round_", joined)
    Job(tmp_path / "x.npy", tmp_path / "run", {"k": 5, "init": "k-means||"}).attempt()
    assert len(n_alive) > 2 * N_ROUNDS
    assert not any(n_alive[: 2 * N_ROUNDS])


# Breaks when a sample in which most rows are of no use is taken for the whole array.
@pytest.mark.parametrize("init", ["auto", "k-means||", "random"])
def test_rows_of_use_are_looked_for_beyond_the_first_sample(init, tmp_path):
    rng = np.random.default_rng(0)
    rows = np.full((60_000, 3), np.nan, np.float32)
    rows[rng.choice(60_000, 150, replace=False)] = rng.normal(size=(150, 3))
    job = job_on(tmp_path, rows, chunk=5000, k=100, init=init, nan="drop")
    job.attempt()
    assert load_model(job.run).counts_K.sum() == 150
