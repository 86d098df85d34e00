"""A checkpoint is taken only if it holds the tensors that this run needs."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamkm.clustering.sizes import NEVER
from streamkm.clustering.sizing import DONE, FILLING
from streamkm.errors import RunError
from streamkm.runs.engine.checkpoint_schema import _add_gathered_
from streamkm.runs.engine.snapshot import Cursor
from streamkm.runs.storage.checkpoint import (
    save_checkpoint,
)
from streamkm.sealed import seal, unseal
from tests.runs.engine.snapshots import PHASES, restored, save_snapshot, snapshots


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


# Each is under a checksum that agrees. Breaks where a tensor that does not fit is used, or where
# the checkpoint before it is not taken.
@pytest.mark.parametrize("phase", PHASES)
def test_a_checkpoint_of_other_tensors_is_damaged_and_the_one_before_taken(folder, phase, caplog):
    before = snapshots()[phase]
    save_snapshot(folder, before, 1)
    for step, (name, array) in enumerate(before.tensors().items(), 2):
        longer = np.zeros((60, *array.shape[1:]), array.dtype)
        other = np.zeros(array.shape, np.int64 if array.dtype.kind == "f" else np.float64)
        for wrong in (longer, other):
            shutil.rmtree(folder / f"step-{step:08d}", ignore_errors=True)
            save_snapshot(folder, before, step, **{name: wrong})
            caplog.clear()
            assert restored(folder).step == 1, name
            # (Of two that disagree, which is right nobody knows.)
            assert re.search(r"` is \w+ of shape .*, this run's is \w+ of shape", caplog.text), name
        shutil.rmtree(folder / f"step-{step:08d}")


# Breaks when a run of before clusters could forget rows, or before epochs were compared, cannot go
# on: what it lacks follows from what it has, or is not known.
def test_a_checkpoint_of_before_a_tensor_was_saved_gets_it(folder):
    before = snapshots()["train"]
    tensors = before.tensors()
    mass_K = tensors["state.counts_K"].astype(np.float64)
    for name in ("state.mass_K", "state.former_inertia"):
        del tensors[name]
    manifest = {**before.manifest(), "environment": {"device": "cpu"}}
    save_checkpoint(folder, 1, tensors, manifest, keep=9)
    state = restored(folder).state
    assert state is not None
    assert np.array_equal(state.mass_K.numpy(), mass_K)
    assert state.former_inertia.isnan()


# Breaks when the stages of before rows were gathered are taken for those of the same number.
@pytest.mark.parametrize(("stage", "expected"), [(0, 0), (1, 1), (2, FILLING), (3, DONE)])
def test_stages_of_sizes_of_before_rows_were_gathered(stage, expected):
    tensors = {"sizes.stage": np.array(stage), "sizes.prices_K": np.arange(3.0)}
    _add_gathered_(tensors, 3)
    assert int(tensors["sizes.stage"]) == expected
    assert tensors["sizes.prices_K"].tolist() == [0, 1, 2]
    assert (tensors["sizes.rows_P"] == NEVER).all()


# Breaks when a run goes on within a pass that its version cut into other batches: rows would count
# twice, or not at all.
@pytest.mark.parametrize("phase", ["scale", "rounds", "seed", "train", "close"])
def test_a_pass_of_the_format_before_begins_again(folder, phase):
    before = snapshots()["train" if phase == "close" else phase]
    if phase == "close":
        before.cursor = Cursor("close", before.cursor.epoch, 1)
    tensors, manifest = before.tensors(), {**before.manifest(), "environment": {"device": "cpu"}}
    for name in [name for name in tensors if name.startswith("state.pass_")]:
        del tensors[name]
    if before.candidates is not None:
        for name in ("masses_LC", "grades_C"):
            del tensors[f"candidates.{name}"]
        tensors["candidates.counts_C"] = np.arange(9.0)
    save_checkpoint(folder, 1, tensors, manifest, keep=9)
    path = folder / "step-00000001" / "manifest.json"
    path.write_bytes(seal({**unseal(path.read_bytes()), "format": 3}))
    found = restored(folder)
    begins_again = phase in ("scale", "rounds", "close")
    assert found.cursor == replace(before.cursor, batch=0 if begins_again else before.cursor.batch)
    if phase == "scale":
        assert float(found.moments.count) == 0
    if phase == "rounds":
        assert found.candidates is not None
        assert found.candidates.keys_R.isinf().all()
    if phase == "seed":
        assert found.candidates is not None
        weights_S = found.candidates.as_sample().weights_S
        assert weights_S is not None
        assert weights_S.tolist() == list(range(9))


# Breaks when a run goes on from a stage of another plan, such as the local search that once stood
# in this place, or when nobody learns that an older version can go on.
@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_checkpoint_from_another_stage_names_the_version_that_wrote_it(folder, is_recorded):
    before = snapshots()["breathing"]
    others = ("centroids_KD", "first_S", "second_S", "label_S", "runner_up_S")
    each = before.seeding["sq_distances_S"]
    before.seeding = dict.fromkeys(others, each) | {
        name: before.seeding[name] for name in ("centroids_KD", "label_S")
    }
    save_snapshot(folder, before, 1)
    path, wrote = folder / "step-00000001" / "manifest.json", "0.0.9"
    body = {**unseal(path.read_bytes()), "streamkm": wrote}
    if not is_recorded:
        del body["streamkm"]
        wrote = "of before versions were recorded"
    path.write_bytes(seal(body))
    said = rf"is whole, but .*it (holds|lacks) `.*streamkm {wrote} wrote it; go on with that"
    with pytest.raises(RunError, match=said):
        restored(folder)


@pytest.mark.parametrize(
    ("cursor", "said"),
    [
        (("train", 99, 0), "where this run never is"),
        (("train", -1, 0), "where this run never is"),
        (("seed", 10**9, 0), "where this run never is"),
        (("train", 1.5, 0), "where this run never is"),
        (("lunch", 0, 0), "where this run never is"),
        (("train", 0, 2), "where this run never is"),
        (("scale", 0, 1), "it holds moments, scaling, state in phase scale"),
        (("seed", 1, 0), "it holds moments, scaling, state in phase seed"),
    ],
)
def test_a_checkpoint_from_where_the_run_never_is_is_damaged(folder, cursor, said, caplog):
    snapshot = snapshots()["train"]
    save_snapshot(folder, snapshot, 1)
    snapshot.cursor = Cursor(*cursor)
    save_snapshot(folder, snapshot, 2)
    assert restored(folder).step == 1
    assert said in caplog.text


def test_tensors_that_are_missing_or_too_many_are_named(folder, caplog):
    snapshot = snapshots()["train"]
    save_snapshot(folder, snapshot, 1)
    save_snapshot(folder, snapshot, 2, **{"state.more": np.zeros(3)})
    assert restored(folder).step == 1
    assert "it holds `state.more`, which this run does not have" in caplog.text
    tensors = snapshot.tensors()
    del tensors["state.shift"]
    save_checkpoint(folder, 3, tensors, {**snapshot.manifest(), "environment": {}}, keep=9)
    assert restored(folder).step == 1
    assert "it lacks `state.shift`" in caplog.text
