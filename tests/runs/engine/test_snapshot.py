"""Snapshots: of any phase, and through a checkpoint to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs.engine.snapshots import PHASES, restored, save_snapshot, snapshots


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("phase", PHASES)
def test_a_snapshot_of_any_phase_survives_a_checkpoint(folder, phase):
    before = snapshots()[phase]
    save_snapshot(folder, before, before.step)
    after = restored(folder)
    assert (after.cursor, after.step) == (before.cursor, before.step)
    assert (after.scaling is None, after.state is None) == (phase == "scale", phase != "train")
    assert after.tensors().keys() == before.tensors().keys()
    for name, array in before.tensors().items():
        assert after.tensors()[name].dtype == array.dtype
        assert after.tensors()[name].tobytes() == array.tobytes(), name


def test_a_state_from_a_checkpoint_can_be_updated_in_place(folder):
    before = snapshots()["train"]
    save_snapshot(folder, before, 31)
    after = restored(folder)
    assert after.state is not None
    after.state.counts_K += 1
    assert after.state.counts_K.tolist() == [2**40 + 1 + i for i in range(4)]
