"""scikit-learn's own tests of k-means, with streamkm's classes and functions in their place."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import sklearn

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scikit-learn.md"

RUN = """
import json, sys
import numpy as np, pytest, sklearn.cluster, streamkm

for name in ("KMeans", "MiniBatchKMeans", "BisectingKMeans", "k_means", "kmeans_plusplus"):
    setattr(sklearn.cluster, name, getattr(streamkm, name))

class Outcomes:
    found = {"passed": [], "failed": []}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and not report.skipped or report.failed:
            self.found[report.outcome].append(report.nodeid.split("::")[-1])

np.random.seed(0)  # Some of the tests name no seed.
modules = [f"sklearn.cluster.tests.test_{name}" for name in ("k_means", "bisect_k_means")]
options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", "-W", "ignore"]
pytest.main(["--pyargs", *modules, *options], plugins=[Outcomes()])
print()
print(json.dumps(Outcomes.found))
"""


# Breaks when a test of scikit-learn fails without a reason in the docs, or passes with one.
def test_exactly_the_listed_tests_fail(tmp_path: Path) -> None:
    text = PAGE.read_text()
    version, n_passed, n_all = re.findall(
        r"scikit-learn (\d\S+) tests.*?(\d+) of (\d+) tests pass", text, re.DOTALL
    )[0]
    if sklearn.__version__ != version:
        pytest.skip(f"the page lists the tests of scikit-learn {version}")
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    failed = Counter(name.split("[")[0] for name in found["failed"])
    listed = re.findall(r"^\| `test_k_means.py::(test_\w+)` \| (\d+) \| \w", text, re.MULTILINE)
    assert dict(failed) == {name: int(cases) for name, cases in listed}
    assert len(found["passed"]) == int(n_passed)
    assert len(found["passed"]) + len(found["failed"]) == int(n_all)
