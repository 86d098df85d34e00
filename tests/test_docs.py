"""The README and the manual are run: commands and Python as they stand, and what they print.

A page is read from top to bottom, as a reader at a terminal would: blocks of one language that
follow each other share a shell, or a Python. The README, and the home page of the site, begin in an
empty folder; every other page begins with what the README has left in its own. A block in a
language that is not known here is an error, so that none escapes.
"""

from __future__ import annotations

import html
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from torch.distributed.run import get_args_parser

import streamkm
from tests import forked
from tests.shared import made_once

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
MANUAL = sorted(DOCS.rglob("*.md"))
PAGES = [README, *MANUAL]

#: Languages of blocks that are run, and of those that are not: `sh` installs, `text` shows.
RUN, SHOWN = {"bash", "console", "python"}, {"sh", "text"}

#: A package without which a page is passed over.
NEEDED = {"ivf-index": "faiss"}

#: Options of torchrun that pages name.
OF_TORCHRUN = {
    "--standalone", "--nnodes", "--nproc-per-node", "--node-rank", "--master-addr",
    "--master-port", "--max-restarts", "--rdzv-backend", "--rdzv-conf", "--rdzv-endpoint",
    "--rdzv-id",
}  # fmt: skip

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


# ---- blocks ------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Code on a page."""

    language: str
    text: str
    line: int


def blocks(markdown: str) -> list[Block]:
    """All code of a page but that within sentences; what has no fence has no language."""
    return [
        Block(token.info.strip(), token.content, token.map[0] + 1)
        for token in MarkdownIt().parse(markdown)
        if token.type in ("fence", "code_block", "html_block") and token.map is not None
    ]


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page.read_text()) if block.language in RUN]


@each_page
def test_no_block_escapes(page: Path) -> None:
    """Breaks when a block is in a language that is neither run nor known to be shown only."""
    unknown = [b for b in blocks(page.read_text()) if b.language not in RUN | SHOWN]
    assert not unknown


def test_blocks_are_found_wherever_they_stand() -> None:
    """Breaks when code without a fence, in a list or in HTML counts as prose."""
    page = (
        "    indented\n\n- item\n\n  ```rust\n  nested\n  ```\n\n~~~bash\nls\n~~~\n\n<pre>x</pre>\n"
    )
    assert [block.language for block in blocks(page)] == ["", "rust", "bash", ""]


# ---- running them ------------------------------------------------------------


class Terminal:
    """A folder in which the blocks of a page are run, with the Python that runs the tests."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        programs.mkdir()
        self._python = forked.command()
        for name, arguments in (("python", []), ("streamkm", ["-m", "streamkm"])):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {shlex.join(self._python + arguments)} "$@"\n')
            program.chmod(0o755)
        self._environment = os.environ | {
            "LC_ALL": "C",
            "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", "")]),
            "PYTHONPATH": str(ROOT),
        }

    def read(self, page: list[Block]) -> None:
        """Run the blocks of a page in order, and compare what they print with what they say."""
        for language, group in groupby(page, key=lambda block: block.language):
            texts = [block.text for block in group]
            if language == "bash":
                self.shell("".join(texts))
            elif language == "console":
                for command, expected in commands("".join(texts)):
                    assert agrees(self.shell(command), expected), f"{command} does not print that"
            else:
                program = "".join(texts)
                printed = self._run([*self._python, "-c", program])
                assert agrees(printed, "\n".join(promised(program)))

    def shell(self, script: str) -> str:
        return self._run(["bash", "-euo", "pipefail", "-c", script])

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command[-1]}\nended with {done.returncode}:\n{done.stderr}"
        return done.stdout


def commands(console: str) -> list[tuple[str, str]]:
    """The commands of a console block, and what each is said to print."""
    assert console.startswith("$ ")
    pieces = re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]
    return [(command, output) for command, _, output in (p.partition("\n") for p in pieces)]


def promised(program: str) -> list[str]:
    """What the comment behind each `print` says that it prints."""
    prints = [line for line in program.splitlines() if line.lstrip().startswith("print(")]
    said = [line.partition(")  # ")[2] for line in prints]
    assert all(said), f"a print without a comment that says what it prints:\n{program}"
    return said


def agrees(printed: str, expected: str) -> bool:
    """Whether `printed` is what is `expected`, in which ``...`` stands for anything."""
    pattern = ".*".join(map(re.escape, expected.strip().split("...")))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


@pytest.mark.parametrize(
    ("printed", "expected", "answer"),
    [
        ("rows 3\n", "rows 3", True),
        ("rows 4\n", "rows 3", False),
        ("rows 3\nmore\n", "rows 3", False),
        ("inertia 3.14\nclusters 2\n", "inertia 3.1...\nclusters 2", True),
        ("a\nb\nc\n", "a\n...\nc", True),
        ("a\nb\nd\n", "a\n...\nc", False),
    ],
)
def test_what_is_printed_is_compared(printed: str, expected: str, answer: bool) -> None:
    assert agrees(printed, expected) is answer


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all that the README says was done, by one worker for all."""

    def read(folder: Path) -> None:
        folder.mkdir()
        Terminal(folder, tmp_path_factory.mktemp("programs") / "bin").read(runnable(README))

    return made_once(tmp_path_factory, "readme", read)


def test_readme_keeps_its_word(after_readme: Path) -> None:
    """Breaks when a block of the README fails, or leaves out what the text promises."""
    assert np.load(after_readme / "run/centroids.npy").shape == (100, 32)
    assert np.load(after_readme / "labels.npy").shape == (50_000,)


@pytest.mark.parametrize("page", [*filter(runnable, MANUAL)], ids=lambda page: page.stem)
def test_page_runs_as_it_stands(page: Path, after_readme: Path, tmp_path: Path) -> None:
    """Breaks when a command or a program of the manual fails, or prints something else."""
    if page.stem in NEEDED:
        pytest.importorskip(NEEDED[page.stem])
    folder = tmp_path / "work"
    if page.name == "index.md":
        folder.mkdir()
    else:
        shutil.copytree(after_readme, folder)
    Terminal(folder, tmp_path / "bin").read(runnable(page))


# ---- options -----------------------------------------------------------------


@cache
def help_of(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "streamkm", *command, "--help"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "1000", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def all_commands() -> list[str]:
    return re.findall(r"^    ([a-z]+)  ", help_of(), re.MULTILINE)


def offered(command: str) -> dict[str, list[str]]:
    """Every option that `command` has, and what it may be."""
    options: dict[str, list[str]] = {}
    for head in re.findall(r"^  (-.*?)(?:  |$)", help_of(command), re.MULTILINE):
        choices = re.search(r"\{(.*?)\}", head)
        for name in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", head):
            options[name] = choices[1].split(",") if choices else []
    return {name: choices for name, choices in options.items() if name not in ("-h", "--help")}


def explained(command: str) -> dict[str, str]:
    """Every option that docs/options.md says `command` takes, and what it says of it."""
    rows = {}
    for section in re.split(r"^## ", (DOCS / "options.md").read_text(), flags=re.MULTILINE):
        takers = re.search(r"^Taken by (.*?)\.", section, re.MULTILINE)
        if takers is None or f"`{command}`" not in takers[1]:
            continue
        for row in re.findall(r"^\| `-.*$", section, re.MULTILINE):
            for name in re.findall(r"`(--?[a-z][a-z-]*)", row.split("|")[1]):
                rows[name] = html.unescape(row)
    return rows


def test_every_option_of_every_command_is_explained() -> None:
    """Breaks when an option or a choice is added without a word, or a word outlives its option."""
    assert {"fit", "predict", "evaluate", "info"} <= set(all_commands())
    for command in all_commands():
        options, rows = offered(command), explained(command)
        assert set(rows) == set(options), command
        unsaid = [(n, c) for n, choices in options.items() for c in choices if c not in rows[n]]
        assert not unsaid, command


@each_page
def test_no_word_outlives_its_option(page: Path) -> None:
    """Breaks when a page speaks of an option that no command has; others are other programs'."""
    text = re.sub(r"`scripts/[^`]*`|#SBATCH --\S+", "", page.read_text())
    known = {"--help"}.union(OF_TORCHRUN, *map(offered, all_commands()))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= known


def test_options_of_torchrun_are_its_own() -> None:
    theirs = {option for action in get_args_parser()._actions for option in action.option_strings}
    assert theirs >= OF_TORCHRUN


# ---- names and links ---------------------------------------------------------


def links(markdown: str) -> list[str]:
    """Where the links and pictures of a page lead, those to other servers left out."""
    found = [
        str(child.attrs.get("href") or child.attrs.get("src") or "")
        for token in MarkdownIt().enable("table").parse(markdown)
        for child in token.children or ()
        if child.type in ("link_open", "image")
    ]
    return [link for link in found if not re.match(r"https?:", link)]


def anchors(markdown: str) -> set[str]:
    """Anchors of the headings of a page, as GitHub and the site make them."""
    tokens = MarkdownIt().parse(markdown)
    headings = [b.content for a, b in pairwise(tokens) if a.type == "heading_open"]
    return {re.sub(r"[^\w\s-]", "", heading).lower().replace(" ", "-") for heading in headings}


def dead_links(markdown: str, folder: Path) -> list[str]:
    """Links to a file that is not there, or to a heading that it does not have."""
    dead = []
    for link in links(markdown):
        path, _, anchor = link.partition("#")
        target = folder / path
        there = target.is_file() if path else True
        if there and anchor:
            there = anchor in anchors(target.read_text() if path else markdown)
        if not there:
            dead.append(link)
    return dead


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    assert not dead_links(page.read_text(), page.parent)


def test_dead_links_are_found() -> None:
    page = "# One head\n\n[a](README.md) [b](none.md)\n\n| ![c](no.png) |\n|---|\n| [d](#no) |\n"
    page += "\n[e](#one-head) [f](README.md#install) [g](README.md#no) [h](https://x.org)\n"
    assert dead_links(page, ROOT) == ["none.md", "no.png", "#no", "README.md#no"]


@each_page
def test_files_and_tests_that_are_named_exist(page: Path) -> None:
    """Breaks when a file or a test is renamed and the page that names it is not mended."""
    spans = re.findall(r"`([^`\n]+)`", page.read_text())
    tests = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    missing = []
    for name in (span.split()[0] for span in spans):
        if re.fullmatch(r"test_\w+", name):
            there = any(f"def {name}(" in text for text in tests.values())
        elif re.fullmatch(r"test_\w+\.py", name):
            there = name in tests
        elif re.match(r"(bench|docs|scripts|streamkm|tests)/", name):
            there = (ROOT / name).exists()
        else:
            continue
        if not there:
            missing.append(name)
    assert not missing


def test_reference_shows_every_public_name() -> None:
    reference = (DOCS / "reference.md").read_text()
    shown = set(re.findall(r"^::: streamkm\.(\w+)$", reference, re.MULTILINE))
    assert shown == {*streamkm.__all__, "errors"}


def test_readme_is_a_door() -> None:
    """What takes more than 150 lines belongs in the manual."""
    assert len(README.read_text().splitlines()) <= 150
