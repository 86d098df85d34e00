"""Jobs of the campaign: fits and predictions over every format, as commands and their results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from tests.runs.helpers import RESULTS, clusters

#: Of the small arrays: a run takes a fraction of a second, most of it spent saving.
SMALL_SHAPE, SMALL_BATCH = (4800, 8), 200
#: Of the large ones: more than one window, as windows are.
LARGE_SHAPE, LARGE_BATCH = (1_080_000, 16), 40_000
N_SHARDS = 4
K = 6
#: Of outputs that have their names the files of a cursor and of a lock may be left.
LEFT = (".partial.json", ".partial.json.tmp", ".partial.lock")

LLOYD = ("--algorithm", "lloyd", "--epochs", "3", "--tol", "0")


@dataclass(frozen=True)
class Job:
    """A command that writes into a folder of its own, and what it leaves there."""

    name: str
    source: Path
    settings: tuple[str, ...]
    """Of a fit its options; of a prediction the suffix of its outputs."""
    run: Path | None = None
    """The finished run that a prediction uses; None for a fit."""

    def command(self, out: Path) -> list[str]:
        """Its arguments, but for how it is carried out."""
        if self.run is None:
            return ["fit", str(self.source), "--k", str(K), "--out", str(out / "run"),
                    "--resume", *self.settings]  # fmt: skip
        (suffix,) = self.settings
        return ["predict", str(self.run), str(self.source), "--resume",
                "--labels", str(out / f"labels{suffix}"),
                "--distances", str(out / f"distances{suffix}")]  # fmt: skip

    def results(self, out: Path) -> dict[str, bytes]:
        """Every byte that must be the same, by relative path."""
        if self.run is None:
            return {name: (out / "run" / name).read_bytes() for name in RESULTS}
        files = (path for path in out.rglob("*") if path.is_file() and not path.name.endswith(LEFT))
        return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}

    def phase(self, out: Path) -> str:
        """What an attempt was at when it ended, by what it left behind."""
        names = {path.name for path in out.rglob("*")}
        if any(name.startswith(".") and name.endswith(".tmp") for name in names):
            return "saving"
        if self.run is not None:
            if any(name.endswith(".partial") for name in names):
                return "predict"
            return "committing" if names else "start"
        if "model.safetensors" in names:
            return "done"
        steps = sorted((out / "run" / "checkpoints").glob("step-*"), key=lambda path: path.name)
        if not steps:
            return "before the first checkpoint" if "config.json" in names else "start"
        cursor: dict[str, Any] = json.loads((steps[-1] / "manifest.json").read_bytes())["cursor"]
        return str(cursor["phase"])


def write_arrays(folder: Path, shape: tuple[int, int]) -> None:
    """The same rows in every format, and weights for them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = clusters(*shape, n_clusters=K)
    np.save(folder / "x.npy", rows)
    np.save(folder / "weights.npy", np.random.default_rng(1).exponential(size=len(rows)))
    with (folder / "x.fbin").open("wb") as file:
        np.array(shape, "<u4").tofile(file)
        rows.tofile(file)
    (folder / "shards").mkdir()
    for index, shard in enumerate(np.array_split(rows, N_SHARDS)):
        np.save(folder / "shards" / f"part-{index}.npy", shard)
    chunk = (len(rows) // 16, shape[1])
    for name, options in (
        ("raw.zarr", {"compressors": None}),
        ("lz4.zarr", {"compressors": zarr.codecs.BloscCodec(cname="lz4", clevel=1)}),
        ("sharded.zarr", {"shards": (4 * chunk[0], shape[1])}),
    ):
        zarr.create_array(folder / name, data=rows, chunks=chunk, **options)
    half = rows[::-1].astype(np.float16)
    half[::97, 1] = np.nan
    np.save(folder / "holes.npy", half)


def small_jobs(arrays: Path, run: Path) -> list[Job]:
    """Fits of every kind and phase over all formats, then predictions by `run`."""
    fits = {
        "x.npy": ("--epochs", "2", "--scale", "zscore"),
        "raw.zarr": (*LLOYD, "--init", "random"),
        "lz4.zarr": ("--init", "k-means||"),
        "sharded.zarr": (*LLOYD, "--scale", "minmax", "--weights", str(arrays / "weights.npy")),
        "x.fbin": ("--metric", "cosine", "--n-init", "2", "--no-closing-pass"),
        "shards": ("--init", "k-means++", "--epochs", "3"),
        "holes.npy": ("--nan", "drop", "--init", "random", "--epochs", "2"),
    }
    jobs = [
        Job(f"fit {name} {' '.join(settings[:2])}", arrays / name,
            (*settings, "--batch-rows", str(SMALL_BATCH)))
        for name, settings in fits.items()
    ]  # fmt: skip
    for name, suffix in (("shards", ".npy"), ("lz4.zarr", ".zarr")):
        jobs.append(Job(f"predict {name} to {suffix}", arrays / name, (suffix,), run))
    return jobs


def large_jobs(arrays: Path, run: Path) -> list[Job]:
    """Some of them, over arrays of several windows."""
    batch = ("--batch-rows", str(LARGE_BATCH))
    return [
        Job("fit x.npy zscore", arrays / "x.npy", ("--scale", "zscore", "--epochs", "2", *batch)),
        Job("fit lz4.zarr lloyd", arrays / "lz4.zarr", (*LLOYD, "--init", "random", *batch)),
        Job("fit sharded.zarr k-means||", arrays / "sharded.zarr", ("--init", "k-means||", *batch)),
        Job("predict raw.zarr to .zarr", arrays / "raw.zarr", (".zarr",), run),
        Job("predict shards to .npy", arrays / "shards", (".npy",), run),
    ]
