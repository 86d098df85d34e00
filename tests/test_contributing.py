"""CONTRIBUTING.md is carried out: its recipes as they stand, in a copy, and its tables of tests.

All recipes go into one copy of the repository. A block of Python is a new file; a block of ``diff``
changes one that is there, at the only place that reads like its context. Which file it is, the
paragraph before the block says: the first that it names.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.test_docs import dead_links

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
#: Languages of blocks: of recipes, and of what is only shown.
APPLIED, SHOWN = {"python", "diff"}, {"sh"}


@dataclass(frozen=True)
class Block:
    """A file of a recipe, or a change of one."""

    path: str
    language: str
    text: str

    def apply(self, root: Path) -> None:
        target = root / self.path
        if self.language == "python":
            assert not target.exists(), f"{self.path} is there already"
            target.write_text(self.text)
            return
        content = target.read_text()
        assert content.count(self.before) == 1, f"{self.path} has no one place like\n{self.before}"
        target.write_text(content.replace(self.before, self.after))

    @property
    def before(self) -> str:
        return self._lines(" -")

    @property
    def after(self) -> str:
        return self._lines(" +")

    def _lines(self, signs: str) -> str:
        # (An empty line of context may have lost its space.)
        lines = [line or " " for line in self.text.splitlines()]
        return "".join(f"{line[1:]}\n" for line in lines if line[0] in signs)


@dataclass
class Recipe:
    title: str
    n_files: int
    """Files of code and tests, as the heading says."""
    blocks: list[Block] = field(default_factory=list)

    @property
    def files(self) -> set[str]:
        """Those that it touches, the pages of the manual left out."""
        return {block.path for block in self.blocks if not block.path.startswith("docs/")}

    @property
    def tests(self) -> list[str]:
        return sorted(path for path in self.files if path.startswith("tests/"))


def recipes() -> list[Recipe]:
    """All that have a heading which counts files."""
    found: list[Recipe] = []
    tokens, path, language = MarkdownIt().parse(PAGE.read_text()), "", ""
    for opening, token in pairwise(tokens):
        if opening.type == "heading_open":
            counted = re.fullmatch(r"(An? .*): (\d) files", token.content)
            if counted:
                found.append(Recipe(counted[1], int(counted[2])))
        elif token.type == "inline":
            named = re.findall(r"`((?:streamkm|tests|docs)/[\w/]+\.\w+)`", token.content)
            path = named[0] if named else path
        elif token.type == "fence" and (language := token.info) in APPLIED:
            found[-1].blocks.append(Block(path, language, token.content))
    return found


RECIPES = recipes()
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.title)


# ---- recipes ------------------------------------------------------------------


def test_there_are_five_recipes() -> None:
    titles = [recipe.title for recipe in RECIPES]
    assert titles == ["A format", "A kernel", "An algorithm", "A fit option", "A command"]


@each_recipe
def test_a_recipe_touches_as_many_files_as_it_says(recipe: Recipe) -> None:
    assert len(recipe.files) == recipe.n_files


@pytest.fixture(scope="module")
def carried_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which all recipes were carried out."""
    copy = tmp_path_factory.mktemp("recipes")
    ignored = shutil.ignore_patterns("__pycache__", "native", ".hypothesis")
    for name in ("streamkm", "tests", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, copy / name)
    for recipe in RECIPES:
        for block in recipe.blocks:
            block.apply(copy)
    return copy


def in_copy(copy: Path, *command: str) -> None:
    """Run Python with such arguments there, which must succeed."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


# Breaks when a recipe leaves out a step, or the code has gone on without the page.
@pytest.mark.slow
def test_recipes_pass_the_tests_that_they_add(carried_out: Path) -> None:
    added = [path for recipe in RECIPES for path in recipe.tests]
    assert len(added) == 4
    in_copy(carried_out, "-m", "pytest", "-q", "-pno:cacheprovider", *added)


# Breaks when something new has to be named in a test or a page that no recipe tells of.
@pytest.mark.slow
def test_rules_hold_after_the_recipes(carried_out: Path) -> None:
    rules = (
        "tests/test_settings.py",
        "tests/sources/test_formats.py",
        "tests/test_docs.py::test_every_option_of_every_command_is_explained",
        "tests/test_repo.py",
    )
    # The others are of one setting or format at a time, or of other files.
    chosen = "choices or defaults or opener or suffix or keywords or explained or name or contract"
    in_copy(carried_out, "-m", "pytest", "-q", "-pno:cacheprovider", "-k", chosen, *rules)


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed")
def test_recipes_are_formatted_and_keep_the_rules(carried_out: Path) -> None:
    python = sorted({path for recipe in RECIPES for path in recipe.files})
    in_copy(carried_out, "-m", "ruff", "format", "--check", "--no-cache", *python)
    in_copy(carried_out, "-m", "ruff", "check", "--no-cache", *python)


@pytest.mark.skipif(
    importlib.util.find_spec("importlinter") is None, reason="import-linter is not installed"
)
def test_floors_hold_after_the_recipes(carried_out: Path) -> None:
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    in_copy(carried_out, "-c", lint, "--no-cache")


# ---- tables, names and links --------------------------------------------------


def tables(heading: str) -> list[list[list[str]]]:
    """Cells of the rows of each table under a heading, its head left out."""
    text = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\|.*\|\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, re.MULTILINE)
    return [[row.strip("|").split("|") for row in rows.splitlines()] for rows in found]


def spans(*cells: str) -> list[str]:
    return re.findall(r"`([^`\s]+/?)`", " ".join(cells))


BY_ROOM, BY_PROMISE = tables("How tests are laid out")


# Breaks when a room or a module beside the rooms is added, and nobody says what tests it.
def test_every_room_has_its_tests() -> None:
    package = ROOT / "streamkm"
    rooms = {f"{path.parent.relative_to(ROOT)}/" for path in package.rglob("*.py")} - {"streamkm/"}
    modules = {f"streamkm/{path.name}" for path in package.glob("*.py")} - {"streamkm/__init__.py"}
    told = set(spans(*(cells[0] for cells in BY_ROOM)))
    assert {*rooms, *modules, "streamkm/kernels/native/"} == {
        name for name in told if name.startswith("streamkm/")
    }


# Breaks when a file of tests is named neither for a module nor for what it shows.
def test_tests_are_found_by_name() -> None:
    strays = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = path.relative_to(ROOT / "tests")
        module = ROOT / "streamkm" / name.parent / name.stem.removeprefix("test_")
        if not (module.is_dir() or module.with_suffix(".py").is_file()):
            strays.append(f"tests/{name.as_posix()}")
    assert strays == sorted(spans(*(cells[0] for cells in BY_PROMISE)))


def test_all_that_is_named_is_there() -> None:
    """Breaks when a file is renamed and the page is not mended; recipes add files of their own."""
    added = {path for recipe in RECIPES for path in recipe.files}
    text = re.sub(r"```.*?```", "", PAGE.read_text(), flags=re.DOTALL)
    named = re.findall(r"`((?:bench|docs|scripts|streamkm|tests)/[^`\s]*)`", text)
    named = [name for name in named if not re.search("[A-Z]{4}", name.removesuffix("LOG.md"))]
    assert len(named) > 80
    assert not [name for name in named if name not in added and not (ROOT / name).exists()]


def test_links_lead_somewhere() -> None:
    assert not dead_links(PAGE.read_text(), ROOT)


def test_no_block_escapes() -> None:
    fences = [token for token in MarkdownIt().parse(PAGE.read_text()) if token.type == "fence"]
    applied = [block for recipe in RECIPES for block in recipe.blocks]
    assert {token.info for token in fences} == APPLIED | SHOWN
    assert len(applied) == sum(token.info in APPLIED for token in fences)
