"""The package as its users meet it: built once, installed where there is no checkout, and used.

Nothing is downloaded: what streamkm depends on is borrowed from the environment of the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from packaging.tags import cpython_tags
from packaging.utils import parse_wheel_filename

import streamkm
from tests.shared import made_once

ROOT = Path(__file__).resolve().parent.parent
MODULE = "streamkm/kernels/native/module.cpp"
EXTENSION = "streamkm/kernels/_cpu.abi3.so"
# Without the checkout, and a thread each: other tests run beside these.
ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
    "OMP_NUM_THREADS": "1"
}
COMPILER = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
#: A compiler that there is not.
NO_COMPILER = ALONE | {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}


def run(*command: object, folder: Path, env: dict[str, str] = ALONE) -> str:
    """What a command that succeeds says on stdout and stderr."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder, env=env, check=False, text=True, timeout=300,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def own_files() -> set[str]:
    """Every file of the project, by git or, in an unpacked sdist, by the list in that."""
    if (ROOT / ".git").exists():
        # (The checkout may belong to another user, in a container for example.)
        git = ["git", "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard"]
        names = run(*git, folder=ROOT).split("\0")
    else:
        names = (ROOT / "streamkm.egg-info/SOURCES.txt").read_text().splitlines()
        names = [name for name in names if not name.startswith("streamkm.egg-info/")]
    return {name for name in names if name and (ROOT / name).is_file()}


class Built(NamedTuple):
    """What ``python -m build`` makes: an sdist, and a wheel of that."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built of a copy, so that nothing which an earlier build left behind gets in."""

    def build(out: Path) -> None:
        copy = tmp_path_factory.mktemp("copy")
        for name in own_files():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        # Without optimising: that takes 6 seconds, and 40 with. What the tests' own environment
        # runs has been compiled as users do.
        compiler = copy.parent / "quick-c++"
        compiler.write_text(f'#!/bin/sh\nexec {COMPILER} "$@" -O0\n')
        compiler.chmod(0o755)
        env = ALONE | {"CXX": str(compiler)}
        run(sys.executable, "-m", "build", "--no-isolation", "-o", out, ".", folder=copy, env=env)

    out = made_once(tmp_path_factory, "dist", build)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return Built(sdist, wheel)


class Environment:
    """A new environment that finds the packages of the tests' own behind its own."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.scripts = folder / "bin"
        self.packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
        # Of an editable streamkm nothing is seen: its hook is in a .pth file, and these are
        # read in an environment's own folder only.
        borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        (self.packages / "borrowed.pth").write_text("\n".join(borrowed))

    def pip(self, *arguments: object, env: dict[str, str] = ALONE) -> str:
        python = self.scripts / "python"
        pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
        return run(*pip, *arguments, folder=self.scripts, env=env)

    def install(self, package: Path, env: dict[str, str] = ALONE) -> None:
        # (Ignored is the streamkm that the tests' own environment has.)
        options = ["--no-index", "--no-deps", "--no-cache-dir", "--ignore-installed"]
        self.pip("install", *options, "--no-build-isolation", package, env=env)


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel in an environment of its own."""
    environment = Environment(tmp_path_factory.mktemp("installed"))
    environment.install(built.wheel)
    return environment


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder, with 200 x 3 rows in it."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(200, 3)).astype("f4"))
    return tmp_path


def can_compile() -> bool:
    """Whether this machine has what the extension takes."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(COMPILER.split()[0]) is not None and headers.exists()


compiles = pytest.mark.skipif(not can_compile(), reason="no C++ compiler, or no Python.h")


# ---- what the files hold ----------------------------------------------------


# Breaks when a file is added that MANIFEST.in does not know, or one gets in that nobody wrote.
def test_the_sdist_holds_the_repository(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        files = {member.name: member for member in archive.getmembers() if member.isfile()}
    held = {name.partition("/")[2] for name in files}
    generated = {name for name in held if name.startswith("streamkm.egg-info/")}
    assert held - generated - {"PKG-INFO", "setup.cfg"} == own_files()
    # What the tests of scripts ask.
    assert files[f"streamkm-{streamkm.__version__}/scripts/test"].mode & 0o100


# Breaks when tests, benches or C++ are installed, or a module, the page of reports or the mark of
# types is not.
@compiles
def test_the_wheel_holds_the_package_alone(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {name for name in own_files() if re.fullmatch("streamkm/.*[.](py|css|html)", name)}
    assert held == modules | {"streamkm/py.typed", EXTENSION}


# Breaks when the wheel serves one version of Python, or promises more than its extension keeps.
@compiles
def test_one_wheel_serves_every_later_python(built: Built) -> None:
    *_, tags = parse_wheel_filename(built.wheel.name)
    assert {(tag.interpreter, tag.abi) for tag in tags} == {("cp311", "abi3")}
    platforms = [tag.platform for tag in tags]
    for minor in (11, 12, 13, 14):
        assert tags & set(cpython_tags((3, minor), platforms=platforms))
    limit = re.search("define Py_LIMITED_API 0x(..)(..)0000", (ROOT / MODULE).read_text())
    assert limit is not None
    assert tuple(int(digits, 16) for digits in limit.groups()) == (3, 11)


def test_what_an_index_shows_is_well_formed(built: Built, tmp_path: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *built, folder=tmp_path)


# ---- what is installed ------------------------------------------------------


# Breaks when the command on the path is another program than the module, or needs the checkout.
def test_the_command_works_from_another_folder(installed: Environment, folder: Path) -> None:
    streamkm_command = installed.scripts / "streamkm"
    python = installed.scripts / "python"
    where = "import streamkm; print(streamkm.__file__)"
    assert Path(run(python, "-c", where, folder=folder).strip()).is_relative_to(installed.packages)
    assert installed.pip("check").strip() == "No broken requirements found."

    version = f"streamkm {streamkm.__version__}\n"
    assert run(streamkm_command, "--version", folder=folder) == version
    assert run(python, "-m", "streamkm", "--version", folder=folder) == version
    fit_help = run(streamkm_command, "fit", "--help", folder=folder)
    assert fit_help.startswith("usage: streamkm fit ")
    assert run(python, "-m", "streamkm", "fit", "--help", folder=folder) == fit_help

    fit = ["fit", "x.npy", "--k", "3", "--out", "run", "--device", "cpu"]
    said = run(streamkm_command, *fit, folder=folder)
    assert ("kernel cpu (auto)" if can_compile() else "kernel reference (auto)") in said
    assert ("the compiled CPU kernel was not built" in said) is not can_compile()
    run(streamkm_command, "predict", "run", "x.npy", "--labels", "labels.npy", folder=folder)
    assert np.load(folder / "labels.npy").shape == (200,)
    assert "200" in run(streamkm_command, "info", "x.npy", folder=folder)
    assert "finished" in run(streamkm_command, "info", "run", folder=folder)


# Breaks when the command tells its exit status to nobody.
@pytest.mark.parametrize(
    ("arguments", "said"), [([], "usage: streamkm "), (["info", "no.npy"], "")]
)
def test_the_command_refuses_with_status_2(
    installed: Environment, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = subprocess.run(
        [installed.scripts / "streamkm", *arguments],
        cwd=tmp_path, env=ALONE, check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# Breaks when an installation without a compiler fails, or is slow and does not say why.
def test_the_sdist_installs_without_a_compiler(built: Built, folder: Path) -> None:
    environment = Environment(folder / "environment")
    environment.install(built.sdist, env=NO_COMPILER)
    assert not list(environment.packages.glob("streamkm/**/*.so"))
    assert environment.pip("check").strip() == "No broken requirements found."
    fit = ["fit", "x.npy", "--k", "3", "--out", "run", "--device", "cpu"]
    said = run(environment.scripts / "streamkm", *fit, folder=folder)
    assert "kernel reference (auto)" in said
    (note,) = [line for line in said.splitlines() if "note: the compiled" in line]
    assert "takes a C++ compiler" in note
    assert "2.5 to 5 times as long" in note


USER = """
import numpy as np
from streamkm import KMeans, MiniBatchKMeans, load_run, open_source

reveal_type(KMeans(3).fit(np.zeros((5, 3))))
reveal_type(MiniBatchKMeans(3))
reveal_type(open_source("x.npy"))
reveal_type(load_run("run"))
KMeans(no_such_option=1)
"""


# Breaks when a type checker takes what streamkm gives for Any.
def test_types_are_seen_by_a_users_project(installed: Environment, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy comes with the extra `lint`")
    (tmp_path / "user.py").write_text(USER)
    # (torch's modules are left out: they take ten seconds, and show in none of these types.)
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\n[mypy-torch.*]\nfollow_imports=skip")
    python = installed.scripts / "python"
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", python, "user.py"],
        cwd=tmp_path, env=ALONE, check=False, capture_output=True, text=True, timeout=300,
    ).stdout  # fmt: skip
    revealed = re.findall('^user.py:.*Revealed type is "(.*)"', checked, re.MULTILINE)
    assert revealed == [
        "streamkm.estimators.kmeans.KMeans",
        "streamkm.estimators.minibatch.MiniBatchKMeans",
        "streamkm.sources.base.Source",
        "streamkm.estimators.kmeans.KMeans | streamkm.estimators.minibatch.MiniBatchKMeans",
    ]
    errors = [line for line in checked.splitlines() if ": error: " in line]
    assert len(errors) == 1, checked
    assert 'Unexpected keyword argument "no_such_option"' in errors[0]
