"""Several processes label, judge and fit: the bytes of one process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from streamkm.distributed.world import ALONE
from streamkm.runs.reporting.signals import StopRequest
from tests.distributed.launched import by_hand, script, torchrun
from tests.runs import shared_labels
from tests.runs.shared_labels import CASES, N, estimated, predict_until, write_all

if TYPE_CHECKING:
    from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files in `folder`."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Arrays, runs, and in ``alone`` what one process makes of them."""
    made: Path = tmp_path_factory.mktemp("shared")
    shared_labels.prepare(made)
    write_all(made, made / "alone", ALONE)
    np.savez(made / "alone.npz", **estimated(made))  # type: ignore[arg-type]  # for its flag
    return made


def test_there_are_many_files(folder):
    assert len(contents(folder / "alone")) > 3 * len(CASES)


SAME = """
from pathlib import Path
from tests.runs.shared_labels import write_all

def main():
    with joined("cpu", 30) as w:
        write_all(Path({folder!r}), Path({out!r}), w)
    print("all is well", flush=True)

ends(main)
"""


# Breaks when a batch's rows, a sum or a label depends on who has it.
@pytest.mark.parametrize("n_processes", [2, 3])
def test_several_processes_write_the_bytes_of_one(n_processes, folder, tmp_path):
    out = tmp_path / "out"
    done = torchrun(n_processes, script(tmp_path, SAME.format(folder=str(folder), out=str(out))))
    assert done.stdout.count("all is well") == n_processes, done.stderr
    assert contents(out) == contents(folder / "alone")


# Breaks when sums are added up in an order that threads decide.
def test_two_threads_judge_as_one(folder, tmp_path):
    torch.set_num_threads(2)
    write_all(folder, tmp_path / "out", ALONE)
    assert contents(tmp_path / "out") == contents(folder / "alone")


FOREIGN = """
from pathlib import Path
import numpy as np
from streamkm import KMeans
from tests.runs.shared_labels import K, estimated

def main():
    folder = Path({folder!r})
    dist.init_process_group("gloo")
    x = np.load(folder / "clean.npy")
    found = estimated(folder)
    with np.load(folder / "alone.npz") as alone:
        assert found.keys() == alone.keys()
        for name in alone:
            assert found[name].tobytes() == alone[name].tobytes(), name

    # Without a seed they have one all the same.
    kmeans = KMeans(K, max_iter=2).fit(x)
    seen = [torch.empty(kmeans.cluster_centers_.shape) for _ in range(dist.get_world_size())]
    dist.all_gather(seen, torch.from_numpy(kmeans.cluster_centers_))
    assert all(torch.equal(each, seen[0]) for each in seen)

    # The last row is of one process: all hear of it, and the group goes on.
    bad = x.copy()
    bad[-1] = np.nan
    for data in (bad, bad if dist.get_rank() else x):
        try:
            kmeans.predict(data)
        except StreamkmError as error:
            print(error, flush=True)
        else:
            raise AssertionError
    assert kmeans.predict(x).tobytes() == kmeans.labels_.tobytes()
    # What is not shared, each does alone.
    assert kmeans.transform(x[: dist.get_rank() + 3]).shape == (dist.get_rank() + 3, K)
    # So does a child of one, such as a worker of a DataLoader.
    if dist.get_rank() == 1:
        child = os.fork()
        if not child:
            signal.alarm(20)
            same = kmeans.predict(x).tobytes() == kmeans.labels_.tobytes()
            os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0
    dist.destroy_process_group()
    print("all is well", flush=True)

ends(main)
"""


# Breaks when an estimator in Ray, Lightning or a notebook fits its own model in each process.
def test_estimators_share_the_group_of_a_program(folder, tmp_path):
    done = torchrun(3, script(tmp_path, FOREIGN.format(folder=str(folder))))
    assert done.stdout.count("all is well") == 3, done.stderr
    assert done.stdout.count(f"row {N - 1} holds nan (feature 0; 1 such rows so far)") == 3
    assert done.stdout.count("all processes of a run need the same data") == 3


STOPPED = """
from pathlib import Path
from tests.runs.shared_labels import StopsAt, predict_until

def main():
    kill = (lambda: os.kill(os.getpid(), signal.SIGKILL)) if {kill} else None
    with joined("cpu", 20) as w:
        stop = StopsAt({looks}, w.rank == {rank}, kill)
        predict_until(Path({folder!r}), Path({out!r}), {suffix!r}, {nearest}, w, stop)

ends(main)
"""


# Breaks when who resumes asks for other rows than were saved, rows of a process are lost or written
# twice, or a process is not told to stop.
@pytest.mark.parametrize(
    ("suffix", "nearest", "killed"), [(".npy", None, 2), (".zarr", None, 0), (".npy", 3, 0)]
)
def test_labels_go_on_with_any_number_of_processes(suffix, nearest, killed, folder, tmp_path):
    out = tmp_path / "out" / "euclidean"
    out.parent.mkdir()

    def attempt(size, **how):
        how = {"rank": 0, "looks": 10**6, "kill": False, **how}
        what = {"folder": str(folder), "out": str(out), "suffix": suffix, "nearest": nearest}
        body = STOPPED.format(**what, **how)
        return by_hand(script(tmp_path, body), list(range(size)), size)

    stopped = attempt(2, rank=1, looks=1)
    assert [end.status for end in stopped] == [75, 75]
    said = "".join(end.said for end in stopped)  # One of them says it.
    assert said.count("stopped by SIGTERM; rows up to ") == 1
    rows = int(said.partition("rows up to ")[2].split()[0].replace(",", ""))
    assert 0 < rows < N
    ends = attempt(3, rank=killed, looks=1, kill=True)
    assert [end.status for end in ends] == [-9 if rank == killed else 1 for rank in range(3)]
    # One of the others tells it, or both where the board went along.
    told = sum(end.said.count("continue with --resume") for end in ends)
    assert told == 1 if killed else told > 0
    predict_until(folder, out, suffix, nearest, ALONE, StopRequest())
    whole = tmp_path / "whole" / "euclidean"
    whole.parent.mkdir()
    predict_until(folder, whole, suffix, nearest, ALONE, StopRequest())
    assert contents(out.parent) == contents(whole.parent)


COMMANDS = """
from streamkm import batch_rows
from streamkm.cli import main as command
from streamkm.stream import plan

plan.WINDOW_BYTES = 40_000
batch_rows.MAX_BATCH_ROWS = batch_rows.MOST_SHORT_ROWS = 1_024
for number, words in enumerate({lines}):
    os.environ["MASTER_PORT"] = os.environ["PORTS"].split()[number]
    print("status", command(words.split()), flush=True)
    print(f"end of {{number}}", file=sys.stderr, flush=True)
"""


# Breaks when every process complains of the same row, or prints the figures.
def test_commands_speak_once(folder, tmp_path):
    run, source = folder / "euclidean.run", folder / "x.zarr"
    labels = tmp_path / "labels.npy"
    lines = [
        f"predict {run} {source} --labels {labels} --nan error --device cpu",
        f"evaluate {run} {source} --nan error --device cpu",
        f"evaluate {run} {source} --json --device cpu",
        f"predict {run} {source} --labels {labels} --dry-run --device cpu",
        f"predict {run} {source} --labels {folder / 'alone' / 'euclidean.npy'} --device cpu",
    ]
    ends = by_hand(script(tmp_path, COMMANDS.format(lines=lines)), [0, 1], 2)
    for end in ends:
        assert [int(line[7:]) for line in lines_of(end, "status ")] == [2, 2, 0, 0, 2]
    first, other = ends
    complaints = lines_of(first, "streamkm: ") + lines_of(other, "streamkm: ")
    bad = "row 4 holds nan (feature 1; 1 such rows so far); --nan drop leaves rows with NaN or "
    assert sorted(line.rpartition(": ")[2] for line in complaints) == [
        "exists already; remove it or choose another name",
        bad + "infinity out",
        bad + "infinity out",
    ]
    assert len(lines_of(first, "rows  ")) == 1
    assert not lines_of(other, "rows  ")
    figures = [json.loads(line) for end in ends for line in lines_of(end, '{"rows"')]
    assert figures == [json.loads((folder / "alone" / "euclidean.json").read_text())]
    assert not labels.exists()


APART = """
from pathlib import Path
from streamkm.cli import main as command

Path({folder!r}, os.environ["RANK"]).mkdir()
os.chdir(Path({folder!r}, os.environ["RANK"]))
if os.environ["RANK"] == "1":
    Path("left").mkdir()
    Path("left", "config.json").write_text("{{}}")
for number, words in enumerate({lines}):
    os.environ["MASTER_PORT"] = os.environ["PORTS"].split()[number]
    begin = time.monotonic()
    print("status", command(words.split()), flush=True)
    assert time.monotonic() - begin < 60
"""


# Breaks when processes that do not share a disk find out after hours, or cannot write at all.
def test_what_is_not_shared_is_refused_at_the_start(folder, tmp_path):
    run, source = folder / "euclidean.run", folder / "x.zarr"
    lines = [
        f"predict {run} {source} --labels labels.npy --device cpu",
        f"predict {run} {source} --labels labels.parquet --device cpu",
        f"fit {source} --k 2 --nan drop --out left --resume --device cpu",
    ]
    ends = by_hand(script(tmp_path, APART.format(folder=str(tmp_path), lines=lines)), [0, 1], 2)
    for end in ends:
        assert [int(line[7:]) for line in lines_of(end, "status ")] == [2, 0, 2], end.said
    labels, left = lines_of(ends[0], "streamkm: ") + lines_of(ends[1], "streamkm: ")
    if "a run in" in labels:
        labels, left = left, labels
    assert f"{tmp_path / '1'} of process 1 on " in labels
    assert f"is not the {tmp_path / '0'} of process 0 on " in labels
    assert f"sees a run in {tmp_path / '1' / 'left'} to go on with" in left
    assert [path.name for path in (tmp_path / "0").iterdir()] == ["labels.parquet"]
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["left"]


def lines_of(end, start: str) -> list[str]:
    return [line for line in end.said.splitlines() if line.startswith(start)]
