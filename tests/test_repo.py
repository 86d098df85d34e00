"""The repository as a whole: promises that no single module can keep."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import streamkm

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = [
    "scripts/bench",
    "scripts/demo",
    "scripts/docs",
    "scripts/equal",
    "scripts/gpu",
    "scripts/lint",
    "scripts/test",
    ".ci/run",
]


def source_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def own_files() -> list[Path]:
    """Every file that is, or is about to be, under version control."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so which files are the project's own is unknown")
    listing = subprocess.run(
        # The checkout may belong to another user, in a container for example.
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring left out."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


# A longer file may hold two concepts: look into it, and divide it by what it is about.
def test_files_stay_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in source_files("streamkm", "bench", "scripts")
    }
    assert not {name: lines for name, lines in lengths.items() if lines > 450}


def test_functions_stay_short() -> None:
    too_long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {code_lines(node)} lines"
        for path in source_files("streamkm")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and code_lines(node) >= 60
    ]
    assert not too_long


# A path of somebody's machine in a file works nowhere else.
def test_no_file_names_a_path_of_one_machine() -> None:
    machine_path = re.compile(rb"/(?:work|home|root)" + rb"/")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in own_files()
        for number, line in enumerate(path.read_bytes().splitlines(), start=1)
        if machine_path.search(line)
    ]
    assert not found


def test_changelog_knows_this_version() -> None:
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert {"Unreleased", PROJECT["version"]} & set(headings[:1])


# A dependency without a pin would make scripts/test depend on the day it is run.
def test_every_dependency_is_pinned_within_its_range() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    extras = PROJECT["optional-dependencies"].values()
    wanted = chain(PROJECT["dependencies"], *extras)
    requirements = [Requirement(text) for text in wanted if not text.startswith("streamkm")]
    unmet = [
        str(requirement)
        for requirement in requirements
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), "0"))
    ]
    assert not unmet


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_can_be_run(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)


# Importing torch takes seconds: help and a mistake in a command must be told at once.
@pytest.mark.parametrize(
    ("arguments", "status", "answer"),
    [
        (["--help"], 0, "usage: "),
        (["fit", "--help"], 0, "usage: "),
        (["no-such-command"], 2, "no-such-command"),
        (["info", "no-such-file.npy"], 2, "no-such-file.npy"),
    ],
)
def test_command_line_answers_before_torch_is_imported(
    arguments: list[str], status: int, answer: str
) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['streamkm', *{arguments!r}]\n"
        "try:\n"
        "    runpy.run_module('streamkm', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    sys.exit('torch was imported' if 'torch' in sys.modules else end.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    assert answer in done.stdout + done.stderr


# A name that appears or vanishes is a change of the interface: CHANGELOG.md names it.
def test_public_names_are_those_promised() -> None:
    assert streamkm.__all__ == ["KMeans", "MiniBatchKMeans", "load_run", "open_source"]
    assert all(callable(getattr(streamkm, name)) for name in streamkm.__all__)


def test_version_is_the_same_everywhere() -> None:
    assert streamkm.__version__ == PROJECT["version"]


# Breaks when a module uses what another keeps to itself: public names are those of `__all__`.
def test_names_are_imported_as_their_modules_offer_them() -> None:
    trees = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text()
        )
        for path in source_files("streamkm")
    }
    offered = {name: offered_by(tree) for name, tree in trees.items()}
    used = [
        (user, node.module, alias.name)
        for user, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in trees
        for alias in node.names
        if f"{node.module}.{alias.name}" not in trees and alias.name != "__version__"
    ]
    assert len(used) > 500
    assert not [use for use in used if use[2] not in offered[use[1]]]


def offered_by(tree: ast.Module) -> set[str]:
    """Names in ``__all__``."""
    lists = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    ]
    return {name for names in lists for name in ast.literal_eval(names)}
