"""Compare a cube with its bands first with the same cube with its bands last: reading, and a fit.

A Zarr cube of 12 bands of 2048 x 2048 int16 lies in two stores whose chunks hold all bands of
256 x 256 pixels, by Blosc or not compressed. Both are in the page cache. The two take turns, and
their order changes from round to round; a sample is the time of one epoch without a closing pass.

Run it by ``python -m bench.axes OUT.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from bench.measure import take_turns
from bench.report import environment
from bench.sparse import read_all
from streamkm import MiniBatchKMeans
from streamkm.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Callable

N_BANDS, EXTENT, CHUNK = 12, 2048, 256
N_ROUNDS = 7
K = 16


def make_cubes(folder: Path, codec: str) -> dict[str, Path]:
    """The two stores, by where their bands are."""
    rng = np.random.default_rng(0)
    field = rng.normal(size=(N_BANDS, EXTENT // 64, EXTENT // 64)).repeat(64, 1).repeat(64, 2)
    cube = (1000 * field + rng.normal(scale=50, size=field.shape)).astype(np.int16)
    compressors: Any = zarr.codecs.BloscCodec(cname="lz4") if codec == "blosc" else None
    paths = {"first": folder / f"{codec}-first.zarr", "last": folder / f"{codec}-last.zarr"}
    for place, path in paths.items():
        first = place == "first"
        zarr.create_array(
            path,
            data=cube if first else np.ascontiguousarray(np.moveaxis(cube, 0, -1)),
            chunks=(N_BANDS, CHUNK, CHUNK) if first else (CHUNK, CHUNK, N_BANDS),
            dimension_names=("band", "y", "x") if first else ("y", "x", "band"),
            compressors=compressors,
        )
    return paths


def fit(path: Path) -> None:
    """One epoch, with seeding."""
    with_bands = open_source(path, feature_dim="band")
    MiniBatchKMeans(K, init="random", compute_labels=False, random_state=0).fit(with_bands)
    with_bands.close()


def main() -> int:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    works: dict[str, Callable[[Path], None]] = {
        "read": partial(read_all, feature_dim="band"),
        "fit": fit,
    }
    samples = {}
    with tempfile.TemporaryDirectory() as folder:
        for codec in ("blosc", "uncompressed"):
            paths = make_cubes(Path(folder), codec)
            for name, work in works.items():
                actions = {place: partial(work, path) for place, path in paths.items()}
                samples[f"{name}, {codec}"] = take_turns(actions, N_ROUNDS)
    ratios = {
        name: statistics.median(by_place["first"]) / statistics.median(by_place["last"])
        for name, by_place in samples.items()
    }
    result = {**environment(), "first_of_last": ratios, "seconds": samples}
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
