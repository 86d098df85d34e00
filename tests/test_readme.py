"""The README is run: its commands as they stand, its Python after them, its options compared."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from streamkm.cli import _parsers

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    """Fenced blocks of `language`, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # "python" of the README is the one that runs the tests.
    paths = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    environment = os.environ | {
        "PATH": os.pathsep.join(paths),
        "PYTHONPATH": str(README.parent),
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_commands_run_as_they_stand(workplace: Path) -> None:
    """Breaks when a command of the README fails or leaves out what the text promises."""
    for block in blocks("bash"):
        done = run(["bash", "-euo", "pipefail", "-c", block], workplace)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
    for name in ("run/centroids.npy", "labels.npy", "distances.npy", "figures.json"):
        assert (workplace / name).exists(), name

    (python,) = blocks("python")
    done = run([sys.executable, "-c", python], workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "(100, 32) 1",
        "(200000,) (5, 100)",
        "10",
        "5 5000",
        "200000 32 float32",
        "(100, 32) sklearn.cluster._kmeans",
    ]


def test_every_option_of_fit_is_explained() -> None:
    """Breaks when an option is added without a word in the README, or a word outlives it."""
    _, commands = _parsers()
    offered = {
        name
        for action in commands["fit"]._actions
        for name in action.option_strings
        if name.startswith("--") and name != "--help"
    }
    text = README.read_text()
    explained = set(re.findall(r"--[a-z][a-z-]*", text))
    assert offered - {"--offset"} <= explained
    assert explained <= offered | {"--labels", "--distances", "--json", "--only"}
