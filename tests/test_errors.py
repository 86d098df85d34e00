"""One message for two faces: flags on the command line, parameters in Python."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest

from streamkm import KMeans, MiniBatchKMeans, open_source
from streamkm.cli import main
from streamkm.errors import ConfigError, NonFiniteError, Option, SourceError


def test_a_setting_is_a_parameter_or_a_flag():
    error = ConfigError(
        "use ", Option("nan", "drop"), ", ", Option("max_host_memory"), ", ",
        Option("run_dir", "r"), ", ", Option("resume", value=True), " or ",
        Option("closing_pass", value=False),
    )  # fmt: skip
    assert (
        str(error)
        == "use nan='drop', max_host_memory, run_dir='r', resume=True or closing_pass=False"
    )
    assert error.for_command_line == (
        "use --nan drop, --max-host-memory, --out r, --resume or --no-closing-pass"
    )
    # It may come from another process, as joblib's do.
    assert str(deepcopy(error)) == str(error)


# ---- what users of either meet ----------------------------------------------


@pytest.fixture
def rows():
    rows = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    rows[7, 1] = np.nan
    return rows


def test_python_is_answered_in_python(rows, tmp_path):
    with pytest.raises(NonFiniteError, match=r"row 7 .*; nan='drop' leaves rows") as caught:
        KMeans(n_clusters=2).fit(rows)
    assert "--" not in str(caught.value)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/file").write_text("mine")
    fit = MiniBatchKMeans(n_clusters=2, random_state=0, run_dir=tmp_path / "run").fit
    with pytest.raises(ValueError, match=r"choose another run_dir$"):
        fit(rows[:5])
    with pytest.raises(ValueError, match=r"max_host_memory='1\.0 MiB' is too small"):
        KMeans(n_clusters=2, max_host_memory="1MiB").fit(rows[:5])
    (tmp_path / "x.dat").write_bytes(b"12345678")
    with pytest.raises(SourceError, match="for raw rows give dtype and n_features"):
        open_source(tmp_path / "x.dat")


def test_the_command_line_is_answered_with_flags(rows, tmp_path, capsys):
    np.save(tmp_path / "x.npy", rows)
    (tmp_path / "x.dat").write_bytes(b"12345678")
    for source, flags, remedy in (
        ("x.npy", (), "--nan drop leaves rows"),
        ("x.npy", ("--max-host-memory", "1MiB"), "--max-host-memory 1.0 MiB is too small"),
        ("x.dat", (), "for raw rows give --dtype and --features"),
        (
            "x.npy",
            ("--column", "a"),
            "--column is for .parquet .arrow .arrows .feather, not for .npy",
        ),
    ):
        arguments = ["fit", str(tmp_path / source), "--k", "2", "--out", str(tmp_path / "run")]
        assert main([*arguments, *flags]) == 2
        assert remedy in capsys.readouterr().err
