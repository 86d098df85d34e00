"""``predict --dry-run``: what it says is what the labelling would do."""

from __future__ import annotations

import re

import numpy as np


def test_predict_can_be_tried_out_too(x, tmp_path, cli):
    run, labels, distances = tmp_path / "run", tmp_path / "l.npy", tmp_path / "d.npy"
    assert cli("fit", x, "--k", 4, "--out", run, "--init", "random")[0] == 0
    predict = ("predict", run, x, "--labels", labels, "--distances", distances)
    before = sorted(tmp_path.rglob("*"))
    status, out, err = cli(*predict, "--dry-run")
    assert (status, err) == (0, "")
    assert sorted(tmp_path.rglob("*")) == before
    assert "4 centroids" in out
    assert "outputs: 4.7 KiB at most" in out  # 600 labels and distances of 4 bytes
    assert re.search("^time +about .* rows/s$", out, re.MULTILINE)
    status, _, said = cli(*predict)
    (memory,) = re.findall(r"^memory +(.*)$", out, re.MULTILINE)
    assert (status, memory in said) == (0, True)
    status, out, err = cli(*predict, "--dry-run")
    assert status == 2
    assert "forbids      " in out
    assert err == cli(*predict)[2]
    # With --resume there is nothing to be done, and nothing is.
    before = [(path, path.stat().st_mtime_ns) for path in sorted(tmp_path.rglob("*"))]
    status, out, err = cli(*predict, "--dry-run", "--resume")
    assert (status, err) == (0, "")
    assert f"resume       {labels} and {distances} are finished" in out
    assert [(path, path.stat().st_mtime_ns) for path in sorted(tmp_path.rglob("*"))] == before


def test_what_predict_refuses_is_refused(x, tmp_path, cli):
    run, other = tmp_path / "run", tmp_path / "other.npy"
    assert cli("fit", x, "--k", 4, "--out", run, "--init", "random")[0] == 0
    np.save(other, np.zeros((10, 4), np.float32))
    predict = ("predict", run, other, "--labels", tmp_path / "l.npy")
    assert cli(*predict, "--dry-run")[2] == cli(*predict)[2]
    rows = np.load(x)
    rows[7, 0] = np.inf
    np.save(other, rows)
    status, out, err = cli(*predict, "--dry-run")
    assert (status, "row 7 holds inf" in err, "forbids" in out) == (2, True, True)
    assert cli(*predict, "--dry-run", "--nan", "drop")[0] == 0
