"""Tolerances for comparing with scikit-learn."""

from __future__ import annotations

import numpy as np


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """To rounding, of numbers that are means of numbers up to some hundreds."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)
