"""A sweep: the bytes of each fit alone, one read for all, and resuming after anything."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from streamkm.config import Cadence, ExecutionConfig, FitConfig
from streamkm.errors import (
    ConfigError,
    InputError,
    Interrupted,
    MemoryBudgetError,
    NonFiniteError,
    ResumeError,
)
from streamkm.runs.fit import fit
from streamkm.runs.planning import residency
from streamkm.runs.reporting.signals import StopRequest
from streamkm.runs.sweeping import figures, measuring
from streamkm.runs.sweeping import sweep as verb
from streamkm.runs.sweeping.measuring import measure
from streamkm.runs.sweeping.sweep import Sweep, sweep
from streamkm.sources import open_source
from streamkm.sources.flat import FlatSource
from streamkm.sources.weights import open_weights
from tests.runs.helpers import RESULTS, StopAfter, cli, clusters

KS = (3, 5, 9)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", clusters(6000, 7))
    return tmp_path / "x.npy"


def swept(
    path: Path,
    out: Path | None,
    ks: Any = KS,
    seeds: Any = (0,),
    *,
    resume: bool = False,
    stop: StopRequest | None = None,
    weights: Path | None = None,
    execution: dict[str, Any] | None = None,
    all_rows: bool = False,
    spaces: dict[str, Any] | None = None,
    **settings: Any,
) -> Sweep:
    source = open_source(path)
    try:
        return sweep(
            source,
            FitConfig(k=1, **settings),
            ks,
            seeds,
            ExecutionConfig(**{"device": "cpu", **(execution or {})}),
            out,
            resume=resume,
            stop_request=stop or StopRequest(),
            weights=open_weights(weights, source.spec.n_rows) if weights else None,
            all_rows=all_rows,
            **(spaces or {}),
            quiet=True,
        )
    finally:
        source.close()


def alone(path: Path, run: Path, weights: Path | None = None, **settings: Any) -> dict[str, bytes]:
    """What a fit alone writes."""
    source = open_source(path)
    fit(
        source,
        FitConfig(**settings),
        ExecutionConfig(device="cpu"),
        run,
        resume=False,
        stop_request=StopRequest(),
        quiet=True,
        weights=open_weights(weights, source.spec.n_rows) if weights else None,
    )
    source.close()
    return results(run)


def results(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in RESULTS}


# ---- bytes ------------------------------------------------------------------------------------


# Breaks when fits that share windows change them for each other, or take them in another order.
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_rows": 256, "epochs": 3},
        {"algorithm": "lloyd", "epochs": 7},
        {"scale": "zscore"},
        {"metric": "cosine"},
        {"scale": "l2", "algorithm": "lloyd", "epochs": 3},
        {"init": "k-means||"},
        {"nan": "drop", "metric": "cosine"},
        {"nan": "drop", "algorithm": "lloyd", "epochs": 3},
    ],
    ids=str,
)
def test_each_fit_has_the_bytes_of_its_own(
    tmp_path: Path, path: Path, settings: dict[str, Any]
) -> None:
    if settings.get("nan") == "drop":
        x = np.load(path)
        x[::97, 2] = np.nan
        np.save(path, x)
    swept(path, tmp_path / "sweep", **settings)
    for k in KS:
        own = alone(path, tmp_path / f"own-{k}", k=k, **settings)
        assert results(tmp_path / "sweep" / f"k-{k:04}") == own, k


# Breaks when a fit that has scaled draws its sample over a window that the next has not had yet.
@pytest.mark.parametrize("settings", [{"scale": "zscore"}, {"init": "k-means||"}], ids=str)
def test_each_fit_has_the_bytes_of_its_own_in_many_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr("streamkm.stream.plan.WINDOW_BYTES", 20_000)
    # Rows that drift, so that no window stands for another.
    x = clusters(60_000, 7) + np.linspace(0, 50, 60_000)[:, None]
    zarr.create_array(tmp_path / "x.zarr", data=x.astype(np.float32), chunks=(200, 7))
    swept(tmp_path / "x.zarr", tmp_path / "sweep", **settings)
    for k in KS:
        own = alone(tmp_path / "x.zarr", tmp_path / f"own-{k}", k=k, **settings)
        assert results(tmp_path / "sweep" / f"k-{k:04}") == own, k


# Breaks when seeds share what is read in another order, or fits get weights of other rows.
def test_seeds_and_weights(tmp_path: Path, path: Path) -> None:
    weights = tmp_path / "w.npy"
    np.save(weights, np.random.default_rng(0).integers(0, 4, 6000).astype(np.float64))
    found = swept(path, tmp_path / "sweep", (3, 9), (4, 1), weights=weights)
    assert [(each.k, each.seed) for each in found.models] == [(3, 1), (3, 4), (9, 1), (9, 4)]
    for k, seed, name in ((3, 1, "k-0003"), (9, 4, "k-0009-seed-4")):
        own = alone(path, tmp_path / name, weights, k=k, seed=seed)
        assert results(tmp_path / "sweep" / name) == own


# Breaks when spaces share what is scaled, or a figure of one is marked the best of another.
def test_scales_and_metrics(tmp_path: Path, path: Path) -> None:
    out, spaces = tmp_path / "sweep", {"scales": ["zscore", "none"], "metrics": ["cosine"]}
    with pytest.raises(ConfigError, match="cosine compares directions"):
        swept(path, out, spaces={"scales": ["zscore"], "metrics": ["cosine"]})
    spaces["metrics"].append("euclidean")
    with pytest.raises(Interrupted):
        swept(path, out, (3, 5), (0, 1), stop=StopAfter(150), spaces=spaces, batch_rows=512)
    found = swept(path, out, (3, 5), (0, 1), resume=True, spaces=spaces, batch_rows=512)
    names = ["none-euclidean", "none-cosine", "zscore-euclidean"]
    assert [row["name"] for row in found.figures[::4]] == [f"k-0003-{name}" for name in names]
    for name, settings in (
        ("k-0003-none-euclidean", {}),
        ("k-0005-none-cosine-seed-1", {"metric": "cosine", "seed": 1}),
        ("k-0005-zscore-euclidean", {"scale": "zscore"}),
    ):
        own = alone(path, tmp_path / name, batch_rows=512, **{"k": int(name[5])} | settings)
        assert results(out / name) == own
    single = swept(path, None, (3, 5), (0, 1), scale="zscore", batch_rows=512)
    of_zscore = [row for row in found.figures if row["scale"] == "zscore"]
    more = {"scale": "zscore", "metric": "euclidean"}
    for row, of_one in zip(of_zscore, single.figures, strict=True):
        assert row == of_one | more | {"name": row["name"]}
    assert found.stability[-2:] == [each | more for each in single.stability]
    assert found.recommendation["spaces"][-1] == more | single.recommendation
    lines = str(found).splitlines()
    assert lines[0].split()[:4] == ["k", "seed", "scale", "metric"]
    assert "cannot be compared" in str(found)
    with pytest.raises(ResumeError, match="scale: "):
        swept(path, out, (3, 5), resume=True, batch_rows=512)
    assert cli("info", out) == 0


# Breaks when groups of a small memory leave out a fit, or change its bytes.
def test_fits_that_do_not_fit_together_take_turns(
    tmp_path: Path, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    budget = "100MiB"
    assert cli("sweep", path, "--k", 3, 5, 9, "--out", out, "--max-host-memory", budget,
               "--device", "cpu", "--read-threads", 1) == 0  # fmt: skip
    assert "groups take turns" in capfd.readouterr().err
    for k in KS:
        assert results(out / f"k-{k:04}") == alone(path, tmp_path / f"own-{k}", k=k)


# ---- reads ------------------------------------------------------------------------------------


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every read of a file from here on."""
    found: list[int] = []
    before = FlatSource.read

    def read(self: FlatSource, rows: Any, out: np.ndarray) -> None:
        found.append(out.nbytes)
        before(self, rows, out)

    together = FlatSource.read_together

    def read_together(self: FlatSource, reads: Any, out: np.ndarray) -> bool:
        found.append(out.nbytes)
        return together(self, reads, out)

    monkeypatch.setattr(FlatSource, "read", read)
    monkeypatch.setattr(FlatSource, "read_together", read_together)
    return found


# Breaks when fits read for themselves, or rows that fit in memory are read twice.
@pytest.mark.parametrize("settings", [{}, {"scale": "zscore", "epochs": 2}], ids=str)
def test_rows_that_fit_in_memory_are_read_once(
    tmp_path: Path, path: Path, read_bytes: list[int], settings: dict[str, Any]
) -> None:
    swept(path, tmp_path / "sweep", range(3, 11), **settings)
    assert sum(read_bytes) == np.load(path).nbytes


# Breaks when fits read for themselves, or are measured in a read of their own.
@pytest.mark.parametrize("settings", [{}, {"algorithm": "lloyd", "epochs": 3}], ids=str)
def test_eight_fits_read_what_one_reads(
    tmp_path: Path,
    read_bytes: list[int],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    x = clusters(300_000, 32)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(residency, "available_memory", lambda: 0)  # Nothing stays in memory.
    alone(tmp_path / "x.npy", tmp_path / "own", k=10, **settings)
    of_one = sum(read_bytes)
    assert of_one >= 2 * x.nbytes
    read_bytes.clear()
    # Room for the rows of the seedings alone.
    monkeypatch.setattr(measuring, "kept_bytes", lambda *_, **__: x.nbytes // 8)
    found = swept(tmp_path / "x.npy", tmp_path / "sweep", range(3, 11), **settings)
    assert sum(read_bytes) <= 1.05 * of_one
    assert {row["sampled_rows"] for row in found.figures} == {figures.MOST_ROWS}
    assert results(tmp_path / "sweep/k-0010") == results(tmp_path / "own")
    # Figures of all rows are taken later too, in one more read.
    read_bytes.clear()
    again = swept(tmp_path / "x.npy", tmp_path / "sweep", range(3, 11), resume=True, all_rows=True,
                  **settings)  # fmt: skip
    assert x.nbytes <= sum(read_bytes) <= 1.01 * x.nbytes
    for row, of_all in zip(found.figures, again.figures, strict=True):
        assert "sampled_rows" not in of_all
        for name in ("silhouette", "simplified_silhouette", "davies_bouldin"):
            assert row[name] == pytest.approx(of_all[name], rel=0.03)


# ---- resuming ---------------------------------------------------------------------------------


# Breaks when a stopped fit loses its place, or fits that stand at other windows share one.
@pytest.mark.parametrize(
    "settings", [{"batch_rows": 512}, {"algorithm": "lloyd", "epochs": 4, "batch_rows": 512}]
)
def test_a_sweep_goes_on_wherever_it_was_stopped(
    tmp_path: Path, path: Path, settings: dict[str, Any]
) -> None:
    swept(path, tmp_path / "whole", **settings)
    out, resume, stopped = tmp_path / "sweep", False, 0
    for stop_at in (3, 30, 55, 90, 140, 180, None):
        try:
            swept(
                path, out, resume=resume, stop=StopAfter(stop_at),
                execution={"checkpoint_every": Cadence(batches=3)}, **settings,
            )  # fmt: skip
            break
        except Interrupted:
            stopped, resume = stopped + 1, True
    assert stopped > 2
    for k in KS:
        assert results(out / f"k-{k:04}") == results(tmp_path / "whole" / f"k-{k:04}")
    assert (out / "sweep.json").read_bytes() == (tmp_path / "whole/sweep.json").read_bytes()


# Breaks when a K that is added makes the others begin anew, or is left out of the table.
def test_one_k_more(tmp_path: Path, path: Path) -> None:
    out = tmp_path / "sweep"
    with pytest.raises(Interrupted):
        swept(path, out, (3, 9), stop=StopAfter(60), batch_rows=512)
    before = {p: p.stat().st_mtime_ns for p in out.glob("k-*/config.json")}
    assert len(before) == 2
    found = swept(path, out, (3, 5), resume=True, batch_rows=512)
    assert [each.k for each in found.models] == [3, 5, 9]
    assert [row["k"] for row in found.figures] == [3, 5, 9]
    assert all(p.stat().st_mtime_ns == then for p, then in before.items())
    for k in KS:
        own = alone(path, tmp_path / f"own-{k}", k=k, batch_rows=512)
        assert results(out / f"k-{k:04}") == own


# Breaks when a sample is of rows that were read before the sweep was stopped, and of no others.
def test_a_sample_of_a_sweep_that_was_stopped(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "kept_bytes", lambda *_, **__: 1)
    monkeypatch.setattr(figures, "MOST_ROWS", 900)
    monkeypatch.setattr(figures, "LEAST_ROWS", 900)
    swept(path, tmp_path / "whole", batch_rows=512)
    out, resume = tmp_path / "sweep", False
    for stop_at in (30, 60, None):
        try:
            swept(path, out, resume=resume, stop=StopAfter(stop_at), batch_rows=512)
        except Interrupted:
            resume = True
    assert (out / "sweep.json").read_bytes() == (tmp_path / "whole/sweep.json").read_bytes()
    # Nor does it matter that all fits were finished before: then the sample alone is read.
    later, stop = tmp_path / "later", StopRequest()

    def signalled(*arguments: Any, **more: Any) -> Any:
        stop.signal_name = "SIGTERM"
        return measure(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(verb, "measure", signalled)
        with pytest.raises(Interrupted, match="all fits are finished"):
            swept(path, later, batch_rows=512, stop=stop)
    swept(path, later, batch_rows=512, resume=True)
    assert (later / "sweep.json").read_bytes() == (out / "sweep.json").read_bytes()


# Breaks when a finished sweep is measured again, or cannot be asked for its table again.
def test_a_finished_sweep_has_nothing_left_to_do(
    tmp_path: Path, path: Path, read_bytes: list[int]
) -> None:
    first = swept(path, tmp_path / "sweep")
    read_bytes.clear()
    again = swept(path, tmp_path / "sweep", resume=True)
    assert (again.figures, str(again)) == (first.figures, str(first))
    assert sum(read_bytes) == 0


# Breaks when a signal during the last read looks like a failure, or costs the finished fits.
def test_a_signal_while_it_measures(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, stop = tmp_path / "sweep", StopRequest()

    def signalled(*arguments: Any, **more: Any) -> Any:
        stop.signal_name = "SIGTERM"
        return measure(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(verb, "measure", signalled)
        with pytest.raises(Interrupted, match="all fits are finished, their figures are not"):
            swept(path, out, stop=stop)
    before = {p: p.stat().st_mtime_ns for p in out.glob("k-*/model.safetensors")}
    assert len(before) == len(KS)
    assert len(swept(path, out, resume=True).figures) == len(KS)
    assert before == {p: p.stat().st_mtime_ns for p in before}


# Breaks when a budget that is too small for the figures shows after hours of fitting.
def test_the_memory_for_figures_is_planned_first(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "predict_bytes", lambda *_, **__: 1 << 40)
    with pytest.raises(MemoryBudgetError, match="give at least"):
        swept(path, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


# Breaks when `info` shows other figures than the sweep did, or none of a sweep under way.
def test_info_describes_a_sweep(
    tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    with pytest.raises(Interrupted):
        swept(path, out, (3, 9), stop=StopAfter(60), batch_rows=512)
    assert cli("info", out) == 0
    said = capsys.readouterr().out
    assert "0 of 2 fits finished\nfigures      none yet; add --resume to its command" in said
    assert re.search(r"\nk-0009 {7}\w+, epoch \d+, batch \d+\n$", said)
    found = swept(path, out, (3, 9), resume=True, batch_rows=512)
    assert cli("info", out) == 0
    assert str(found) in capsys.readouterr().out


# Breaks when a real signal ends the process before every fit has saved.
def test_a_signal_saves_every_fit(tmp_path: Path) -> None:
    path, out = tmp_path / "x.npy", tmp_path / "sweep"
    np.save(path, clusters(60_000, 16))
    words = ["sweep", path, "--k", "4", "8", "--out", out, "--device", "cpu", "--epochs", "400",
             "--min-gain", "0"]  # fmt: skip
    command = [sys.executable, "-m", "streamkm", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        metrics = out / "k-0004" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if metrics.exists() and '"train"' in metrics.read_text():
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "2 fits can go on" in said
    assert all(any((out / name / "checkpoints").iterdir()) for name in ("k-0004", "k-0008"))


# ---- bad input --------------------------------------------------------------------------------


def test_k_above_the_rows_is_refused_before_anything_is_read(
    tmp_path: Path, path: Path, read_bytes: list[int]
) -> None:
    with pytest.raises(ConfigError, match="not 7,000, 9,000; leave out"):
        swept(path, tmp_path / "sweep", (3, 9000, 7000))
    assert not read_bytes
    assert not (tmp_path / "sweep").exists()


# Breaks when a seed out of range is reported by the option of one fit, `--seed`.
def test_a_seed_below_0_is_refused(
    tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("sweep", path, "--k", 3, "--seeds", 0, -1, "--out", tmp_path / "sweep") == 2
    said = "streamkm: --seeds: each must be a whole number of at least 0, not -1"
    assert capsys.readouterr().err.strip() == said
    assert not (tmp_path / "sweep").exists()


def test_other_sweeps_are_left_alone(tmp_path: Path, path: Path) -> None:
    out = tmp_path / "sweep"
    swept(path, out, (3,))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "lock"}
    with pytest.raises(InputError, match="add resume=True"):
        swept(path, out, (3,))
    with pytest.raises(ResumeError, match="with other settings"):
        swept(path, out, (3,), resume=True, scale="zscore")
    np.save(tmp_path / "y.npy", clusters(500, 7))
    with pytest.raises(ResumeError, match="a sweep of other data"):
        swept(tmp_path / "y.npy", out, (3,), resume=True)
    with pytest.raises(InputError, match="is no sweep"):
        swept(path, out / "k-0003", (3,), resume=True)
    assert before == {p: p.read_bytes() for p in before}


# Breaks when data that no fit can use leaves a folder behind, or one fit waits for another's rows.
def test_rows_with_nan_leave_nothing(tmp_path: Path, path: Path) -> None:
    x = np.load(path)
    x[4321, 0] = np.nan
    np.save(path, x)
    with pytest.raises(NonFiniteError, match="NaN"):
        swept(path, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_damaged_record_is_told(tmp_path: Path, path: Path) -> None:
    out = tmp_path / "sweep"
    swept(path, out, (3,))
    content = json.loads((out / "sweep.json").read_text())
    content["runs"] = []
    (out / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="is damaged"):
        swept(path, out, (3,), resume=True)


def test_centroids_of_one_k_are_refused(tmp_path: Path, path: Path) -> None:
    np.save(tmp_path / "c.npy", np.zeros((3, 7)))
    with pytest.raises(ConfigError, match="the centroids of one K"):
        swept(path, tmp_path / "sweep", init=os.fspath(tmp_path / "c.npy"))
