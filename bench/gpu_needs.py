"""What scripts/gpu needs beside torch and Triton: what is missing is told before it is imported."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PACKAGES", "check_needs"]

#: Modules, and the packages that bring them; without the first two nothing runs, without the others
#: the parts that need them fail.
PACKAGES = {
    "safetensors": "safetensors", "tqdm": "tqdm", "zarr": "zarr", "numcodecs": "numcodecs",
    "google_crc32c": "google-crc32c", "donfig": "donfig", "pytest": "pytest",
}  # fmt: skip
ESSENTIAL = ("safetensors", "tqdm")


def check_needs(find: Callable[[str], object] = importlib.util.find_spec) -> None:
    """Say what is missing, and how to bring it; end if nothing can run without it."""
    missing = [module for module in PACKAGES if find(module) is None]
    if not missing:
        return
    names = " ".join(PACKAGES[module] for module in missing)
    print(
        f"scripts/gpu: not installed: {names}; bring the wheels: CONTRIBUTING.md says how, under "
        "scripts/gpu",
        file=sys.stderr,
    )
    if set(missing) & set(ESSENTIAL):
        sys.exit(2)
