"""The model of a run: what it holds, and damage that is never believed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from streamkm.errors import RunError
from streamkm.runs.storage.model import load_model
from streamkm.runs.storage.model_file import read_model_file, write_model_file
from tests.runs.helpers import Job, clusters


@pytest.fixture
def job(tmp_path) -> Job:
    np.save(tmp_path / "x.npy", clusters(300, 3))
    return Job(tmp_path / "x.npy", tmp_path / "run", {"k": 4, "batch_rows": 50, "init": "random"})


def test_a_model_is_loaded_as_it_was_saved(job):
    job.settings["scale"] = "zscore"
    job.attempt()
    model = load_model(job.run)
    assert (model.k, model.n_features) == (4, 3)
    assert model.counts_K.sum() == 300
    assert model.settings["k"] == 4
    centroids = np.load(job.run / "centroids.npy")
    assert centroids.dtype == np.float32
    assert model.centroids.tobytes() == centroids.tobytes()
    # By hand: the mean of each cluster's rows, back in the space of the input.
    means = (model.sums_KD / model.counts_K[:, None]).numpy()
    rows = np.load(job.source).astype(np.float64)
    expected = means * rows.std(axis=0) + rows.mean(axis=0)
    np.testing.assert_allclose(centroids, expected, rtol=1e-5, atol=1e-6)


# safetensors writes several entries of metadata in a random order: a model of two of them would
# have other bytes in every process.
def test_the_same_model_is_the_same_file_each_time(job, tmp_path):
    contents = set()
    for i in range(6):
        again = replace(job, run=tmp_path / f"run{i}")
        again.attempt()
        contents.add(again.results["model.safetensors"])
    assert len(contents) == 1


@pytest.mark.parametrize("name", ["none", "l2"])
def test_a_model_knows_whether_rows_are_normalised(name, job):
    job.settings["scale"] = name
    job.attempt()
    assert load_model(job.run).scaling.normalize is (name == "l2")


@pytest.mark.parametrize("at", [0, 4, 9, 30, 200, -1])
def test_a_truncated_model_is_refused(at, job):
    job.attempt()
    content = job.results["model.safetensors"]
    (job.run / "model.safetensors").write_bytes(content[:at])
    with pytest.raises(RunError, match=r"is damaged.*resume=True"):
        load_model(job.run)


# Breaks when a flipped bit of a centroid loads as if nothing had happened.
def test_a_flipped_byte_anywhere_in_a_model_is_refused(job):
    file = job.run / "model.safetensors"
    job.attempt()
    whole = file.read_bytes()
    for at in range(0, len(whole), 41):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(RunError):
            load_model(job.run)
    file.write_bytes(whole)
    load_model(job.run)


def test_a_file_of_other_tensors_is_no_model(job):
    from safetensors.torch import save_file

    job.attempt()
    save_file({"weights": torch.zeros(3)}, job.run / "model.safetensors")
    with pytest.raises(RunError, match="is damaged"):
        load_model(job.run)


# What the message of a damaged model tells people to do must work.
def test_a_damaged_model_is_restored_by_removing_it_and_resuming(job):
    job.attempt()
    before = job.results
    (job.run / "model.safetensors").unlink()
    with pytest.raises(RunError, match="not finished"):
        load_model(job.run)
    job.attempt()
    assert job.results == before


# Breaks when a model whose names are not one for each feature passes as one to match by.
@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", 3], "ab", 7])
def test_names_that_are_not_one_for_each_feature_are_refused(names, job):
    job.attempt()
    tensors, about = read_model_file(job.run)
    write_model_file(
        job.run / "model.safetensors", tensors, {**about, "feature_names": list("abc")}
    )
    assert load_model(job.run).feature_names == ("a", "b", "c")
    write_model_file(job.run / "model.safetensors", tensors, {**about, "feature_names": names})
    with pytest.raises(RunError, match="is no model of a run"):
        load_model(job.run)


# ---- the branches of a tree -------------------------------------------------


@pytest.fixture
def tree(tmp_path) -> Job:
    np.save(tmp_path / "x.npy", clusters(900, 3))
    settings = {"k": 40, "algorithm": "tree", "branching": "8x5", "init": "random"}
    return Job(tmp_path / "x.npy", tmp_path / "run", {**settings, "scale": "zscore"})


# Breaks when branches are saved in another space than the clusters, or are not what their parents
# say.
def test_the_branches_are_the_means_of_their_rows(tree):
    tree.attempt()
    model, branches = load_model(tree.run), np.load(tree.run / "centroids-level-1.npy")
    assert (branches.shape, branches.dtype) == ((8, 3), np.float32)
    assert model.level is not None
    parents = model.level.parents_K.numpy()
    assert parents.shape == (40,)
    rows = np.load(tree.source).astype(np.float64)
    for branch in set(parents.tolist()):
        own = torch.from_numpy(parents == branch)
        mean = (model.sums_KD[own].sum(dim=0) / model.counts_K[own].sum()).numpy()
        expected = mean * rows.std(axis=0) + rows.mean(axis=0)
        np.testing.assert_allclose(branches[branch], expected, rtol=1e-5, atol=1e-5)
    assert load_model(tree.run).on_host().level is not None


@pytest.mark.parametrize("damage", ["removed", "torn"])
def test_damaged_branches_are_written_again(tree, damage):
    tree.attempt()
    file = tree.run / "centroids-level-1.npy"
    whole = file.read_bytes()
    if damage == "torn":
        file.write_bytes(whole[:50])
    else:
        file.unlink()
    tree.attempt()
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("parents", np.full(40, 8)), ("parents", np.zeros(39, np.int64)),
     ("parents", np.full(40, -1)), ("branches", np.zeros((8, 2), np.float32))],
    ids=["beyond", "few", "negative", "narrow"],
)  # fmt: skip
def test_branches_that_no_run_writes_are_refused(tree, name, wrong):
    tree.attempt()
    tensors, about = read_model_file(tree.run)
    write_model_file(tree.run / "model.safetensors", {**tensors, name: wrong}, about)
    with pytest.raises(RunError, match="is no model of a run"):
        load_model(tree.run)


def test_models_of_other_algorithms_have_no_branches(job):
    job.attempt()
    assert load_model(job.run).level is None
    assert not (job.run / "centroids-level-1.npy").exists()


# Breaks when rows that are looked up by bisection are believed to be in order: those after the
# first that is not would have the labels that prices give, and clusters more rows than they may.
@pytest.mark.parametrize(
    ("rows", "is_right"), [([3, 8], True), ([8, 3], False), ([3, 3], False), ([3.0, 8.0], False)]
)
def test_moved_rows_out_of_order_are_refused(job, rows, is_right):
    job.settings["max_size"] = "1.1x"
    job.attempt()
    arrays, about = read_model_file(job.run)
    arrays["moved.rows"], arrays["moved.to"] = np.array(rows), np.array([0, 1])
    write_model_file(job.run / "model.safetensors", arrays, about)
    if is_right:
        assert load_model(job.run).sizes is not None
        return
    with pytest.raises(RunError, match="moved rows are not numbers of rows in order"):
        load_model(job.run)
