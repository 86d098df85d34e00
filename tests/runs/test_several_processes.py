"""Fits on several real processes: the same bytes, one voice, and one end for all."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr

from streamkm.sealed import seal
from tests.distributed.launched import environment, free_port, script
from tests.forked import Forked, command
from tests.runs.helpers import RESULTS, clusters, metrics_of, steps_saved
from tests.runs.processes import finish, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable


def torchrun(n_processes: int, *words: object) -> list[str]:
    """What Python is told so that it runs `words` on `n_processes`."""
    module = ["-m", "torch.distributed.run", "--standalone"]
    return [*module, "--nproc-per-node", str(n_processes), *map(str, words)]


def fit(*words: object) -> list[str]:
    return ["-m", "streamkm", "fit", *map(str, words)]


def start(words: list[str], folder: Path, **more: str) -> Forked:
    """Python in a process of its own; what it and its processes say can be read."""
    # (torchrun leaves folders in TMPDIR.)
    return Forked(words, cwd=folder, environment=environment(TMPDIR=str(folder), **more))


#: Stops attempts on 1, 3, 2, 1, ... processes ever later, and compares with a run of one process.
#: Worlds of fewer processes than are started are groups of the first of them. One of them keeps no
#: row in memory, one keeps some and one all.
RESUMED = """
from dataclasses import replace
from pathlib import Path
from streamkm.clustering import sizing
from streamkm.runs.engine import agreement
from streamkm.runs.planning import residency
from streamkm.stream import plan
from tests.runs.engine.cases import CASES
from tests.runs import helpers
from tests.runs.helpers import Job

class StopFrom(helpers.StopAfter):
    @property
    def signal_name(self):
        self.looks += 1
        return "SIGTERM" if self.n and self.looks >= self.n else None

    @signal_name.setter
    def signal_name(self, value):
        pass

helpers.StopAfter = StopFrom
agreement.MOST_STEPS = 1
sizing.MOVING_PASSES, sizing.MOST_PASSES, sizing.EXCHANGING = 2, 3, (0,)
plan.WINDOW_BYTES = 1000
NAMES = sys.argv[2:]

def attempts(case, folder, worlds, first):
    rank = worlds[3].rank
    residency.available_memory = lambda: (0, 6000, 1 << 30)[rank] * residency.FREE_PART
    made = None
    if rank == 0:
        folder.mkdir()
        job = case.job(folder)
        whole = replace(job, run=folder / "whole")
        whole.attempt()
        made = [str(job.source), job.settings, job.weights and str(job.weights)]
    source, settings, weights = worlds[3].gather(made)[0]
    if rank:  # They need not see the run folder.
        run = folder / f"none-{rank}"
        job = Job(Path(source), run, settings, weights and Path(weights))
    sizes = []
    while True:
        size = (1, 3, 2)[(first + len(sizes)) % 3]
        ended = False
        if rank < size:
            # One of them is asked to stop.
            stop = 3 + 4 * len(sizes) if rank == size - 1 else None
            try:
                job.attempt(stop, world=worlds[size])
                ended = True
            except Interrupted:
                pass
        sizes.append(size)
        if worlds[3].gather(ended)[0]:
            break
    job.attempt(world=worlds[3])  # It is finished: nothing is left to do.
    worlds[3].barrier()
    if rank == 0:
        same = job.results == whole.results
        print(case.name, "on", sizes, "SAME" if same else "DIFFERENT", flush=True)
    else:
        assert not job.run.exists()

def main():
    with joined("cpu", 30) as w:
        two = dist.new_group([0, 1])
        worlds = {1: ALONE, 3: w}
        if w.rank < 2:
            worlds[2] = World(w.rank, w.local_rank, w.hosts[:2], group=two)
        for first, name in enumerate(NAMES):
            case = next(case for case in CASES if case.name == name)
            attempts(case, Path(sys.argv[1]) / str(first), worlds, first)

ends(main)
"""
NAMES = [
    "minibatch",
    "minibatch, k-means||, cosine",
    "minibatch, z-score",
    "minibatch, min-max, drop",
    "minibatch, weighted, starved clusters",
    "tree",
    "tree, weighted, starved clusters",
    "from a run, half-life",
    "from a run, weighted",
    "lloyd, weighted, cosine",
    "lloyd, z-score, drop",
    "lloyd, empty clusters",
    "minibatch, bounded sizes",
    "lloyd, bounded sizes, weighted, cosine, drop",
]


# Breaks when what a checkpoint holds, or what a process goes on with, depends on how many there
# are; or when another process than the first needs the run folder.
def test_the_number_of_processes_may_change_at_every_attempt(tmp_path):
    python = command(environment())
    words = ["--no-python", *python, script(tmp_path, RESUMED), tmp_path, *NAMES]
    done = start(torchrun(3, *words), tmp_path)
    said, errors = done.communicate(timeout=180)
    assert done.returncode == 0, errors
    lines = [line for line in said.splitlines() if " on [" in line]
    assert [line.partition(" on [")[0] for line in lines] == NAMES
    for line in lines:
        assert line.endswith("SAME"), line
        assert len(set(re.findall(r"[123]", line.rpartition("[")[2]))) > 1, line


# ---- the command ------------------------------------------------------------


@pytest.fixture(scope="module")
def x(tmp_path_factory) -> Path:
    """Rows enough for a fit that lasts until it is stopped."""
    path: Path = tmp_path_factory.mktemp("x") / "x.zarr"
    array = zarr.create_array(path, shape=(60_000, 8), chunks=(1000, 8), dtype="f4")
    array[:] = clusters(60_000, 8, n_clusters=40)
    return path


#: Passes without an end in sight, and a checkpoint every now and then.
LONG = (
    "--k", 64, "--algorithm", "lloyd", "--init", "random", "--tol", 0, "--epochs", 60,
    "--batch-rows", 2000, "--scale", "zscore", "--device", "cpu", "--process-timeout", 20,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(x) -> dict[str, bytes]:
    """What such a fit ends with that one process makes without a stop."""
    out = x.parent / "whole"
    assert finish(start(fit(x, *LONG, "--out", out), x.parent))[0] == 0
    return {name: (out / name).read_bytes() for name in RESULTS}


def ranks(launcher: Forked) -> dict[int, int]:
    """The process of each rank that a launcher has started."""
    found = {}
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes()
        if rank := re.search(rb"(?:^|\0)RANK=(\d+)", variables):
            found[int(rank[1])] = int(child)
    return found


def has_saved(out: Path) -> Callable[[], bool]:
    before = steps_saved(out)
    return lambda: steps_saved(out) != before


def errors_of(stderr: str) -> list[str]:
    return re.findall(r"^streamkm: .*$", stderr, re.MULTILINE)


# Breaks when the processes stop at unlike steps, one is left behind, or the checkpoint of one
# number of processes is none for another.
@pytest.mark.slow
def test_signals_and_kills_end_all_and_the_run_goes_on_with_the_same_bytes(x, whole, tmp_path):
    out, host = tmp_path / "run", socket.gethostname()
    long = [x, *LONG, "--checkpoint-every", 10, "--out", out, "--resume"]
    # SIGTERM to one process, SIGUSR1 to who has started them, SIGKILL to one.
    for n_processes, target, number, status, message in (
        (3, 1, signal.SIGTERM, 75, "stopped by SIGTERM; "),
        (2, None, signal.SIGUSR1, 75, "stopped by SIGUSR1; "),
        (3, 2, signal.SIGKILL, 1, f"process 2 of 3 on {host} died, was stopped or lost the link"),
    ):
        process = start(fit(*long, "--processes", n_processes), tmp_path)
        assert wait_until(has_saved(out), process)
        os.kill(process.pid if target is None else ranks(process)[target], number)
        ended, stderr = finish(process)
        (error,) = errors_of(stderr)
        assert (ended, error.startswith(f"streamkm: {message}")) == (status, True), stderr
        if status == 75:
            assert f"step-{max(steps_saved(out)):08d} is saved: repeat with --resume" in error
        assert len(steps_saved(out)) <= 2
    status, stderr = finish(start(fit(*long), tmp_path))
    assert status == 0, stderr
    assert "resumed: from step-" in stderr
    assert {name: (out / name).read_bytes() for name in RESULTS} == whole


SHORT = ("--k", 5, "--batch-rows", 2000, "--device", "cpu", "--process-timeout", 20)


# Breaks when more than one process speaks or writes, or records leave a process out.
def test_one_process_speaks_for_all_and_records_each(x, tmp_path):
    out = tmp_path / "run"
    process = start(fit(x, *SHORT, "--out", out, "--processes", 2), tmp_path)
    status, stderr = finish(process)
    assert status == 0, stderr
    said = [line.partition(" ")[2] for line in stderr.splitlines()]
    host = socket.gethostname()
    assert said.count(f"on 2 processes ({host})") == 1
    for once in (
        "stays in memory once it was read: ",
        "seeded (auto): ",
        "stopped: ",
        "written: ",
        "process 0: bottleneck: ",
        "waiting",
    ):
        assert sum(line.startswith(once) for line in said) == 1, once
    (record,) = (each for each in metrics_of(out) if each["phase"] == "processes")
    assert [(each["rank"], each["host"]) for each in record["processes"]] == [(0, host), (1, host)]
    for each in record["processes"]:
        assert each.keys() >= {"rows", "elapsed_s", "waited_s", "stages"}
        assert 0 < each["waited_s"] < each["elapsed_s"]
    # Each row once in training, and once more in the closing pass.
    assert sum(each["rows"] for each in record["processes"]) == 2 * 60_000
    status, stderr = finish(start(fit(x, *SHORT, "--out", out, "--processes", 2), tmp_path))
    assert (status, errors_of(stderr)) == (
        2, [f"streamkm: {out} exists; add --resume to go on with it, or choose another --out"],
    )  # fmt: skip


def test_a_dry_run_is_printed_once_and_counts_processes(x, tmp_path):
    out = tmp_path / "run"
    process = start(fit(x, *SHORT, "--out", out, "--processes", 3, "--dry-run"), tmp_path)
    said, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert said.count("source  ") == 1
    host = socket.gethostname()
    assert f"processes    3 ({host}): each reads 20 of 60 blocks an epoch" in said
    assert re.search(
        r"^network      each process sends \d.* a step and \d.* a closing pass", said, re.M
    )
    assert not out.exists()


# Breaks when what one process finds is told by several, or by none.
@pytest.mark.parametrize("more", [(), ("--algorithm", "lloyd"), ("--scale", "zscore")])
def test_a_row_that_is_not_finite_is_told_once(more, tmp_path):
    rows = clusters(6000, 4)
    rows[3210, 2] = np.nan
    array = zarr.create_array(tmp_path / "x.zarr", shape=rows.shape, chunks=(1000, 4), dtype="f4")
    array[:] = rows
    process = start(fit("x.zarr", *SHORT, *more, "--out", "run", "--processes", 2), tmp_path)
    status, stderr = finish(process)
    (error,) = errors_of(stderr)
    assert (status, "row 3210 holds nan (feature 2; 1 such rows" in error) == (2, True), stderr


def by_hand(x: Path, folder: Path, *differing: tuple[object, ...]) -> list[tuple[int, str]]:
    """Statuses and errors of processes with unlike options, each in a folder of its own."""
    port, started = str(free_port()), []
    for rank, more in enumerate(differing):
        (folder / str(rank)).mkdir(parents=True)
        variables = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(differing)),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        command = fit(x, *SHORT, "--out", "run", *more)
        started.append(start(command, folder / str(rank), **variables))
    return [finish(process) for process in started]


def test_processes_with_unlike_settings_are_refused(x, tmp_path):
    ended = by_hand(x, tmp_path, ("--seed", 1), ("--seed", 2))
    host = socket.gethostname()
    assert [status for status, _ in ended] == [2, 2]
    (error,) = errors_of("".join(stderr for _, stderr in ended))
    assert f"need the same seed: rank 0 on {host} has 1, rank 1 on {host} has 2; " in error
    assert not list(tmp_path.glob("*/run"))


# Breaks on machines that do not share a disk; and when a finished run is resumed there.
def test_the_run_folder_is_that_of_the_first_process(x, tmp_path):
    kept = tmp_path / "kept"
    for folder, more in ((tmp_path / "first", ()), (tmp_path / "again", ("--resume",))):
        ended = by_hand(x, folder, ("--out", kept, *more), more)
        assert [status for status, _ in ended] == [0, 0], ended
        assert not list(folder.glob("*/*"))
    assert (kept / "model.safetensors").exists()


def test_processes_are_started_once(x, tmp_path):
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    process = start(fit(x, *SHORT, "--out", "run", "--processes", 3), tmp_path, **variables)
    status, stderr = finish(process)
    (error,) = errors_of(stderr)
    assert status == 2
    assert error.startswith("streamkm: --processes 3 starts processes, and WORLD_SIZE=2 says")


# ---- under torchrun -----------------------------------------------------------


# Breaks when an attempt of the agent's does not go on from the checkpoint, or ends otherwise.
@pytest.mark.slow
def test_torchrun_goes_on_by_itself_after_a_kill(x, whole, tmp_path):
    out = tmp_path / "run"
    words = fit(x, *LONG, "--checkpoint-every", 10, "--out", out, "--resume")
    process = start(torchrun(2, "--max-restarts", 1, *words), tmp_path)
    assert wait_until(has_saved(out), process)
    os.kill(ranks(process)[1], signal.SIGKILL)
    status, stderr = finish(process, 120)
    assert status == 0, stderr
    assert "resumed: from step-" in stderr
    assert {name: (out / name).read_bytes() for name in RESULTS} == whole


#: A process that names its processor after itself. The second keeps no breath, as if its last bits
#: led it elsewhere.
UNLIKE = """
from streamkm import cli
from streamkm.clustering.seeding.breathing import Breathing
from streamkm.distributed import cards

rank = os.environ["RANK"]
if sys.argv[1] == "unlike":
    cards.processor_name = lambda: "processor " + rank
    if rank == "1":
        keep = Breathing._keep_if_better_
        Breathing._keep_if_better_ = lambda self, found: self.n_done == 0 and keep(self, found)
sys.exit(cli.main(sys.argv[2:]))
"""


# Breaks when processes wait for others that have taken more steps of seeding, or fewer.
def test_unlike_processors_seed_as_the_first(x, tmp_path):
    path = script(tmp_path, UNLIKE)
    for name in ("alike", "unlike"):
        port, started = str(free_port()), []
        for rank in ("0", "1"):
            variables = {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
            words = fit(x, *SHORT, "--out", name, "--process-timeout", 10)[2:]
            started.append(start([str(path), name, *words], tmp_path, **variables))
        for process in started:
            status, stderr = finish(process)
            assert status == 0, stderr
    seeds = [np.load(tmp_path / name / "centroids.npy") for name in ("alike", "unlike")]
    assert np.array_equal(*seeds)


# ---- sweeps -------------------------------------------------------------------

SWEPT = ("--k", 4, 7, "--seeds", 0, 1, "--scale", "none", "zscore", "--batch-rows", 2000,
         "--device", "cpu", "--process-timeout", 20)  # fmt: skip


def swept(folder: Path) -> dict[str, bytes]:
    """All results of a sweep."""
    names = [f"{run.name}/{name}" for run in folder.glob("k-*") for name in RESULTS]
    return {name: (folder / name).read_bytes() for name in sorted(["sweep.json", *names])}


# Breaks when fits take turns in an unlike order, so that one gets the sums of another.
@pytest.mark.parametrize(
    "more",
    [("--init", "k-means||"), pytest.param(("--algorithm", "lloyd"), marks=pytest.mark.slow)],
)
def test_a_sweep_has_the_bytes_of_one_process(more, x, tmp_path):
    ended = []
    for n_processes in (1, 2):
        out = tmp_path / str(n_processes)
        words = (x, *SWEPT, *more, "--out", out, "--processes", n_processes)
        process = start([*sweep(), *map(str, words)], tmp_path)
        said, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        ended.append((said, swept(out)))
    assert len(ended[0][1]) == 1 + 8 * len(RESULTS)
    assert ended[0] == ended[1]


def sweep() -> list[str]:
    return ["-m", "streamkm", "sweep"]


# Breaks when processes stop at unlike steps, or figures need a process that is not there any more.
@pytest.mark.slow
def test_a_sweep_that_was_stopped_goes_on_with_the_same_bytes(x, tmp_path):
    long = (x, *SWEPT, "--algorithm", "lloyd", "--tol", 0, "--epochs", 40, "--init", "random")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert finish(start([*sweep(), *map(str, (*long, "--out", whole))], tmp_path))[0] == 0
    for n_processes, target in ((3, 1), (2, 0)):
        words = (*long, "--checkpoint-every", 10, "--out", out, "--resume",
                 "--processes", n_processes)  # fmt: skip
        process = start([*sweep(), *map(str, words)], tmp_path)
        assert wait_until(has_saved(out / "k-0004-zscore-seed-1"), process)
        os.kill(ranks(process)[target], signal.SIGTERM)
        status, stderr = finish(process)
        (error,) = errors_of(stderr)
        assert (status, f"stopped by SIGTERM; in {out} 8 fits can go on" in error) == (75, True)
    last = (*long, "--out", out, "--resume")
    assert finish(start([*sweep(), *map(str, last)], tmp_path))[0] == 0
    assert swept(out) == swept(whole)


# Breaks when an error that the first process alone has leaves the others, or other fits, waiting.
def test_an_error_of_one_fit_ends_a_sweep_in_all(x, tmp_path):
    words = [str(word) for word in (x, *SWEPT, "--out", "out", "--processes", 2)]
    assert finish(start([*sweep(), *words], tmp_path))[0] == 0
    (tmp_path / "out" / "sweep.json").rename(tmp_path / "kept")
    kept = json.loads((tmp_path / "kept").read_text())
    del kept["sha256"], kept["figures"]
    (tmp_path / "out" / "sweep.json").write_bytes(seal(kept))
    for damaged in ("config.json", "model.safetensors"):
        (tmp_path / "out/k-0004-none-seed-1" / damaged).write_bytes(b"no")
    status, stderr = finish(start([*sweep(), *words, "--resume"], tmp_path))
    (error,) = errors_of(stderr)
    assert (status, "config.json is damaged" in error) == (2, True), stderr


#: A sweep of rows of which hardly any fit in memory: each process copies its part of a sample.
SAMPLED = """
from streamkm.cli import main
from streamkm.runs.sweeping import figures, measuring

measuring.kept_bytes = lambda *_, **__: 1
figures.MOST_ROWS = figures.LEAST_ROWS = 3000
sys.exit(main(sys.argv[1:]))
"""


# Breaks when rows of a sample that another process has read are read again, or are not there.
def test_a_sample_is_brought_together(x, tmp_path):
    path = script(tmp_path, SAMPLED)
    found = []
    for n_processes in (1, 2):
        out = tmp_path / str(n_processes)
        words = [str(word) for word in ("sweep", x, *SWEPT, "--out", out)]
        told = [str(path), *words]
        if n_processes > 1:
            told = torchrun(n_processes, path, *words)
        status, stderr = finish(start(told, tmp_path), 120)
        assert status == 0, stderr
        found.append(swept(out))
    assert b'"sampled_rows": 3000' in found[0]["sweep.json"]
    assert found[0] == found[1]
