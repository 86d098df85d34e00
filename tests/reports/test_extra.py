"""What is said where the packages of the extra are missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("package", ["matplotlib", "jinja2", "PIL"])
def test_a_missing_package_is_named_with_the_remedy(package: str, blobs: Path) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from streamkm.cli import main\n"
        f"sys.exit(main(['report', {str(blobs / 'run')!r}, '-o', {str(blobs / 'no.html')!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"{package} cannot be imported" in done.stderr
    assert 'install them: pip install "streamkm[report]"' in done.stderr
    assert done.stderr.count("\n") == 1


# Breaks when the rest of the package needs what only reports need.
def test_a_fit_needs_none_of_them(tmp_path: Path, blobs: Path) -> None:
    run = str(tmp_path / "run")
    program = (
        "import sys\n"
        "for name in ('matplotlib', 'jinja2', 'PIL'): sys.modules[name] = None\n"
        "from streamkm.cli import main\n"
        f"main(['fit', {str(blobs / 'x.npy')!r}, '--k', '3', '--out', {run!r}])\n"
        f"sys.exit(main(['info', {run!r}]))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
