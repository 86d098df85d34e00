"""Finds the fastest tile for this GPU: times each once, and remembers the choice on disk.

A tile decides the speed of an assignment, never its result: labels are exact with every
tile, and distances and sums are added up in an order that does not depend on it. So no
result changes if a remembered choice is lost, differs between machines or is forged. A
file counts only if it holds one of the tiles at hand; a file that cannot be read or
written is ignored.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import triton

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streamkm.kernels.triton.tiles import Tile

__all__ = ["LEAST_TUNED_K", "cache_folder", "fastest", "key_of", "seconds_of", "tuned_tile"]

#: Centroids from which on tiles are tuned: with fewer, reading the rows sets the pace, even from
#: the memory of the device.
LEAST_TUNED_K = 1024
#: Bytes that are read of a file, at most; one that this module wrote is much shorter.
MAX_BYTES = 4096
#: Folder below the cache. Its number is that of the format: raise it if a tile changes meaning.
FOLDER = Path("streamkm") / "tiles-2"
#: Runs of which the median time is taken.
N_TIMED = 5


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Folder of remembered choices, by the XDG base directories; None if there is no home."""
    base = environment.get("XDG_CACHE_HOME", "")
    # The specification says to ignore a path that is not absolute.
    if base and Path(base).is_absolute():
        return Path(base) / FOLDER
    home = environment.get("HOME", "")
    return Path(home) / ".cache" / FOLDER if home and Path(home).is_absolute() else None


def key_of(
    device: torch.device, rows: torch.dtype, n_features: int, k: int, centroids: torch.dtype
) -> str:
    """Name of the file for all that decides the fastest tile: card, versions, dtypes and sizes.

    The card's processors are counted: of one card a slice (MIG) may be lent.

    Numbers of features and centroids are rounded up to powers of two.
    """
    major, minor = torch.cuda.get_device_capability(device)
    card = "".join(c if c.isalnum() else "-" for c in torch.cuda.get_device_name(device))
    n_processors = torch.cuda.get_device_properties(device).multi_processor_count
    dtypes = f"{rows}-{centroids}".replace("torch.", "")
    d, bucket = 1 << (n_features - 1).bit_length(), 1 << (k - 1).bit_length()
    where = f"{card}-sm{major}{minor}-{n_processors}-triton{triton.__version__}"
    return f"{where}-{dtypes}-d{d}-k{bucket}.json"


def tuned_tile(
    folder: Path | None,
    key: str,
    among: tuple[Tile, ...],
    seconds: Callable[[Tile], float | None],
) -> Tile:
    """The tile that `folder` remembers for `key`; otherwise the fastest, which is then remembered.

    If none of the tiles runs, it is the first.
    """
    path = None if folder is None else folder / key
    known = None if path is None else _read(path, among)
    if known is not None:
        return known
    chosen = fastest(among, seconds) or among[0]
    if path is not None:
        _write(path, chosen)
    return chosen


def fastest(among: tuple[Tile, ...], seconds: Callable[[Tile], float | None]) -> Tile | None:
    """The tile that takes the fewest `seconds`, which is None for tiles that do not run here."""
    times = {tile: taken for tile in among if (taken := seconds(tile)) is not None}
    return min(times, key=times.__getitem__, default=None)


def seconds_of(action: Callable[[], object]) -> float | None:
    """Median time of `action` on the current GPU; None if it cannot be compiled or launched there.

    Another tile may do. A device that is lost fails again at the next call, outside of tuning.
    """
    spent: list[float] = []
    try:
        action()  # compiles
        for _ in range(N_TIMED):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            action()
            end.record()
            end.synchronize()
            spent.append(start.elapsed_time(end) / 1e3)
    except (triton.runtime.errors.TritonError, RuntimeError):
        return None
    return sorted(spent)[N_TIMED // 2]


def _read(path: Path, among: tuple[Tile, ...]) -> Tile | None:
    try:
        # In a shared folder the name may be a pipe or a device, which would block.
        if not path.is_file():
            return None
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    # Compared as text, since True equals 1.
    return next((tile for tile in among if json.dumps(asdict(tile)) == json.dumps(found)), None)


def _write(path: Path, tile: Tile) -> None:
    """Write the file whole or not at all, even if others write it too."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            temporary = Path(file.name)
            file.write(json.dumps(asdict(tile)).encode())
        temporary.replace(path)
    except OSError:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
