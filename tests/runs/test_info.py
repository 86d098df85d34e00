"""``streamkm info``: how far a run has come, who works on it, and what an array is."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamkm import load_run
from streamkm.runs.storage.model import load_model
from streamkm.runs.storage.model_file import read_model_file, write_model_file
from streamkm.runs.storage.run_folder import RunFolder
from tests.runs.helpers import cli


@pytest.fixture
def x(tmp_path) -> Path:
    path: Path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32))
    return path


def test_info_tells_how_far_a_run_has_come(x, tmp_path, capsys):
    run = tmp_path / "run"
    settings = ("--batch-rows", 20, "--init", "random", "--checkpoint-every", 1)
    assert cli("fit", x, "--k", 2, "--out", run, *settings) == 0
    assert cli("info", run) == 0
    out = capsys.readouterr().out
    assert "finished" in out
    model = load_model(run)
    assert model.inertia is not None
    assert f"inertia      {model.inertia:.9g} ({model.inertia / 200:.6g} per row)" in out
    sizes = sorted(model.counts_K.tolist())
    # Of the 200 rows of two clusters one has 100 in the median, whatever their sizes.
    assert f"sizes        {sizes[0]} least, 100 median, {sizes[1]} most, 0 clusters" in out
    assert "steps        10 in 1 epoch\nstopped      all epochs are done (1)" in out
    assert re.search("^batch-rows +20$", out, re.MULTILINE)
    assert re.search("^rate +annealed$", out, re.MULTILINE)
    assert "n-init" not in out  # as by default
    (run / "model.safetensors").unlink()
    assert cli("info", run) == 0
    assert "unfinished   step-00000022: close, epoch 1, batch 10" in capsys.readouterr().out


# Breaks when a model of before the reason was kept is refused.
def test_a_run_of_before_reasons_were_kept_says_so(x, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli("fit", x, "--k", 2, "--out", run) == 0
    tensors, about = read_model_file(run)
    del about["figures"]["stop_reason"]
    write_model_file(run / "model.safetensors", tensors, about)
    assert cli("info", run) == 0
    assert "stopped      not recorded: an older version" in capsys.readouterr().out
    assert load_run(run).stop_reason_.startswith("not recorded")


def test_info_tells_who_is_working_on_a_run(x, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli("fit", x, "--k", 2, "--out", run, "--no-closing-pass", "--n-init", 2) == 0
    with RunFolder(run, json.loads((run / "config.json").read_text()), resume=True):
        assert cli("info", run) == 0
    out = capsys.readouterr().out
    assert f"working      process {os.getpid()} on {os.uname().nodename} is working on it" in out
    assert "inertia      not known without a closing pass" in out
    assert re.search("^n-init +2$", out, re.MULTILINE)
    assert cli("info", run) == 0
    assert "working on it" not in capsys.readouterr().out
    whole = run / "model.safetensors"
    whole.rename(tmp_path / "model")
    with RunFolder(run, json.loads((run / "config.json").read_text()), resume=True):
        assert cli("info", run) == 0
    out = capsys.readouterr().out
    assert ("running      step-" in out, "unfinished" in out) == (True, False)
    model = (tmp_path / "model").rename(whole)
    model.write_bytes(model.read_bytes()[:-9])
    assert cli("info", run) == 2
    assert "model.safetensors is damaged" in capsys.readouterr().err


# Shards may lie beside a folder of any name.
def test_info_takes_a_folder_of_shards_for_a_source(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.ones((7, 3), np.float32))
    (tmp_path / "checkpoints").mkdir()
    assert cli("info", tmp_path) == 0
    assert "7 rows" in capsys.readouterr().out


def test_info_gives_the_number_of_features_once(tmp_path, capsys):
    table = {f"f{i}": np.zeros(5, np.float32) for i in range(20)}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    assert cli("info", tmp_path / "x.parquet") == 0
    printed = capsys.readouterr().out
    assert "\nfeatures     20 (f0, f1, f2, f3, f4, f5, f6, f7, ...)\n" in printed


# Breaks when the order of the files, which decides what a row number means, is not shown.
def test_info_lists_the_files_of_a_source_in_the_order_of_their_rows(tmp_path, capsys):
    for number in range(14):
        np.save(tmp_path / f"part-{number}.npy", np.zeros((10, 2), np.float32))
    assert cli("info", tmp_path) == 0
    out = capsys.readouterr().out
    assert f"order        {tmp_path}/part-0.npy from row 0\n" in out
    assert f"{tmp_path}/part-10.npy from row 100\n             ... (2 more)\n" in out
    assert f"             {tmp_path}/part-13.npy from row 130\n" in out
    assert "note         " in out
    assert "part-2.npy come before" in out
