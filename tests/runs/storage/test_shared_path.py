"""What all processes must see is looked for at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamkm.errors import ConfigError, RunError
from streamkm.runs.storage import shared_path
from streamkm.runs.storage.shared_path import check_one_run, check_shared
from tests.distributed.together import together


def outcomes(folders: list[Path], check, error) -> list[str]:
    """What each of several processes says; "" if it goes on."""

    def work(world) -> str:
        world.hosts = [f"node{rank}" for rank in range(world.size)]
        try:
            check(folders[world.rank], world)
        except error as refused:
            return str(refused)
        return ""

    return together(len(folders), work)


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(shared_path, "SHOWN_S", 0.1)


def shared(folders: list[Path]) -> list[str]:
    return outcomes(folders, lambda folder, world: check_shared([folder], world), ConfigError)


def test_a_folder_that_all_see_is_left_as_it_was(tmp_path):
    assert shared([tmp_path, tmp_path, tmp_path]) == ["", "", ""]
    assert not list(tmp_path.iterdir())


# Breaks when a process that was given another disk writes there for hours.
@pytest.mark.usefixtures("quick")
def test_a_folder_of_another_disk_is_named_with_its_process(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    said = shared([one, one, other])
    assert len(set(said)) == 1
    assert said[0].startswith(
        "the folder of the output must be one that all processes share: "
        f"{other} of process 2 on node2 is not the {one} of process 0 on node0; choose a folder"
    )
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.usefixtures("quick")
def test_a_folder_that_is_missing_for_one_is_named(tmp_path):
    said = shared([tmp_path, tmp_path / "gone"])
    assert f"{tmp_path / 'gone'} of process 1 on node1 cannot be written (No such file" in said[0]
    assert not list(tmp_path.iterdir())


# Breaks when a restart on another machine begins anew in silence.
def test_a_run_that_only_another_process_sees_is_not_begun_anew(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (there / "config.json").write_text("{}")

    def said(*folders: Path) -> list[str]:
        return outcomes(list(folders), check_one_run, RunError)

    refusal, same = said(here, there)
    assert refusal == same
    assert refusal.startswith(
        f"process 1 on node1 sees a run in {there} to go on with, process 0 on node0 sees none in "
        f"{here}; give all the same run_dir on a disk that they share"
    )
    # Only the first process needs it.
    assert said(there, here) == ["", ""]
    assert said(here, here) == ["", ""]
    assert said(there, there) == ["", ""]
