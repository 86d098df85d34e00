"""Which tile is fastest on this GPU: timed once, and remembered on disk.

A tile decides how fast a batch is assigned, never how: labels are exact whatever it is,
distances and sums are added up in an order that knows no tile. So what is remembered may
be lost, differ between machines or be made up by somebody else without any result
changing: of a file only the name of one of the tiles is believed, and one that cannot be
read or written is as good as none.
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

#: With fewer centroids the link from the host sets the pace, not this.
LEAST_TUNED_K = 4096
#: A file of ours is much shorter.
MAX_BYTES = 4096
#: Names the format, and is raised when a tile means something else.
FOLDER = Path("streamkm") / "tiles-1"
N_TIMED = 5


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where choices are kept, by the XDG base directories; None where there is no home."""
    base = environment.get("XDG_CACHE_HOME", "")
    # What is not absolute has to be ignored, says the specification.
    if base and Path(base).is_absolute():
        return Path(base) / FOLDER
    home = environment.get("HOME", "")
    return Path(home) / ".cache" / FOLDER if home and Path(home).is_absolute() else None


def key_of(
    device: torch.device, rows: torch.dtype, n_features: int, k: int, centroids: torch.dtype
) -> str:
    """A file's name for what decides which tile is fastest, features and centroids in buckets."""
    major, minor = torch.cuda.get_device_capability(device)
    card = "".join(c if c.isalnum() else "-" for c in torch.cuda.get_device_name(device))
    dtypes = f"{rows}-{centroids}".replace("torch.", "")
    d, bucket = 1 << (n_features - 1).bit_length(), 1 << (k - 1).bit_length()
    return f"{card}-sm{major}{minor}-triton{triton.__version__}-{dtypes}-d{d}-k{bucket}.json"


def tuned_tile(
    folder: Path | None,
    key: str,
    among: tuple[Tile, ...],
    seconds: Callable[[Tile], float | None],
) -> Tile:
    """The tile that `folder` remembers for `key`, or else the fastest, remembered from now on.

    Where none of them runs it is the first.
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
    """The tile that takes the fewest `seconds`, None of which say that it does not run here."""
    times = {tile: taken for tile in among if (taken := seconds(tile)) is not None}
    return min(times, key=times.__getitem__, default=None)


def seconds_of(action: Callable[[], object]) -> float | None:
    """Median time of `action` on the current GPU; None if that has no room for its programs."""
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
    except triton.runtime.errors.OutOfResources:
        return None
    return sorted(spent)[N_TIMED // 2]


def _read(path: Path, among: tuple[Tile, ...]) -> Tile | None:
    try:
        # Not of a pipe or a device, which a name in a shared folder may be.
        if not path.is_file():
            return None
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    # Compared as text: True would pass for 1.
    return next((tile for tile in among if json.dumps(asdict(tile)) == json.dumps(found)), None)


def _write(path: Path, tile: Tile) -> None:
    """Whole or not at all, whoever else writes it."""
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
