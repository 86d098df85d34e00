"""Reads Zarr arrays of formats 2 and 3, on disk and behind addresses.

Other packages use only the names below. A name is imported on first use, because zarr takes longer
to import than everything else here, and obstore, which `open_remote` needs, may not be installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamkm.sources.zarr.opening import array_names, open_zarr, open_zarr_node
    from streamkm.sources.zarr.remote import open_remote
    from streamkm.sources.zarr.zipped import open_zip

__all__ = ["array_names", "open_remote", "open_zarr", "open_zarr_node", "open_zip"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = {"open_remote": "remote", "open_zip": "zipped"}.get(name, "opening")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
