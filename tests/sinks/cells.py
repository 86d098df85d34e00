"""Files of cells, as far as labels have to do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path


def write_cells(path: Path, n: int = 1000, *, index: str = "array", columns: int = 2) -> Path:
    """Write what anndata 0.12 writes of `n` cells and 3 genes."""
    with h5py.File(path, "w") as file:
        file.attrs["encoding-type"], file.attrs["encoding-version"] = "anndata", "0.1.0"
        file["X"] = np.random.default_rng(n).normal(size=(n, 3)).astype("f4")
        file["varm/P"] = np.ones((3, 2), "f4")
        obs = file.create_group("obs")
        obs.attrs["encoding-type"], obs.attrs["encoding-version"] = "dataframe", "0.2.0"
        obs.attrs["_index"] = "cell"
        names = [f"c{i}" for i in range(columns)]
        # Without columns anndata writes an empty array of floats.
        order: Any = np.array(names, object) if names else np.empty(0)
        obs.attrs["column-order"] = order
        for name in names:
            obs[name] = np.arange(n)
        cells = [f"cell-{i}" for i in range(n)]
        obs["cell" if index == "array" else "cell/values"] = cells
        if index != "array":
            obs["cell/mask"] = np.zeros(n, bool)
    return path
