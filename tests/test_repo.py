"""The repository as a whole: promises that no single module can keep."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import streamkm
from streamkm.sinks import SINKS
from streamkm.sources.formats import FORMATS
from streamkm.tables import ALGORITHMS, KERNELS

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

#: Modules whose tests do not bear their name, and where they are tested. The others are tested in
#: the file (or the folder) of their name: streamkm/stream/plan.py in tests/stream/test_plan.py.
TESTED_IN = {
    "__main__": "test_packaging.py",
    "files": "runs/test_faults.py",
    "cadence": "test_config.py",
    "commands": "test_cli.py",
    "options": "test_cli.py",
    "wrong_options": "test_cli.py",
    "distributed/pending": "distributed/test_world.py",
    "clustering/reservoir_plan": "clustering/test_reservoir.py",
    # The protocols: by the contracts of what implements them.
    "clustering/algorithm": "clustering/contract.py",
    "kernels/base": "kernels/contract.py",
    "kernels/checks": "kernels/test_cpu.py",
    "kernels/passes": "kernels/contract.py",
    "kernels/rows": "kernels/contract.py",
    "kernels/stepping": "kernels/triton/test_step.py",
    "kernels/triton/state": "kernels/triton/interpreted_step.py",
    "kernels/triton/graded": "kernels/triton/interpreted_step.py",
    "clustering/few_launches": "kernels/triton/test_step.py",
    "sinks/base": "sinks/contract.py",
    "sinks/part": "sinks/contract.py",
    "sinks/growing": "sinks/test_parquet.py",
    "sources/base": "sources/contract.py",
    # What holds the rows of one batch, and comes of preparing them.
    "clustering/batch": "clustering/test_preparation.py",
    # What a fit prints, and whom it tells of its steps.
    "estimators/verbose": "estimators/test_conventions.py",
    "runs/engine/listener": "estimators/test_conventions.py",
    # Parts of one kernel, or of one way to decode.
    "kernels/ops/tiles": "kernels/test_cpu.py",
    "stream/sample_plan": "stream/test_plan.py",
    "stream/seat": "stream/test_shared.py",
    "kernels/triton/assign": "kernels/triton/test_kernel.py",
    "kernels/triton/common": "kernels/triton/test_kernel.py",
    "kernels/triton/lanes": "kernels/triton/test_kernel.py",
    "kernels/triton/narrow": "kernels/triton/test_kernel.py",
    "kernels/triton/one_read": "kernels/triton/test_kernel.py",
    "kernels/triton/settle": "kernels/triton/test_kernel.py",
    "kernels/triton/tiles": "kernels/triton/test_tuning.py",
    "kernels/triton/update": "kernels/triton/test_kernel.py",
    "sources/bfloat16": "sources/test_registry.py",
    "sources/concat": "sources/test_registry.py",
    "sinks/places": "sinks/test_registry.py",
    "sources/npy": "sources/test_flat.py",
    "sources/options": "sources/test_formats.py",
    "sources/parquet_columns": "sources/test_parquet.py",
    "sources/parquet_ids": "sources/test_ids.py",
    "sources/rowfile": "sources/test_flat.py",
    "sources/vecs": "sources/test_flat.py",
    "sources/within": "runs/storage/test_output_records.py",
    "sources/zarr/blosc": "sources/zarr/test_direct.py",
    "sources/zarr/chunk": "sources/zarr/test_direct.py",
    "sources/zarr/decode": "sources/zarr/test_direct.py",
    "sources/zarr/listing": "sources/zarr/test_source.py",
    "sources/zarr/shards": "sources/zarr/test_direct.py",
    "sources/zarr/store": "sources/zarr/test_source.py",
    # Parts of one page.
    "reports/figures": "reports/test_run_report.py",
    "reports/front": "reports/test_run_report.py",
    "reports/page": "reports/test_run_report.py",
    "reports/sweep_facts": "reports/test_sweep_report.py",
    # What both estimators share.
    "estimators/stopping": "estimators/test_runs.py",
    "estimators/base": "estimators/test_conventions.py",
    "estimators/loading": "estimators/test_runs.py",
    "estimators/parameters": "estimators/test_conventions.py",
    # Passes that bound sizes, in whole fits.
    "clustering/exchanging": "clustering/test_sizing.py",
    "clustering/size_plan": "clustering/test_sizing.py",
    "runs/engine/bounded": "runs/test_bounded_sizes.py",
    "batch_rows": "test_config.py",
    # Whole verbs: beside scikit-learn, and by who calls them.
    "runs/evaluate": "test_equivalence.py",
    "runs/sweeping/measuring": "runs/sweeping/test_sampled.py",
    "runs/sweeping/record": "runs/sweeping/test_sweep.py",
    "runs/sweeping/together": "runs/sweeping/test_sweep.py",
    "runs/partitioning/clusters": "runs/partitioning/test_partition.py",
    "runs/partitioning/flat": "runs/partitioning/test_distribution.py",
    "runs/partitioning/gathered": "runs/partitioning/test_distribution.py",
    "runs/partitioning/given": "runs/partitioning/test_partition.py",
    "runs/partitioning/grouping": "runs/partitioning/test_partition.py",
    "runs/partitioning/ordering": "runs/partitioning/test_partition.py",
    "runs/partitioning/record": "runs/partitioning/test_partition.py",
    "runs/storage/record_folder": "runs/partitioning/test_partition.py",
    "runs/partitioning/work": "runs/partitioning/test_distribution.py",
    "runs/partitioning/zarr_rows": "runs/partitioning/test_rows.py",
    "runs/partitioning/parquet_rows": "runs/partitioning/test_rows.py",
    "partition_command": "runs/partitioning/test_partition.py",
    "export_command": "runs/exporting/test_faiss_index.py",
    "runs/exporting/export": "runs/exporting/test_faiss_index.py",
    "runs/exporting/targets": "runs/exporting/test_faiss_index.py",
    "runs/dry_run/partition": "runs/partitioning/test_planning.py",
    "runs/fit": "test_equivalence.py",
    "runs/in_memory": "estimators/test_inputs.py",
    "runs/partial_fit": "estimators/test_minibatch.py",
    "runs/engine/labelled": "runs/test_predict.py",
    "runs/engine/labelling": "runs/test_predict.py",
    "runs/engine/labelling_checks": "runs/test_predict.py",
    "runs/engine/passes": "runs/engine/test_attempt.py",
    "runs/storage/handed": "runs/test_several_processes.py",
    "runs/planning/checks": "runs/planning/test_memory.py",
    "runs/planning/environment": "runs/engine/test_run_kernel.py",
    "runs/planning/fit_plan": "runs/planning/test_memory.py",
    "runs/planning/given_centroids": "estimators/test_inputs.py",
    "runs/reporting/out_of_memory": "runs/test_resources.py",
    "runs/storage/model_file": "runs/storage/test_model.py",
    "runs/storage/tensor_file": "runs/storage/test_checkpoint.py",
    # What several processes do together: shown by real ones.
    "estimators/sharing": "runs/test_shared_labels.py",
    "runs/engine/outputs": "runs/test_predict_nearest.py",
    "runs/engine/watch": "runs/test_shared_labels.py",
    "runs/engine/writing": "runs/test_predict.py",
}


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
    assert streamkm.__all__ == [
        "BisectingKMeans",
        "KMeans",
        "MiniBatchKMeans",
        "k_means",
        "kmeans_plusplus",
        "load_run",
        "open_source",
        "partition",
        "report",
        "sweep",
    ]
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


# ---- where tests are --------------------------------------------------------


def named_for(module: str) -> list[Path]:
    """Files of tests of ``a/b``: tests/a/test_b.py, or what is in tests/a/b/."""
    path = ROOT / "tests" / module
    named = path.with_name(f"test_{path.name}.py")
    return [named] if named.is_file() else sorted(path.glob("*.py"))


# Breaks when a newcomer who changes a module does not find its tests.
def test_every_module_has_tests_of_its_name() -> None:
    modules = {
        path.relative_to(ROOT / "streamkm").with_suffix("").as_posix()
        for path in source_files("streamkm")
        if path.name != "__init__.py"
    }
    found = {module for module in modules if named_for(module)}
    missing = modules - found - TESTED_IN.keys()
    assert not missing, (
        f"no tests of {sorted(missing)}: write tests/<folder>/test_<module>.py, or say in "
        "TESTED_IN of tests/test_repo.py where they are"
    )
    stale = {module for module in TESTED_IN if module in found or module not in modules}
    assert not stale, f"TESTED_IN names {sorted(stale)}, which have tests of their name or are gone"
    gone = {place for place in TESTED_IN.values() if not (ROOT / "tests" / place).is_file()}
    assert not gone, f"TESTED_IN names {sorted(gone)}, which are not there"


@dataclass(frozen=True)
class Implementation:
    """A line of one of the tables of what can be chosen by name."""

    contract: str
    """The class that its tests inherit, of tests/<room>/contract.py."""
    name: str
    """As it is chosen."""
    home: str
    """``module:name`` of the class, or of the function that opens it."""

    @property
    def tests(self) -> list[Path]:
        """Where they must be: with those of the module."""
        module = self.home.partition(":")[0].removeprefix("streamkm.").replace(".", "/")
        listed = TESTED_IN.get(module)
        return [ROOT / "tests" / listed] if listed else named_for(module)

    @property
    def missing_file(self) -> str:
        """The file that would have them."""
        *folders, module = self.home.partition(":")[0].split(".")[1:]
        return "/".join(["tests", *folders, f"test_{module}.py"])


IMPLEMENTATIONS = [
    *(Implementation("AlgorithmContract", name, e.home) for name, e in ALGORITHMS.items()),
    *(Implementation("KernelContract", name, entry.home) for name, entry in KERNELS.items()),
    *(Implementation("SinkContract", suffix, home) for suffix, home in SINKS.items()),
    *(Implementation("SourceContract", form.name, form.home) for form in FORMATS),
]


def subclasses(path: Path, contract: str) -> list[str]:
    """Source of the classes in a file that pytest collects, and that inherit from `contract`.

    Or from one that asks for more, which has a longer name: `PartedSinkContract`.
    """
    return [
        ast.unparse(node)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
        and node.name.startswith("Test")
        and any(getattr(base, "id", "").endswith(contract) for base in node.bases)
    ]


# Breaks when an algorithm, a kernel, a sink or a format is added, and nothing holds it to what the
# others promise.
@pytest.mark.parametrize("entry", IMPLEMENTATIONS, ids=lambda entry: f"{entry.name} {entry.home}")
def test_everything_that_can_be_chosen_passes_its_contract(entry: Implementation) -> None:
    held = [source for path in entry.tests for source in subclasses(path, entry.contract)]
    module = entry.home.partition(":")[0]
    room = module.split(".")[1]
    assert held, (
        f"{entry.name} ({entry.home}) has no subclass of {entry.contract} in its tests: write a "
        f"class Test... that inherits it (see tests/{room}/contract.py) into "
        + (", ".join(str(path.relative_to(ROOT)) for path in entry.tests) or entry.missing_file)
    )
    if entry.contract == "AlgorithmContract":
        named = [source for source in held if f"name = {entry.name!r}" in source]
        assert named, f"none of the contracts in the tests of {module} is for {entry.name!r}"
