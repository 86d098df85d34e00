"""Arrays that the estimators are compared with scikit-learn's on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

DATA_SETS: dict[str, tuple[Callable[[], Any], int]] = {
    "iris": (load_iris, 3),
    "wine": (load_wine, 3),
    "breast_cancer": (load_breast_cancer, 4),
    "digits": (load_digits, 10),
}


def data(name: str) -> tuple[np.ndarray, int]:
    load, k = DATA_SETS[name]
    return load().data, k


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """To rounding, of numbers that are means of numbers up to some hundreds."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)
