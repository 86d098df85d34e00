"""The benchmarks run, and their table and file say what was measured.

Would break: an interface of the package that the benchmarks use changes; the
report rounds, drops or mixes up a figure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytest_benchmark")

from bench.measure import Comparison, Session, Target
from bench.report import table, write_json

ROOT = Path(__file__).parents[1]
#: Without what tells pytest-benchmark that other tests run beside it.
ALONE = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
DESCRIBED = {
    "date": "2026-01-02T03:04:05+00:00",
    "machine": {"cpu": "a processor", "cores": 2, "memory_gib": 8.0},
    "versions": {"python": "3.11", "streamkm": "abc"},
}


def make_session() -> Session:
    speed = Comparison("fit", "a fit", "rows/s", {"ours": [4.0, 8.0, 6.0], "theirs": [3.0, 2.0]})
    speed.target = Target(">= 2 x", reached=True)
    memory = Comparison("memory", "a peak", "MiB", {"ours": [1234567.0]})
    memory.target = Target("<= 1", reached=False)
    return Session(comparisons=[speed, memory])


def test_statistics_by_hand():
    speed, memory = make_session().comparisons
    ours = speed.statistics("ours")
    assert ours == {"median": 6.0, "min": 4.0, "max": 8.0, "iqr": 4.0, "rounds": 3}
    assert speed.ratio("theirs") == 6.0 / 2.5
    assert memory.statistics("ours")["iqr"] == 0


def test_table_shows_every_figure_within_100_columns():
    text = table(make_session(), DESCRIBED)
    assert max(map(len, text.splitlines())) <= 100
    lines = [line.split() for line in text.splitlines()]
    assert ["a", "fit", "ours", "6", "4", "..", "8", "rows/s"] in lines
    assert ["theirs", "2.5", "2", "..", "3", "rows/s", "2.40", "x"] in lines
    assert ["a", "peak", "ours", "1,234,567", "1,234,567", "..", "1,234,567", "MiB"] in lines
    assert ["target", ">=", "2", "x:", "reached"] in lines
    assert ["target", "<=", "1:", "NOT", "reached"] in lines


def test_file_keeps_every_sample(tmp_path):
    write_json(tmp_path / "new" / "r.json", make_session(), DESCRIBED)
    content = json.loads((tmp_path / "new" / "r.json").read_text())
    speed = content["comparisons"][0]
    assert speed["contenders"]["ours"]["samples"] == [4.0, 8.0, 6.0]
    assert speed["compared"] == {"ours / theirs": 2.4}
    assert speed["target"] == {"text": ">= 2 x", "reached": True}
    assert content["machine"]["cores"] == 2


@pytest.mark.slow
def test_toy_run_measures_every_group(tmp_path):
    out = tmp_path / "toy.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--rounds", "1", "--data", tmp_path / "data",
         "--out", out],
        cwd=ROOT, env=ALONE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    comparisons = json.loads(out.read_text())["comparisons"]
    groups = {"fit", "growth", "memory", "checkpoint", "read", "kernel", "quality"}
    assert {c["group"] for c in comparisons} == groups
    for comparison in comparisons:
        assert comparison["name"] in done.stdout
        for contender, figures in comparison["contenders"].items():
            assert contender in done.stdout
            assert figures["rounds"] == 1
            assert figures["min"] > 0


def test_unknown_name_is_refused():
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--only", "nothing"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "fit, growth, memory, checkpoint, read, kernel, quality" in done.stderr.replace("'", "")


# Breaks when scripts/gpu fails for a reason that no GPU is needed to find.
@pytest.mark.slow
def test_measuring_on_a_gpu_is_rehearsed(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed: it exists for Linux only")
    from tests.kernels.triton.test_kernel import interpreter_runs

    if not interpreter_runs():
        pytest.skip("this Triton interprets nothing beside this NumPy")
    out = tmp_path / "rehearsal.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--rehearse", "--data", tmp_path / "data",
         "--out", out],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    results = json.loads(out.read_text())
    assert results["measured_on_a_gpu"] is False
    assert "failed" not in json.dumps({**results, "iteration": None})
    assert [row["d"] for row in results["assign"]] == [64, 128, 256]
    assert {"npy", "zarr-raw", "zarr-lz4"} <= set(results["fit"])


# Breaks when a part that hangs, crashes or never begins takes the others' results with it.
def test_a_part_that_dies_leaves_the_results_of_others(tmp_path, monkeypatch, capfd):
    pytest.importorskip("triton", reason="Triton is not installed: it exists for Linux only")
    from bench import gpu

    out = tmp_path / "results.json"
    gpu.write_results(out, {"gpu": "none", "slow": [{"d": 3}]})
    monkeypatch.setattr(
        gpu, "PARTS", {"crashes": (None, 60), "slow": (None, 60), "late": (None, 0)}
    )
    ends = {"crashes": "raise SystemExit(139)", "slow": "import time; time.sleep(600)"}
    run_limited = gpu.run_limited

    def run(command, seconds):
        script = ends[command[command.index("--part") + 1]]
        return run_limited([sys.executable, "-c", script], 0.5 if "sleep" in script else seconds)

    monkeypatch.setattr(gpu, "run_limited", run)
    arguments = argparse.Namespace(minutes=5, rehearse=False, data=tmp_path)
    assert gpu.measure_parts(arguments, out) == 1
    assert json.loads(out.read_text()) == {
        "gpu": "none",
        "crashes": {"failed": "ended with status 139", "before": None},
        "slow": {"failed": "not done after 0 s", "before": [{"d": 3}]},
        "late": {"failed": "left out: the time was up", "before": None},
    }
    assert "failed: crashes, slow, late" in capfd.readouterr().out


# Breaks when tests that are skipped, or not done in time, pass for passed.
def test_checks_that_do_not_run_have_not_passed(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed: it exists for Linux only")
    from bench import gpu_checks

    if torch.cuda.is_available():
        pytest.skip("they would run")
    monkeypatch.setattr(gpu_checks, "TESTS", ("tests/runs/test_on_gpu.py",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    skipped = gpu_checks.run_checks()
    assert (skipped["passed"], skipped["status"]) == (False, 0)
    assert "skipped" in skipped["output"]
    late = gpu_checks.run_checks(0.01)
    assert (late["passed"], late["status"]) == (False, "not done after 0 s")


def test_without_a_gpu_the_script_says_so_at_once():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run(
        [ROOT / "scripts" / "gpu"], capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": "/usr/bin:/bin", "PYTHON": "no-such-python"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "no CUDA GPU" in done.stderr
