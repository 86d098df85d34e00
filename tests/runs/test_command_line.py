"""The command line over the life of a run: settings from files, resuming, and what is imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.runs.helpers import cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def x(tmp_path) -> Path:
    path: Path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32))
    return path


def settings_of(run: Path) -> dict[str, object]:
    record: dict[str, dict[str, object]] = json.loads((run / "config.json").read_text())
    return record["fit"]


# ---- --config ---------------------------------------------------------------


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "run.toml"


def test_settings_come_from_a_file_and_the_command_line_wins(x, toml, tmp_path):
    toml.write_text(
        'k = 3\nbatch-rows = 20\nseed = 7\ntol = 0.5\nscale = "zscore"\nmax-host-memory = "1GiB"\n'
        'checkpoint-every = "5m"\n'
    )
    run = tmp_path / "run"
    assert cli("fit", x, "--out", run, "--config", toml, "--seed", 9) == 0
    settings = settings_of(run)
    wanted = {"k": 3, "batch_rows": 20, "seed": 9, "tol": 0.5, "scale": "zscore"}
    assert {name: settings[name] for name in wanted} == wanted
    execution = json.loads((run / "config.json").read_text())["execution"]
    assert execution["max_host_memory"] == 1 << 30
    assert execution["checkpoint_every"] == {"seconds": 300.0, "batches": None}


def test_a_value_on_the_command_line_wins_though_it_is_the_default(x, toml, tmp_path):
    toml.write_text('k = 3\nscale = "zscore"\nseed = 7\n')
    run = tmp_path / "run"
    assert cli("fit", x, "--out", run, "--config", toml, "--scale", "none", "--seed", 0) == 0
    assert (settings_of(run)["scale"], settings_of(run)["seed"]) == ("none", 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("k = 3\nclusters = 4", "there is no setting 'clusters'"),
        ("k = [3, 4]", "k must be one value"),
        ("[fit]\nk = 3", "there is no setting 'fit'"),
        ("k = 3.5", "'3.5'"),
        ("k = true", "'True'"),
        ('k = 3\nalgorithm = "dbscan"', "dbscan"),
        ('k = 3\nnan = "keep"', "keep"),
        ("k = 3\nread-threads = -1", "read-threads"),
        ('k = 3\nmax-host-memory = "lots"', "lots"),
        ("k = 3\nclosing-pass = 3", "closing-pass must be true or false, not 3"),
        ("k = ", "cannot be read"),
        ("k = 3\nk = 4", "cannot be read"),
        ("k = 3\nn-init = 4\nn_init = 5", "n_init is there twice"),
    ],
)
def test_a_file_of_settings_that_is_wrong(content, reason, x, toml, tmp_path, capsys):
    toml.write_text(content)
    assert cli("fit", x, "--out", tmp_path / "run", "--config", toml) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert reason in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "given", "closed"),
    [
        ("", [], True),
        ("", ["--no-closing-pass"], False),
        ("closing-pass = false", [], False),
        ("closing-pass = false", ["--closing-pass"], True),
    ],
)
def test_the_closing_pass_can_be_left_out(content, given, closed, x, toml, tmp_path, capsys):
    toml.write_text(f"k = 2\n{content}")
    assert cli("fit", x, "--out", tmp_path / "run", "--config", toml, *given) == 0
    assert settings_of(tmp_path / "run")["closing_pass"] is closed
    assert ("no closing pass" in capsys.readouterr().err) is not closed


def test_weights_come_from_a_file_of_settings_too(x, toml, tmp_path, capsys):
    np.save(tmp_path / "w.npy", np.arange(200.0))
    toml.write_text(f'k = 3\nweights = "{tmp_path / "w.npy"}"\n')
    assert cli("fit", x, "--out", tmp_path / "run", "--config", toml) == 0
    assert "w.npy, 199 of them positive" in capsys.readouterr().err


def test_what_was_asked_for_and_makes_no_difference_is_said(x, tmp_path, capsys):
    arguments = ("fit", x, "--k", 3, "--algorithm", "lloyd")
    assert cli(*arguments, "--no-closing-pass", "--out", tmp_path / "one") == 0
    assert "note: each pass of lloyd could close the run" in capsys.readouterr().err
    np.save(tmp_path / "c.npy", np.load(x)[:3])
    assert cli(*arguments, "--init", tmp_path / "c.npy", "--out", tmp_path / "two") == 0
    said = capsys.readouterr().err
    assert "note: each pass" not in said
    assert "c.npy): the 3 centroids that were given" in said


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_of_settings_that_cannot_be_read(content, x, toml, tmp_path, capsys):
    if content is not None:
        toml.write_bytes(content)
    assert cli("fit", x, "--out", tmp_path / "run", "--config", toml) == 2
    assert "cannot be read" in capsys.readouterr().err


# Breaks when the file is read in the encoding of the locale: TOML is UTF-8.
def test_a_file_of_settings_is_utf8_whatever_the_locale(x, toml, tmp_path):
    toml.write_text("# \N{GREEK SMALL LETTER KAPPA}\nk = 0", "utf-8")
    arguments = ["fit", str(x), "--out", str(tmp_path / "run"), "--config", str(toml)]
    ended = subprocess.run(
        [sys.executable, "-m", "streamkm", *arguments],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=60,
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert ended.returncode == 2
    assert "--k must be a whole number of at least 1, not 0" in ended.stderr


# ---- streams ----------------------------------------------------------------


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of `command`, in which ``streamkm`` is the program."""
    return subprocess.run(
        ["sh", "-c", command.replace("streamkm", f"{sys.executable} -m streamkm")],
        capture_output=True, text=True, errors="surrogateescape", cwd=folder, check=False,
        timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


# Breaks with a traceback: libraries are loaded when they are first needed.
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere address space has no limit")
def test_libraries_without_memory_are_told_in_one_line(x, tmp_path):
    done = shell("ulimit -v 400000; streamkm fit x.npy --k 2 --out run", tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(r"streamkm: no memory to load .*raise the limit.*\n", done.stderr)


# Breaks with a traceback: Python has None for a stream that is closed.
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(closed, x, tmp_path):
    done = shell(f"streamkm fit x.npy --k 2 --out run {closed}", tmp_path)
    assert done.returncode == 0, done.stderr
    done = shell(f"streamkm info run {closed}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert shell(f"streamkm info nope.npy {closed}", tmp_path).returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_stderr_may_be_full(x, tmp_path):
    assert shell("streamkm info nope.npy 2>/dev/full", tmp_path).returncode == 2


# Breaks with a traceback: a stream may be strict about what it encodes.
def test_a_path_is_printed_whatever_the_encoding(x, tmp_path):
    x.rename(tmp_path / "\N{GREEK SMALL LETTER KAPPA}.npy")
    done = shell("streamkm info *.npy", tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert done.returncode == 0, done.stderr
    assert "\\u03ba.npy" in done.stdout


# Breaks when all rows are labelled, and only then the name of the output is found to be no text.
def test_a_path_may_be_no_text(x, tmp_path):
    try:
        x.rename(tmp_path / "x\udcff.npy")
    except (OSError, UnicodeError):
        pytest.skip("file names are text here")
    predict = "streamkm predict run? x?.npy --labels run?/l?.npy --distances run?/d?.zarr --resume"
    fit = "streamkm fit x?.npy --k 2 --out run?"
    command = f"{fit} && {predict} && {predict}".replace("?", "\udcff")
    done = shell(command, tmp_path, PYTHONIOENCODING="utf-8", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "are finished" in done.stderr


# ---- resuming ---------------------------------------------------------------


def test_resume_starts_what_is_not_there_and_leaves_what_is_done(x, tmp_path, capsys):
    arguments = ["fit", x, "--k", 2, "--out", tmp_path / "run", "--resume"]
    assert cli(*arguments) == 0
    before = (tmp_path / "run/model.safetensors").read_bytes()
    assert cli(*arguments) == 0
    assert "this run is finished" in capsys.readouterr().err
    assert (tmp_path / "run/model.safetensors").read_bytes() == before


def test_resume_with_another_k_or_other_data_is_refused(x, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli("fit", x, "--k", 2, "--out", run) == 0
    before = (run / "model.safetensors").read_bytes()
    assert cli("fit", x, "--k", 3, "--out", run, "--resume") == 2
    assert "k: 2 -> 3" in capsys.readouterr().err.splitlines()[-1]
    np.save(x, np.zeros((201, 3), np.float32))
    assert cli("fit", x, "--k", 2, "--out", run, "--resume") == 2
    assert "[200, 3] -> [201, 3]" in capsys.readouterr().err.splitlines()[-1]
    assert (run / "model.safetensors").read_bytes() == before


# Lost if it were still in a buffer when the process ends; to a file it is not written line by line.
def test_a_report_is_written_before_an_error_ends_the_process(x, tmp_path):
    rows = np.load(x)
    rows[7] = np.nan
    np.save(x, rows)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    fit = ("fit", str(x), "--k", "2", "--out", str(tmp_path / "run"), "--dry-run")
    done = subprocess.run(
        [sys.executable, "-m", "streamkm", *fit], cwd=ROOT, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "row 7 holds nan" in done.stderr
    assert "forbids" in done.stdout


# ---- what is imported -------------------------------------------------------

EARLY = {
    "help": ["--help"],
    **{f"{c} help": [c, "--help"] for c in ("fit", "predict", "evaluate", "info")},
    "version": ["--version"],
    "nothing": [],
    "unknown option": ["fit", "x.npy", "--k", "2", "--out", "run", "--nope"],
    "bad value": ["fit", "x.npy", "--k", "two", "--out", "run"],
    "k out of range": ["fit", "x.npy", "--k", "0", "--out", "run"],
    "contradiction": [
        "fit", "x.npy", "--k", "2", "--out", "run", "--metric", "cosine", "--scale", "zscore"
    ],
    "bad device": ["fit", "x.npy", "--k", "2", "--out", "run", "--device", "tpu"],
    "no such path": ["fit", "nope.npy", "--k", "2", "--out", "run"],
    "no array": ["fit", "text.npy", "--k", "2", "--out", "run"],
    "one dimension": ["fit", "flat.npy", "--k", "2", "--out", "run"],
    "more clusters than rows": ["fit", "x.npy", "--k", "999", "--out", "run"],
    "run exists": ["fit", "x.npy", "--k", "2", "--out", "other"],
    "bad config": ["fit", "x.npy", "--out", "run", "--config", "text.npy"],
    "predict: no run": ["predict", "nope", "x.npy", "--labels", "l.npy"],
    "predict: bad output": ["predict", "other", "x.npy", "--labels", "l.txt"],
    "evaluate: no run": ["evaluate", "nope", "x.npy"],
    "info": ["info", "x.npy"],
}  # fmt: skip

PROBE = """
import contextlib, io, json, sys
from streamkm.cli import main
cases, report = json.load(sys.stdin), {}
for name, argv in cases.items():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            status = main(argv)
        except SystemExit as end:
            status = end.code or 0
    heavy = sorted({"torch", "zarr", "sklearn", "safetensors"} & set(sys.modules))
    report[name] = [status, heavy]
print(json.dumps(report))
"""


# Help, a usage error and a wrong path answer at once, which is promised and measured elsewhere:
# what takes seconds is importing torch. One process for all cases: whatever one of them
# imports, the ones after it show too, and the first of them is to blame.
def test_nothing_that_can_be_refused_early_imports_torch(x, tmp_path):
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "flat.npy", np.arange(4.0))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    probe = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps(EARLY), cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""}, timeout=60,
    )  # fmt: skip
    report = json.loads(probe.stdout)
    assert {name: heavy for name, (_, heavy) in report.items() if "torch" in heavy} == {}
    helps = {name for name in EARLY if "help" in name or name in ("version", "info")}
    assert {n: status for n, (status, _) in report.items() if status != 0} == dict.fromkeys(
        EARLY.keys() - helps, 2
    )
    # Nor is anything slow needed to print help.
    assert report["info help"][1] == []


def test_a_wrong_path_in_a_real_process_imports_no_torch(tmp_path):
    arguments = ["fit", str(tmp_path / "nope.npy"), "--k", "2", "--out", str(tmp_path / "run")]
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "streamkm", *arguments],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 2
    imported = {
        line.rsplit("|", 1)[-1].strip()
        for line in ended.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "streamkm.cli" in imported
    assert not {"torch", "sklearn", "triton"} & imported
    said = [line for line in ended.stderr.splitlines() if not line.startswith("import time:")]
    assert len(said) == 1
    assert "nope.npy: does not exist" in said[0]
