"""Settings: what is refused, what is filled in, and how sizes and times are read."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkm.batch_rows import MAX_BATCH_BYTES, MAX_BATCH_ROWS, MIN_BATCH_ROWS
from streamkm.config import Cadence, ExecutionConfig, FitConfig, ResolvedFitConfig
from streamkm.errors import ConfigError
from streamkm.runs.storage.run_folder import setting_differences

REFUSED = {
    "k 0": ({"k": 0}, "k must be .* at least 1, not 0"),
    "k -1": ({"k": -1}, "k must be"),
    "k 2.0": ({"k": 2.0}, "k must be a whole number"),
    "k True": ({"k": True}, "k must be a whole number"),
    "k text": ({"k": "8"}, "not '8'"),
    "algorithm": ({"algorithm": "elkan"}, "algorithm must be one of minibatch, lloyd"),
    "metric": ({"metric": "l1"}, "metric must be one of euclidean, cosine"),
    "scale": ({"scale": "robust"}, "scale must be one of none, zscore, minmax, l2"),
    "nan": ({"nan": "fill"}, "nan must be one of error, drop"),
    "seed": ({"seed": -1}, "seed must be a whole number of at least 0"),
    "epochs": ({"epochs": 0}, "epochs must be a whole number of at least 1"),
    "batch rows": ({"batch_rows": 0}, "batch_rows must be a whole number of at least 1"),
    "no improvement": ({"max_no_improvement": 0}, "max_no_improvement must be"),
    "no improvement of lloyd": (
        {"max_no_improvement": 10, "algorithm": "lloyd"},
        "needs algorithm='minibatch",
    ),
    "tol < 0": ({"tol": -1e-9}, "tol must be a finite number of at least 0"),
    "tol NaN": ({"tol": float("nan")}, "tol must be"),
    "tol infinite": ({"tol": float("inf")}, "tol must be"),
    "gain < 0": ({"min_gain": -0.1}, "min_gain must be a finite number of at least 0 and below 1"),
    "gain of all": ({"min_gain": 1}, "min_gain must be"),
    "gain NaN": ({"min_gain": float("nan")}, "min_gain must be"),
    "gain of lloyd": (
        {"min_gain": 0.0, "algorithm": "lloyd"},
        "needs algorithm='minibatch or tree'.*tol",
    ),
    "branching": ({"branching": "8by8", "algorithm": "tree"}, "branching must be a whole number"),
    "branching 0": ({"branching": "0", "algorithm": "tree"}, "branching must be a whole number"),
    "branching of minibatch": ({"branching": "2"}, "needs algorithm='tree', not minibatch"),
    "branching that makes another k": (
        {"branching": "3x4", "algorithm": "tree", "k": 16},
        r"branching='3x4' must multiply to k: it makes 12, k is 16; .*branching='3'$",
    ),
    "more branches than clusters": (
        {"branching": "17", "algorithm": "tree", "k": 16},
        "branching='17' must be at most k, 16",
    ),
    "init": ({"init": "centroids.txt"}, "not 'centroids.txt'"),
    "init ''": ({"init": ""}, "init must be"),
    "n-init": ({"n_init": 0}, "n_init must be a whole number of at least 1"),
    "n-init of a file": ({"n_init": 2, "init": "c.npy"}, "several seedings, and init='c.npy' is"),
    "cosine zscore": ({"metric": "cosine", "scale": "zscore"}, "use scale='none' with"),
    "cosine minmax": ({"metric": "cosine", "scale": "minmax"}, "scale='minmax' moves"),
}


# Breaks when a check is dropped, or its message no longer says what was received.
@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_fit_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        FitConfig(**{"k": 3} | settings)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


# Breaks when a check refuses what the interface promises.
@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "lloyd", "tol": 0},
        {"max_no_improvement": 1},
        {"min_gain": 0},
        {"init": "random"},
        {"init": "somewhere/first.npy"},
        {"metric": "cosine", "scale": "l2"},
        {"seed": 2**80},
        {"nan": "drop", "epochs": 1, "batch_rows": 1},
    ],
    ids=str,
)
def test_fit_accepts(settings: dict[str, Any]) -> None:
    config = FitConfig(k=1, **settings)
    assert config.as_dict() == {**FitConfig(k=1).as_dict(), **settings}
    assert json.loads(json.dumps(config.as_dict())) == config.as_dict()


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FitConfig(k=3).k = 4  # type: ignore[misc]


# Breaks when a default of one algorithm is given to the other.
def test_defaults_by_algorithm() -> None:
    minibatch = FitConfig(k=3).resolved(10**6, 16)
    lloyd = FitConfig(k=3, algorithm="lloyd").resolved(10**6, 16)
    assert (minibatch.epochs, minibatch.tol) == (1, 0.0)
    assert (lloyd.epochs, lloyd.tol) == (100, 1e-4)
    assert (minibatch.min_gain, lloyd.min_gain) == (1e-4, None)
    assert FitConfig(k=3, min_gain=0.0).resolved(10**6, 16).min_gain == 0


# Breaks when a setting that was given is taken for one that was not: a tol of 0 above all.
def test_what_is_given_stays() -> None:
    given_: dict[str, Any] = {
        "epochs": 7,
        "batch_rows": 50,
        "tol": 0.0,
        "seed": 5,
        "algorithm": "lloyd",
    }
    resolved = FitConfig(k=3, **given_).resolved(1000, 4)
    assert isinstance(resolved, ResolvedFitConfig)
    assert {name: getattr(resolved, name) for name in given_} == given_


# Breaks when a branch of a tree has few rows a batch, or an epoch few steps.
@pytest.mark.parametrize(
    ("k", "n_rows", "branches", "expected"),
    [(16384, 2_000_000, 256, 62_500), (16384, 10**7, 256, 65_536), (4, 10**6, 4, 15_625)],
)
def test_batch_rows_of_a_tree(k: int, n_rows: int, branches: int, expected: int) -> None:
    resolved = FitConfig(k=k, algorithm="tree").resolved(n_rows, 64)
    assert (resolved.branching, resolved.n_branches) == (str(branches), branches)
    assert resolved.batch_rows == expected


# Breaks when the branches of a run that is resumed with the same option are others.
@pytest.mark.parametrize(("branching", "n_branches"), [("8x32", 8), ("8", 8), ("256", 256)])
def test_branching(branching: str, n_branches: int) -> None:
    resolved = FitConfig(k=256, algorithm="tree", branching=branching).resolved(10**6, 16)
    assert (resolved.branching, resolved.n_branches) == (str(n_branches), n_branches)
    assert FitConfig(k=256).resolved(10**6, 16).branching is None


# Breaks when the batch outgrows the array, the cache or memory, or vanishes.
@given(st.integers(1, 10**12), st.integers(1, 10**9))
def test_batch_rows_by_shape(n_rows: int, n_features: int) -> None:
    rows = FitConfig(k=1).resolved(n_rows, n_features).batch_rows
    assert 1 <= rows <= min(n_rows, MAX_BATCH_ROWS)
    assert rows == 1 or rows * n_features * 4 <= MAX_BATCH_BYTES
    if 4 * n_features * MIN_BATCH_ROWS <= MAX_BATCH_BYTES:
        assert rows >= min(n_rows, MIN_BATCH_ROWS)


@pytest.mark.parametrize(
    ("n_rows", "n_features", "expected"),
    [(10, 4, 10), (10**4, 4, 1024), (320_000, 4, 5000), (10**8, 4, 16384), (10**8, 2**14, 1024)],
)
def test_batch_rows_of_some_shapes(n_rows: int, n_features: int, expected: int) -> None:
    assert FitConfig(k=1).resolved(n_rows, n_features).batch_rows == expected
    assert FitConfig(k=1, batch_rows=20).resolved(n_rows, 4).batch_rows == min(20, n_rows)


# Breaks when resolving twice (as on resuming from a file) is not resolving once.
@given(st.integers(1, 10**7), st.integers(1, 4096), st.sampled_from(["minibatch", "lloyd"]))
def test_resolving_again_changes_nothing(n_rows: int, n_features: int, algorithm: str) -> None:
    resolved = FitConfig(k=1, algorithm=algorithm).resolved(n_rows, n_features)  # type: ignore[arg-type]
    read = json.loads(json.dumps(resolved.as_dict()))
    assert FitConfig(**read).resolved(n_rows, n_features) == resolved
    assert None not in {resolved.epochs, resolved.batch_rows, resolved.tol}


# ---- differences ------------------------------------------------------------


# Breaks when a setting is not compared: a run would go on as another.
@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(FitConfig)])
def test_every_setting_is_compared(name: str) -> None:
    before = FitConfig(k=3).resolved(100, 4).as_dict()
    now = before | {name: "other"}
    written = name.replace("_", "-")
    assert setting_differences(before, now) == [f"{written}: {before[name]} -> other"]
    assert setting_differences(before, before) == []


# Breaks when a run of an older version, which did not know a setting, cannot be resumed.
def test_a_setting_missing_before_had_its_default() -> None:
    now = FitConfig(k=3).as_dict()
    before = {name: value for name, value in now.items() if name != "nan"}
    assert setting_differences(before, now) == []
    assert setting_differences(before, now | {"nan": "drop"}) == ["nan: error -> drop"]


# Breaks when a run of before epochs were compared ends by another rule than it began with, or when
# none is left under which it can be resumed.
def test_a_run_without_a_gain_had_none() -> None:
    now = FitConfig(k=3).resolved(100, 4).as_dict()
    before = {name: value for name, value in now.items() if name != "min_gain"}
    assert setting_differences(before, now) == ["min-gain: 0.0 -> 0.0001"]
    assert not setting_differences(before, now | {"min_gain": 0.0})
    lloyd = FitConfig(k=3, algorithm="lloyd").resolved(100, 4).as_dict()
    assert not setting_differences({n: v for n, v in lloyd.items() if n != "min_gain"}, lloyd)


# ---- execution --------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:I, not 'gpu'"),
        ({"device": "cuda:"}, "device must be"),
        ({"device": "cuda:-1"}, "device must be"),
        ({"keep_checkpoints": 1}, "keep_checkpoints must be a whole number of at least 2"),
        ({"max_host_memory": 0}, "max_host_memory must be"),
        ({"read_threads": -1}, "read_threads must be"),
        ({"tune": "no"}, "tune must be true or false, not 'no'"),
    ],
    ids=str,
)
def test_execution_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExecutionConfig(**settings)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:11"])
def test_execution_accepts(device: str) -> None:
    assert ExecutionConfig(device=device, max_host_memory=1, read_threads=1).device == device
    assert ExecutionConfig().checkpoint_every == Cadence(seconds=60)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("60s", Cadence(seconds=60)),
        ("5m", Cadence(seconds=300)),
        ("1h", Cadence(seconds=3600)),
        (" 0.5 s ", Cadence(seconds=0.5)),
        ("100", Cadence(batches=100)),
        (" 7 ", Cadence(batches=7)),
    ],
)
def test_cadence(text: str, expected: Cadence) -> None:
    assert Cadence.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "0.0h", "-5", "1.5", "5d", "1e3s", "s", "nan", "5 5"]
)
def test_cadence_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="checkpoint-every must be"):
        Cadence.parse(text)


def test_more_reading_threads_than_are_of_use_are_refused_with_the_limit():
    assert ExecutionConfig(read_threads=256).read_threads == 256
    with pytest.raises(ConfigError, match=r"read_threads must be at most 256, not 100,000"):
        ExecutionConfig(read_threads=100_000)
