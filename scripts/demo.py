"""The demo: 531,720 patches of two photographs, clustered in less memory than float32 rows take.

Every 8 x 8 patch of the photographs that come with scikit-learn is one row of
192 bytes in a Zarr array. The commands are those that a user types; each is
printed before it runs. Three numbers of clusters are fitted with one read. At
the end, a page shows what was found, and a picture the centroids and a
photograph rebuilt from them. Everything lies in ``demo-output/``, which is made
anew each time.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zarr
from sklearn.datasets import load_sample_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parent.parent / "demo-output"
SIDE = 8
ROWS_OF_PATCHES_PER_CHUNK = 7  # a photograph has 420 = 60 x 7, so no chunk is written twice
NUMBERS = (64, 128, 256)  # of clusters; with 256 a label fits in one byte
MEMORY = "320MiB"


def load_photographs() -> list[NDArray[np.uint8]]:
    """The two photographs, each 427 x 640 x 3."""
    return [np.asarray(image, dtype=np.uint8) for image in load_sample_images().images]


def write_patches(path: Path, photographs: list[NDArray[np.uint8]]) -> None:
    """Write every patch as one row of a Zarr array, one chunk at a time."""
    height, width, n_channels = photographs[0].shape
    down, across = height - SIDE + 1, width - SIDE + 1
    n_features = SIDE * SIDE * n_channels
    array = zarr.create_array(
        store=path,
        shape=(len(photographs) * down * across, n_features),
        chunks=(ROWS_OF_PATCHES_PER_CHUNK * across, n_features),
        dtype="uint8",
    )
    start = 0
    for photograph in photographs:
        windows = np.lib.stride_tricks.sliding_window_view(photograph, (SIDE, SIDE, n_channels))
        for top in range(0, down, ROWS_OF_PATCHES_PER_CHUNK):
            chunk = windows[top : top + ROWS_OF_PATCHES_PER_CHUNK].reshape(-1, n_features)
            array[start : start + len(chunk)] = chunk
            start += len(chunk)
    n_rows = array.shape[0]
    print(
        f"{path.name}: {n_rows:,} rows x {n_features} bytes in {array.nchunks} chunks, "
        f"{array.nbytes / 1e6:.0f} MB as stored, {4 * array.nbytes / 1e6:.0f} MB as float32;\n"
        f"the fit may use {MEMORY}\n"
    )


def streamkm(*arguments: str) -> None:
    """Print a command, then run it in the demo's folder."""
    print("$", shlex.join(["python", "-m", "streamkm", *arguments]), flush=True)
    status = subprocess.run([sys.executable, "-m", "streamkm", *arguments], cwd=FOLDER).returncode
    if status:
        sys.exit(status)
    print(flush=True)


def as_picture(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """Numbers from 0 to 255 as numbers from 0 to 1, clipped."""
    picture: NDArray[np.float32] = np.clip(values.astype(np.float32) / 255, 0, 1)
    return picture


def by_brightness(patches: NDArray[np.float32]) -> NDArray[np.intp]:
    """Order of patches (K x 8 x 8 x 3) from dark to bright."""
    return np.argsort(np.dot(patches.mean(axis=(1, 2)), [0.299, 0.587, 0.114]))


def mosaic(patches: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """Patches (K x 8 x 8 x 3) side by side in one picture, with a white line between them."""
    framed = np.pad(patches, ((0, 0), (1, 0), (1, 0), (0, 0)), constant_values=1.0)
    rows = len(patches) // columns
    grid = framed.reshape(rows, columns, SIDE + 1, SIDE + 1, 3).transpose(0, 2, 1, 3, 4)
    picture = grid.reshape(rows * (SIDE + 1), columns * (SIDE + 1), 3)
    return np.pad(picture, ((0, 1), (0, 1), (0, 0)), constant_values=1.0)


def rebuild(
    labels: NDArray[np.int32], patches: NDArray[np.float32], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """The first photograph, of `shape`, made of the centroids of its tiles."""
    down, across = shape[0] // SIDE, shape[1] // SIDE
    every_patch = labels.reshape(-1, shape[0] - SIDE + 1, shape[1] - SIDE + 1)[0]
    tiles: NDArray[np.float32] = patches[every_patch[::SIDE, ::SIDE]]
    return tiles.transpose(0, 2, 1, 3, 4).reshape(down * SIDE, across * SIDE, 3)


def show(axes: Axes, picture: NDArray[np.float32], title: str) -> None:
    """Draw a picture, its pixels as squares."""
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(title, fontsize=11, loc="left")
    axes.axis("off")


def draw(
    path: Path,
    photograph: NDArray[np.uint8],
    labels: NDArray[np.int32],
    centroids: NDArray[np.float32],
) -> None:
    """Save the centroids, and beside them the first photograph before and after."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    patches = as_picture(centroids).reshape(-1, SIDE, SIDE, 3)
    rebuilt = rebuild(labels, patches, photograph.shape[:2])
    original = as_picture(photograph)[: rebuilt.shape[0], : rebuilt.shape[1]]

    figure = plt.figure(figsize=(15, 9.4), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[1.42, 1])
    show(
        figure.add_subplot(grid[:, 0]),
        mosaic(patches[by_brightness(patches)], columns=16),
        f"The {len(patches)} centroids, from dark to bright: flat colours, edges, roof tiles",
    )
    show(figure.add_subplot(grid[0, 1]), original, "One of the two photographs")
    show(
        figure.add_subplot(grid[1, 1]),
        rebuilt,
        f"The same, each {SIDE} x {SIDE} tile replaced by its centroid:\n"
        f"1 byte a tile instead of {centroids.shape[1]}",
    )
    figure.suptitle(
        f"streamkm: {len(labels):,} patches of {SIDE} x {SIDE} pixels, k = {len(patches)}",
        fontsize=14,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Write the data, cluster it, label it, report on it, draw it."""
    began = time.monotonic()
    if FOLDER.exists():
        shutil.rmtree(FOLDER)
    FOLDER.mkdir()
    photographs = load_photographs()
    write_patches(FOLDER / "patches.zarr", photographs)

    print(f"$ cd {FOLDER.name}")
    streamkm("info", "patches.zarr")
    streamkm(
        *("sweep", "patches.zarr", "--k", *map(str, NUMBERS), "--out", "sweep"),
        *("--max-host-memory", MEMORY),
    )
    run = f"sweep/k-{NUMBERS[-1]:04}"
    streamkm("predict", run, "patches.zarr", "--labels", "labels.zarr")
    shape = "x".join(map(str, (SIDE, SIDE, 3)))
    streamkm("report", "sweep", "patches.zarr", "--image", shape, "-o", "report.html")

    labels = np.asarray(zarr.open_array(FOLDER / "labels.zarr", mode="r")[:], dtype=np.int32)
    centroids = np.load(FOLDER / run / "centroids.npy")
    draw(FOLDER / "centroids.png", photographs[0], labels, centroids)

    print(f"Done in {time.monotonic() - began:.0f} s. In {FOLDER}:")
    print("  patches.zarr    the data: one patch a row")
    print(f"  sweep/          a run for each number of clusters, such as {run[6:]}/centroids.npy")
    print("  labels.zarr     the cluster of every patch")
    print("  centroids.png   the centroids, and a photograph rebuilt from them")
    print("  report.html     what was found: open this one")


if __name__ == "__main__":
    main()
