"""scikit-learn's small arrays, for comparisons with scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine


@dataclass(frozen=True)
class DataSet:
    name: str
    load: Callable[[], Any]
    k: int
    """Clusters that are looked for in it."""

    @property
    def rows(self) -> np.ndarray:
        """In float64."""
        return np.asarray(self.load().data)


IRIS, DIGITS = DataSet("iris", load_iris, 3), DataSet("digits", load_digits, 10)
DATA_SETS = [
    IRIS,
    DataSet("wine", load_wine, 3),
    DataSet("breast_cancer", load_breast_cancer, 4),
    DIGITS,
]

#: Gives a test the parameter `data`.
on_data_sets = pytest.mark.parametrize("data", DATA_SETS, ids=lambda data: data.name)
