"""The probe: what follows from its figures by hand, and that a run with it is the same run."""

from __future__ import annotations

import itertools
import math
import re
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.config import ExecutionConfig, FitConfig
from streamkm.runs.engine import probe as probing
from streamkm.runs.engine.probe import Alone, Probe, Prober, format_rate
from streamkm.runs.engine.timing import PhaseClock
from streamkm.runs.planning.fit_plan import FitPlan
from streamkm.sources import open_source
from streamkm.sources.flat import FlatSource
from streamkm.stream.slots import HostSlots
from tests.runs.helpers import Job, clusters, every, metrics_of
from tests.stream.fake_gpu import FakeGpu

FAST, SLOW = Alone(4e6, 0.25e-6), Alone(1e6, 1e-6)
MEASURED = Probe(
    moving={"reading": FAST},
    arithmetic={"train": SLOW, "close": SLOW},
    rows={"train": 3, "close": 1},
    n_cores=2,
    on_host=True,
    overlaps=True,
    row_bytes=8,
    seconds=1.0,
)


@pytest.fixture
def job(tmp_path, monkeypatch) -> Job:
    monkeypatch.setattr(probing, "PROBE_S", 0.001)
    np.save(tmp_path / "x.npy", clusters(600, 3))
    return Job(tmp_path / "x.npy", tmp_path / "run", {"k": 4, "batch_rows": 50})


# ---- by hand ----------------------------------------------------------------


def test_where_cores_suffice_the_slowest_stage_is_the_ceiling():
    # Two cores do 2 / 1.25e-6 = 1.6 million rows a second of both, one stage alone a million.
    assert MEASURED.together == pytest.approx(1.6e6)
    assert MEASURED.ceiling("arithmetic") == MEASURED.most_rows_per_s == 1e6
    assert MEASURED.ceiling("reading") == pytest.approx(1.6e6)
    said = MEASURED.reached("arithmetic", 0.91e6)
    assert said == "0.91 of what the probe measured for it alone (0.91 of 1 million rows/s)"
    assert "together" not in MEASURED.lines()[0]


def test_where_reading_takes_the_cores_from_the_arithmetic_they_are_the_ceiling():
    one = replace(MEASURED, n_cores=1)
    assert one.ceiling("arithmetic") == one.most_rows_per_s == pytest.approx(0.8e6)
    said = one.reached("arithmetic", 0.6e6)
    assert said.startswith("0.75 of what 1 core can do of reading and arithmetic together")
    assert "1 core can do of reading and arithmetic together: 800,000 rows/s" in one.lines()[0]


def test_without_readers_stages_take_turns_and_on_a_gpu_none_takes_from_another():
    turns = replace(MEASURED, overlaps=False)
    assert turns.together == pytest.approx(0.8e6)
    assert "in turns" in turns.reached("arithmetic", 0.4e6)
    gpu = replace(MEASURED, on_host=False, moving={"reading": FAST, "copying": SLOW}, n_cores=1)
    assert gpu.together is None
    assert gpu.ceiling("reading") == 4e6
    assert gpu.most_rows_per_s == 1e6


def test_arithmetic_is_averaged_by_the_rows_of_its_phases():
    mixed = replace(MEASURED, arithmetic={"train": FAST, "close": SLOW})
    # Three rows of 0.25 and one of 1 microsecond, and as much processor time.
    assert mixed.stages["arithmetic"].rows_per_s == pytest.approx(4 / 1.75e-6)
    assert mixed.stages["arithmetic"].core_s_per_row == pytest.approx(1.75e-6 / 4)
    assert replace(mixed, rows={"train": 5, "close": 0}).stages["arithmetic"] == FAST
    # Lloyd's algorithm may come to a closing pass that nobody had planned.
    unplanned = replace(MEASURED, arithmetic={"train": FAST}, rows={"train": 1, "close": 1})
    assert unplanned.stages["arithmetic"].rows_per_s == pytest.approx(4e6)


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (31234.5, "31,234 rows/s"),
        (1e6, "1 million rows/s"),
        (2.84e6, "2.84 million rows/s"),
        (123.456e6, "123 million rows/s"),
        (999.7e6, "1,000 million rows/s"),
        (2.9367e9, "2,940 million rows/s"),
        (1.2345e12, "1,230,000 million rows/s"),
    ],
)
def test_rates_for_people(rate, text):
    assert format_rate(rate) == text
    fast = replace(MEASURED, arithmetic={"train": Alone(2.5e9, 1e-12)}, rows={"train": 1})
    fast = replace(fast, moving={"reading": Alone(2.5e9, 1e-12)})
    assert fast.reached("reading", 1.5e9).endswith("(1,500 of 2,500 million rows/s)")


def test_phases_are_given_as_shares_of_the_whole(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("streamkm.runs.engine.timing.time.perf_counter", lambda: now[0])
    clock = PhaseClock()
    for name, spent in (("seed", 3.0), ("train", 4.0), ("seed", 1.0), ("close", 2.0)):
        with clock.phase(name):
            now[0] += spent
    assert str(clock) == "time: 10.0 s (seed 40%, train 40%, close 20%)"
    now[0] += 2.5  # A time that is no phase's is part of the whole.
    assert str(clock) == "time: 12.5 s (seed 32%, train 32%, close 16%, other 20%)"


# ---- in a run ---------------------------------------------------------------


# Breaks when the probe touches the state, the order, a generator or the count of rechecked rows.
# (Records that come by time would be more of one run than of the other on a busy machine.)
@pytest.mark.usefixtures("no_reports")
@pytest.mark.parametrize(
    "settings",
    [{}, {"scale": "zscore", "init": "random"}, {"algorithm": "lloyd", "epochs": 2}],
    ids=str,
)
def test_a_probed_run_is_the_same_run(settings, job):
    job.settings.update(settings)
    job.attempt()
    probed = replace(job, run=job.run.with_name("probed"))
    probed.attempt(probe=True)
    assert probed.results == job.results
    plain, records = metrics_of(job.run), metrics_of(probed.run)
    assert [r["phase"] for r in records if r["phase"] != "probe"] == [r["phase"] for r in plain]
    for one, other in zip(plain, (r for r in records if r["phase"] != "probe"), strict=True):
        assert one.get("rechecked_share") == other.get("rechecked_share")


def test_what_the_probe_found_is_said_and_recorded(job, capsys):
    job.attempt(probe=True)
    (found,) = [record for record in metrics_of(job.run) if record["phase"] == "probe"]
    names = {"reading", "arithmetic (train)", "arithmetic (close)"}
    assert found["rows_per_s"].keys() == found["core_s_per_million_rows"].keys() == names
    assert min(found["rows_per_s"].values()) > 0
    end = metrics_of(job.run)[-1]
    assert end["bottleneck"] in ("reading", "arithmetic")
    assert 0 < end["busy_share"] <= 1
    assert end["share_of_probe"] == pytest.approx(
        end["rows_per_s"] / end["probe_rows_per_s"], abs=1e-3
    )
    assert end["seconds"].keys() == {"seed", "probe", "train", "close"}
    said = capsys.readouterr().err
    assert "each alone: reading " in said
    assert "in the page cache" in said
    assert f"bottleneck: {end['bottleneck']}, busy " in said
    share = re.search(r"; ([0-9.]+) of what ", said)
    assert share
    assert float(share[1]) == pytest.approx(end["share_of_probe"], abs=0.0051)
    assert "time: " in said


def test_without_a_probe_no_ceiling_is_claimed(job, capsys):
    job.attempt()
    assert "share_of_probe" not in metrics_of(job.run)[-1]
    assert " of what " not in capsys.readouterr().err


# Stopped in training and in the closing pass: another attempt probes what is left for it.
@pytest.mark.parametrize(("stop_at", "phases"), [(10, {"train", "close"}), (20, {"close"})])
@pytest.mark.parametrize("read_threads", [0, 2])
def test_a_resumed_run_can_be_probed(stop_at, phases, read_threads, job):
    job.settings["init"] = "random"
    job.attempt()
    other = replace(job, run=job.run.with_name("other"))
    assert other.interrupted(stop_at, checkpoint_every=every(1))
    other.attempt(probe=True, read_threads=read_threads)
    assert other.results == job.results
    (found,) = [record for record in metrics_of(other.run) if record["phase"] == "probe"]
    assert {name for name in found["rows_per_s"] if name.startswith("arith")} == {
        f"arithmetic ({phase})" for phase in phases
    }


# Of a slow source no more may be read than was promised.
def test_the_probe_ends_after_so_many_windows(monkeypatch, job):
    monkeypatch.setattr(probing, "PROBE_S", 1e9)
    monkeypatch.setattr(probing, "PROBE_WINDOWS", 3)
    real, read_rows = FlatSource.read, []

    def read(self, rows, out):
        read_rows.append(len(rows))
        real(self, rows, out)

    monkeypatch.setattr(FlatSource, "read", read)
    job.settings["init"] = "random"
    job.attempt(read_threads=1)
    without = sum(read_rows)
    read_rows.clear()
    replace(job, run=job.run.with_name("probed")).attempt(read_threads=1, probe=True)
    # The array is one window: three for reading, and for the arithmetic of either phase.
    assert sum(read_rows) - without == 3 * 3 * 600


# CUDA's streams and events played by fakes; `test_on_gpu` has the real ones.
def test_copying_is_measured_by_the_way_of_a_run(job, monkeypatch):
    monkeypatch.setattr("streamkm.stream.transfer.queues_of", lambda device: FakeGpu())
    source, device = open_source(job.source), torch.device("cpu")
    config = FitConfig(k=4).resolved(600, 3)
    setup = FitPlan.make(source, config, ExecutionConfig(), device, None, None)
    scaling = Scaling.fit("none", "euclidean", RunningMoments.empty(3, device))
    with closing(source), HostSlots(setup.memory.stream, device) as slots:
        alone = Prober(setup, slots, scaling)._copying()
    assert alone.rows_per_s > 0
    assert 0 <= alone.core_s_per_row < math.inf


# Breaks when a machine that pauses after the first batch, which is not counted, ends a run.
def test_a_pause_before_the_first_counted_row_ends_nothing(job, monkeypatch):
    monkeypatch.setattr(probing, "PROBE_S", 0.05)
    job.settings |= {"batch_rows": 600, "init": "random"}  # One batch a window.
    # Before a window, within its first batch, after the window: there the machine pauses.
    pauses_s = itertools.cycle([0, 0, 0.06])
    monkeypatch.setattr(Prober, "_synchronize", lambda self: time.sleep(next(pauses_s)))
    job.attempt(probe=True)
    assert any(record["phase"] == "probe" for record in metrics_of(job.run))
