"""The benchmarks run, and their table and file say what was measured.

Would break: an interface of the package that the benchmarks use changes; the
report rounds, drops or mixes up a figure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytest_benchmark")

from bench.gpu_needs import check_needs
from bench.measure import Comparison, Session, Target
from bench.report import table, write_json
from bench.scaling import Job, Machine, Network, Rates, predict, where_it_ends

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


# Breaks when a bare machine gets a traceback, or ends although the kernels could be measured.
@pytest.mark.parametrize(("missing", "ends"), [("zarr", False), ("tqdm", True), ("none", False)])
def test_what_a_gpu_machine_lacks_is_said(capsys, missing, ends):
    with pytest.raises(SystemExit) if ends else nullcontext():
        check_needs(lambda module: None if module == missing else module)
    said = capsys.readouterr().err
    assert (missing in said) == ("CONTRIBUTING.md" in said) == (missing != "none")
    assert said.count("\n") == (missing != "none")


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
    assert not any(row["wrong"] for row in results["smoke"])
    assert {row.get("layout") for row in results["fits"]} == {"npy", "zarr", None}
    # Toy sizes say nothing of the targets, but every part has the figures that they need. (Those of
    # shapes are for large ones, and a peer may not be there.)
    others = [row for row in results["targets"] if not re.search("k=20,000|peer", row["what"])]
    assert len(others) >= 6
    assert "not measured" not in {row["verdict"] for row in others}
    assert list(gpu_parts(results)) == list(results)[-len(gpu_parts(results)) - 1 : -1]


def gpu_parts(results):
    """The parts among the results, in the order in which they ran."""
    from bench.gpu import PARTS

    return {name: results[name] for name in PARTS}


# Breaks when a part that hangs, crashes or never begins takes the others' results with it.
def test_a_part_that_dies_leaves_the_results_of_others(tmp_path, monkeypatch, capfd):
    pytest.importorskip("triton", reason="Triton is not installed: it exists for Linux only")
    from bench import gpu
    from bench.gpu_run import write_results

    out = tmp_path / "results.json"
    write_results(out, {"gpu": "none", "slow": [{"d": 3}]})

    def never(_: object) -> None:
        raise AssertionError("parts run in processes of their own")

    monkeypatch.setattr(
        gpu,
        "PARTS",
        {
            "crashes": gpu.Part(never, 60),
            "slow": gpu.Part(never, 60),
            "late": gpu.Part(never, 0),
            "reserving": gpu.Part(never, 0, reserved_s=200),
        },
    )
    ends = {"crashes": "raise SystemExit(139)", "slow": "import time; time.sleep(600)"}
    run_limited = gpu.run_limited

    limits = []

    def run(command, seconds):
        limits.append(seconds)
        script = ends[command[command.index("--part") + 1]]
        return run_limited([sys.executable, "-c", script], 0.5 if "sleep" in script else seconds)

    monkeypatch.setattr(gpu, "run_limited", run)
    arguments = argparse.Namespace(minutes=5, rehearse=False, data=tmp_path)
    assert gpu.measure_parts(arguments, out) == 1
    results = json.loads(out.read_text())
    assert {row["verdict"] for row in results.pop("targets")} == {"not measured"}
    assert results == {
        "gpu": "none",
        "crashes": {"failed": "ended with status 139", "before": None},
        "slow": {"failed": "not done after 0 s", "before": [{"d": 3}]},
        "late": {"failed": "left out: the time was up", "before": None},
        "reserving": {"failed": "left out: the time was up", "before": None},
    }
    assert "failed: crashes, slow, late, reserving" in capfd.readouterr().out
    # Of five minutes the first two parts had those that are not reserved.
    assert max(limits) <= 300 - 200


# Breaks when a figure is compared with another target, or one that is missing passes for reached.
def test_targets_stand_beside_what_was_found():
    from bench.gpu_targets import as_table, compare_targets

    row = {
        "d": 128, "k": 20_000, "share_of_matrix_rate": {"exact": 0.61}, "exact_costs": 0.2,
        "seconds": {"exact": 3.0}, "peers": {"torch, chunks": 9.0, "flash-kmeans": 2.0},
    }  # fmt: skip
    fits = [
        {"d": 128, "k": 256, "resident": True, "rows_per_s": 96.0, "share_of_probe": 0.95},
        {"d": 128, "k": 256, "resident": False, "rows_per_s": 50.0, "share_of_probe": 0.90},
        {"d": 128, "k": 256, "arithmetic_alone_rows_per_s": 100.0},
    ]
    results = {"assign": {"failed": "slow", "before": [row]}, "fits": fits,
               "same_bits": {"with_other_bits": 0}}  # fmt: skip
    verdicts = {target.what: (target.found, target.verdict) for target in compare_targets(results)}
    assert verdicts["assign, d=128, k=20,000: share of the matrix rate"] == (0.61, "reached")
    assert verdicts["assign, d=64, k=20,000: share of the matrix rate"] == (None, "not measured")
    assert verdicts["assign: exact labels cost over fast ones, most"] == (0.2, "NOT reached")
    assert verdicts["assign: time over that of a peer, most"] == (1.5, "NOT reached")
    assert verdicts["fit: share of the slowest stage alone, least"] == (0.9, "NOT reached")
    assert verdicts["repetitions with other bits, of 100"] == (0, "reached")
    assert verdicts["fit: resident passes, share of rows that are there, least"][1] == "reached"
    assert len(as_table(compare_targets(results)).splitlines()) == len(verdicts)


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


# ---- the model of many processes ---------------------------------------------

#: 4 float32 features, 10 clusters, 10 blocks.
LLOYD = Job("lloyd", k=10, d=4, n_rows=1000, batch_rows=100, block_rows=100)
MINIBATCH = replace(LLOYD, algorithm="minibatch")
RATES = Rates(
    read_s=2.0, deal_s=0.5, copy_s=1.0, prepare_s=1.0, assign_s=3.0, batch_s=10.0, move_s=50.0
)  # fmt: skip
LINKS = Network(base_s=5.0, bandwidth=1e9, hop_s=1.0, node_bandwidth=171.0, node_hop_s=2.0)


def test_pass_on_two_nodes_by_hand():
    job = LLOYD
    # Sums 2 x 10 x 4, the inertia 2, counts 21, grades 11, of 8 bytes.
    assert job.reduced_bytes == 8 * 114
    found = predict(job, replace(RATES, deal_s=0.0), Machine(readers=3), LINKS, 2, 2)
    # 3 of 10 blocks, in 3 batches; twice 5 + 2 x (1 + 2) s, and 3 / 2 x 912 bytes at 171 a second.
    assert found.seconds == {
        "reading": 200.0, "storage": 0.0, "copying": 300.0, "assigning": 1200.0, "launching": 30.0,
        "moving": 50.0, "reduction": 30.0,
    }  # fmt: skip
    assert (found.bound, found.rows_per_s) == ("assigning", 1000 / 1310)
    slow = predict(job, RATES, Machine(readers=1, storage=4.0), LINKS, 2, 2)
    assert (slow.bound, slow.rows_per_s) == ("storage", 1000 / (600 * 16 / 4))


def test_step_on_shared_cores_by_hand():
    job = MINIBATCH
    # 10 x 4 sums of 8 bytes, 10 counts of 2 and 3 totals of 8, the latter in a line of the cache.
    assert job.reduced_bytes == 8 * (40 + 8)
    links = Network(base_s=5.0, bandwidth=job.reduced_bytes)
    found = predict(job, RATES, Machine(readers=1, cores=2), links, n_local=4, n_reductions=1)
    # 30 of 100 rows: 60 + 50 s of reading, 120 + 10 + 50 of arithmetic, on half a core.
    assert found.seconds["cores"] == 4 * (110 + 180) / 2
    assert found.seconds["reduction"] == 5 + 1.5
    assert (found.bound, found.rows_per_s) == ("cores", 100 / (580 + 6.5))
    busy = replace(links, core_s=3.0)
    found = predict(job, RATES, Machine(readers=1, cores=2), busy, n_local=4, n_reductions=2)
    assert found.seconds["cores"] == 4 * (110 + 180 + 2 * 3) / 2
    gpu = predict(job, replace(RATES, least_rows=400), Machine(readers=6), links, n_local=4)
    assert gpu.seconds["small batch"] == 30 * 1 + 400 * 3
    # 6 threads read, but 3 windows are open.
    assert gpu.seconds["reading"] == 30 * 2 / 6 + 100 * 0.5 / 3
    alone = predict(job, RATES, Machine(readers=1), links)
    assert alone.seconds["reduction"] == 0
    # What is done beside a reduction is not waited for.
    beside = replace(RATES, beside_s=2.0)
    hidden = predict(job, beside, Machine(readers=1, cores=2), links, n_local=4)
    assert hidden.seconds["reduction"] == 5 + 1.5 - 2


def test_where_scaling_ends_and_why():
    def ends(job, links, rates=RATES):
        sizes = ((n, 1) for n in (1, 2, 4, 8, 16, 32))
        found = [predict(job, rates, Machine(readers=1), links, *size) for size in sizes]
        return where_it_ends(job, found)

    fast = Network(base_s=0.0, bandwidth=1e9)
    free = replace(RATES, deal_s=0.0, batch_s=0.0, move_s=0.0)
    whole = "pays up to 8; then the array has 8 blocks, one for a process"
    assert ends(replace(LLOYD, n_rows=800), fast, free) == whole
    assert ends(replace(MINIBATCH, n_rows=800), fast, free) == whole.replace(
        "the array", "a window"
    )
    slow = replace(fast, base_s=9000.0)
    assert ends(LLOYD, slow) == "pays up to 1; then reduction takes longest"
    many = replace(LLOYD, n_rows=10**6)
    assert ends(many, fast, free) == "pays up to 32 at least; there assigning takes longest"


# Breaks when a rate loses its source, or the table reads as if it were measured.
def test_table_says_what_is_assumed():
    from bench import scale_model

    done = subprocess.run(
        [sys.executable, "-m", "bench.scale_model", "100", "64"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "predicted from assumed rates" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows if row and row[0].isdigit()] == [
        [str(n), str(n * n_gpus)]
        for n, n_gpus in dict.fromkeys(scale_model.WITHIN_A_NODE + scale_model.OVER_NODES)
    ]
    for _, what, source in scale_model.ASSUMED.values():
        assert what in done.stdout
        assert source in done.stdout


@pytest.mark.slow
def test_check_of_the_model_runs(tmp_path, monkeypatch):
    from bench import scale_check

    monkeypatch.setattr(scale_check, "PROCESSES", (2,))
    # Toy sizes, beside whatever runs: nothing is said of how near the model is.
    monkeypatch.setattr(scale_check, "QUIET", 1000.0)
    monkeypatch.setattr(scale_check, "ENOUGH", 1)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    out = tmp_path / "check.json"
    scale_check.check(out, 40_000, {3: 20}, minutes=5)
    written = json.loads(out.read_text())
    assert written["machine"]["cores"] == os.cpu_count()
    names = [f"{algorithm}, k=3, 2 x 1" for algorithm in ("lloyd", "minibatch")]
    assert list(written["results"]) == names
    for result in written["results"].values():
        assert result["predicted_rows_per_s"] > 0
        assert result["measured_rows_per_s"] > 0
        assert result["measured_core_s_per_row"] > 0
