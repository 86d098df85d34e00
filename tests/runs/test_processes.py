"""Real processes, really killed: the promises that no fake can check."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from tests.forked import Forked
from tests.runs.helpers import RESULTS, clusters, metrics_of, steps_saved
from tests.runs.processes import finish, kill, run, start, start_anew, wait_until

if TYPE_CHECKING:
    from pathlib import Path

N_FEATURES = 16
#: More than one window of 64 MiB, so that kills fall within and between windows.
N_ROWS = 1_080_000


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return clusters(N_ROWS, N_FEATURES, n_clusters=12)


@pytest.fixture(scope="module")
def npy(rows, tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("npy") / "x.npy"
    np.save(path, rows)
    return path


@pytest.fixture(scope="module")
def zarr_f16(rows, tmp_path_factory) -> Path:
    """Twice as long, for the same bytes: half precision."""
    path: Path = tmp_path_factory.mktemp("zarr") / "x.zarr"
    array = zarr.create_array(
        path, shape=(2 * N_ROWS, N_FEATURES), chunks=(65536, N_FEATURES), dtype="f2",
        compressors=None,
    )  # fmt: skip
    array[:N_ROWS] = rows
    array[N_ROWS:] = rows[::-1]
    return path


def fit_arguments(source: Path, settings: list[object]) -> list[object]:
    return ["fit", source, "--device", "cpu", "--batch-rows", 40000, "--k", 12, *settings]


def results(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in RESULTS}


MINIBATCH = ["--epochs", 2, "--scale", "zscore", "--seed", 5]
LLOYD = ["--algorithm", "lloyd", "--epochs", 4, "--tol", 0, "--init", "random"]


# KILLED anywhere: while scaling, seeding, training, saving; the checkpoint that is taken up may
# be torn, old, or just about to be deleted. Any of them breaks the equality of bytes.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "settings", "checkpoints"),
    [("zarr_f16", MINIBATCH, (8, 30)), ("npy", LLOYD, (3, 14))],
    ids=["minibatch", "lloyd"],
)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(
    source, settings, checkpoints, request, tmp_path
):
    arguments = fit_arguments(request.getfixturevalue(source), settings)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(*arguments, "--out", whole)[0] == 0
    rng = random.Random(3)
    kills = 0
    for attempt in range(40):
        process = start(
            *arguments, "--out", killed, "--resume", "--checkpoint-every", 3,
            "--read-threads", 1 + attempt % 3, "--max-host-memory", ("400MiB", "1GiB")[attempt % 2],
        )  # fmt: skip
        saved = set(steps_saved(killed)) if attempt else set()
        # Before anything is saved, then after a number of further checkpoints.
        wanted = 0 if attempt == 0 else rng.randint(*checkpoints)

        def is_time(saved=saved, wanted=wanted):
            new = [step for step in steps_saved(killed) if step > max(saved, default=-1)]
            if wanted == 0:
                return (killed / "config.json").exists()
            # Older ones are deleted: steps count, not folders.
            return bool(new) and max(new) - max(saved, default=0) >= 3 * wanted

        if wait_until(is_time, process):
            time.sleep(rng.uniform(0, 0.03))
        if not kill(process):
            assert process.returncode == 0
            break
        kills += 1
    assert kills >= 3
    assert results(killed) == results(whole)


def test_predict_that_is_killed_again_and_again_writes_the_same_labels(npy, tmp_path):
    out = tmp_path / "run"
    assert run(*fit_arguments(npy, ["--init", "random"]), "--out", out)[0] == 0
    labels, distances = tmp_path / "labels.npy", tmp_path / "distances.npy"
    whole = tmp_path / "whole.npy"
    assert run("predict", out, npy, "--labels", whole)[0] == 0
    cursor = tmp_path / "labels.npy.partial.json"
    rng = random.Random(1)
    kills = 0
    for _ in range(20):
        before = cursor.read_bytes() if cursor.exists() else b""
        process = start(
            "predict", out, npy, "--labels", labels, "--distances", distances, "--resume",
            "--checkpoint-every", 20,
        )  # fmt: skip

        def has_saved(before=before):
            return cursor.exists() and cursor.read_bytes() != before

        if wait_until(has_saved, process):
            time.sleep(rng.uniform(0, 0.02))
        if not kill(process):
            assert process.returncode == 0
            break
        if labels.exists() and distances.exists() and not list(tmp_path.glob("*.json")):
            break  # It was killed when everything was done.
        kills += 1
    assert kills >= 2
    assert labels.read_bytes() == whole.read_bytes()
    assert len(np.load(distances)) == N_ROWS
    assert not list(tmp_path.glob("*.partial*"))


# Breaks when ids and labels part, or when a kill leaves a file that cannot be gone on with: while
# rows are written, and while the finished stream becomes a Parquet file.
def test_a_table_with_ids_is_the_same_however_often_predict_was_killed(rows, tmp_path):
    source, out = tmp_path / "x.parquet", tmp_path / "run"
    features = pa.FixedSizeListArray.from_arrays(rows.ravel(), N_FEATURES)
    ids = pa.array(np.random.default_rng(0).permutation(N_ROWS)).cast(pa.string())
    pq.write_table(pa.table({"id": ids, "e": features}), source, row_group_size=70_000)
    assert run(*fit_arguments(source, ["--init", "random"]), "--out", out)[0] == 0
    whole, table = tmp_path / "whole.parquet", tmp_path / "table.parquet"
    assert run("predict", out, source, "--labels", whole, "--id-column", "id")[0] == 0
    found = pq.read_table(whole)
    assert found["id"].combine_chunks().equals(ids)
    partial = tmp_path / "table.parquet.partial"
    rng = random.Random(2)
    kills = 0
    for _ in range(20):
        before = partial.stat().st_size if partial.exists() else 0
        process = start(
            "predict", out, source, "--labels", table, "--id-column", "id", "--resume",
            "--checkpoint-every", 1,
        )  # fmt: skip

        def has_grown(before=before):
            return partial.exists() and partial.stat().st_size != before

        if wait_until(has_grown, process):
            time.sleep(rng.uniform(0, 0.1))
        if not kill(process):
            assert process.returncode == 0
            break
        if table.exists() and not partial.exists():
            break  # It was killed when everything was done.
        kills += 1
    assert kills >= 2
    command = ("predict", out, source, "--labels", table, "--id-column", "id", "--resume")
    assert run(*command)[0] == 0
    assert table.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.partial*"))


def skip_if_ignored(number: signal.Signals) -> None:
    # Under nohup, say: a process inherits it, and streamkm lets it be.
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored where the tests run")


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP]
)
def test_a_signal_saves_a_checkpoint_and_exits_with_75(number, npy, tmp_path):
    skip_if_ignored(number)
    out = tmp_path / "run"
    arguments = fit_arguments(npy, [*LLOYD, "--epochs", 100])
    process = start(*arguments, "--out", out)
    assert wait_until(lambda: bool(steps_saved(out)), process)
    time.sleep(0.1)
    process.send_signal(number)
    status, stderr = finish(process)
    assert status == 75
    last = stderr.strip().splitlines()[-1]
    newest = max(steps_saved(out))
    assert newest > 1
    assert f"stopped by {number.name}" in last
    assert f"step-{newest:08d} is saved" in last
    assert "--resume" in last
    assert "Traceback" not in stderr
    assert not (out / "model.safetensors").exists()
    assert metrics_of(out) is not None


def test_predict_answers_a_batch_systems_warning(npy, tmp_path):
    out, labels = tmp_path / "run", tmp_path / "labels.npy"
    assert run(*fit_arguments(npy, ["--init", "random"]), "--out", out)[0] == 0
    arguments = ["predict", out, npy, "--labels", labels, "--checkpoint-every", 1]
    process = start(*arguments)
    cursor = tmp_path / "labels.npy.partial.json"
    assert wait_until(cursor.exists, process)
    process.send_signal(signal.SIGUSR1)
    status, stderr = finish(process)
    assert (status, "stopped by SIGUSR1; rows up to" in stderr) == (75, True)
    assert run(*arguments, "--resume")[0] == 0
    assert len(np.load(labels)) == N_ROWS


# Breaks when closing the terminal stops a run that nohup was to keep.
def test_nohup_keeps_a_run_going(npy, tmp_path):
    arguments = [*fit_arguments(npy, [*LLOYD, "--epochs", 3]), "--out", tmp_path / "run"]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # As nohup does; a child inherits it.
    try:
        process = start_anew(*arguments)
    finally:
        signal.signal(signal.SIGHUP, before)
    while process.poll() is None:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.02)
    assert finish(process)[0] == 0


INTERRUPTED = """
import os, signal, sys, threading
import numpy as np
from streamkm import KMeans

def send():
    while not os.path.isdir(sys.argv[1]):
        pass
    os.kill(os.getpid(), int(sys.argv[2]))

threading.Thread(target=send, daemon=True).start()
x = np.random.default_rng(0).normal(size=(20_000, 16))
KMeans(100, random_state=0, tol=0, max_iter=10_000, run_dir=sys.argv[1]).fit(x)
"""


# Breaks when a job written in Python fails instead of being started again.
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_script_that_is_stopped_ends_with_75(number, tmp_path):
    skip_if_ignored(number)
    words = ["-c", INTERRUPTED, tmp_path / "run", int(number)]
    status, stderr = finish(Forked(words, environment=os.environ))
    assert status == 75, stderr
    assert f"stopped by {number.name}; " in stderr
    assert "repeat with resume=True" in stderr
    assert "Traceback" not in stderr
    assert steps_saved(tmp_path / "run")


# A second Ctrl-C wants out at once: it must not wait for a checkpoint.
def test_a_second_interrupt_ends_the_process(tmp_path):
    slow = tmp_path / "slow.zarr"
    array = zarr.create_array(slow, shape=(200_000, 256), chunks=(200_000, 256), dtype="f4")
    array[:] = np.float32(1)
    out = tmp_path / "run"
    process = start("fit", slow, "--k", 2000, "--out", out, "--init", "k-means++")
    assert wait_until(lambda: (out / "config.json").exists(), process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    status, stderr = finish(process)
    assert "Traceback" not in stderr
    assert status in (1, 75)  # 75 if it had saved by then.


# Breaks when it comes just as the first has been answered, and meets nobody who catches it.
def test_an_interrupt_at_the_very_end_is_no_traceback():
    code = (
        "import runpy, signal, sys\n"
        "set_handler = signal.signal\n"
        "def late(number, handler):\n"
        "    if handler == signal.SIG_IGN:\n"
        "        signal.signal = set_handler\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    return set_handler(number, handler)\n"
        "signal.signal = late\n"
        "sys.argv = ['streamkm', 'info', 'none.npy']\n"
        "runpy.run_module('streamkm', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "none.npy" in done.stderr
    assert done.returncode in (1, 2)


def test_a_run_folder_belongs_to_one_process_until_it_dies(npy, tmp_path):
    out = tmp_path / "run"
    arguments = [*fit_arguments(npy, [*LLOYD, "--epochs", 100]), "--out", out, "--resume"]
    first = start(*arguments)
    assert wait_until(lambda: bool(steps_saved(out)), first)
    status, stderr = run(*arguments)
    assert status == 2
    assert f"process {first.pid} on" in stderr.strip().splitlines()[-1]
    assert "is working on this run" in stderr
    assert first.poll() is None
    assert kill(first)
    third = start(*arguments)
    owner = f"process {third.pid} on"
    assert wait_until(lambda: owner in (out / "lock").read_text(), third)  # It died with its owner.
    third.send_signal(signal.SIGTERM)
    assert finish(third)[0] == 75
