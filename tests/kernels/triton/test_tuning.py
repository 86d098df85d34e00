"""The choice of tiles and where it is kept, without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: it exists for Linux only")

from triton.runtime.errors import OutOfResources, PTXASError

from streamkm.kernels.triton.tiles import Tile, default_tile, tiles
from streamkm.kernels.triton.tuning import (
    FOLDER,
    cache_folder,
    fastest,
    key_of,
    seconds_of,
    tuned_tile,
)

D, K, DTYPE = 128, 20_000, torch.float32
TILES = tiles(D, DTYPE, 9)


class Timer:
    """Says that the tile of index `quick` is the fastest, and how often it was asked."""

    def __init__(self, quick: int) -> None:
        self.quick, self.n_asked = quick, 0

    def __call__(self, tile: Tile) -> float | None:
        self.n_asked += 1
        # The first needs more than this GPU has.
        return None if tile == TILES[0] else 2.0 - (tile == TILES[self.quick])


def tuned(folder: Path | None, timer: Timer) -> Tile:
    return tuned_tile(folder, "key.json", TILES, timer)


def test_the_fastest_is_chosen_once_and_remembered(tmp_path: Path) -> None:
    first, again = Timer(3), Timer(4)
    assert tuned(tmp_path / "new", first) == TILES[3]
    assert first.n_asked == len(TILES)
    assert tuned(tmp_path / "new", again) == TILES[3]
    assert again.n_asked == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["key.json"]


def test_where_no_tile_runs_the_default_stays() -> None:
    assert fastest(TILES, lambda tile: None) is None
    assert tuned_tile(None, "", TILES, lambda tile: None) == default_tile(D, K, DTYPE, 9)


# Breaks when anything in a file is believed, beyond which of the tiles it names.
@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[]", b"3", b'"Tile()"', b"\xff\xfe\x00", b"[" * 4000, b"{}" * 9000,
        b'{"rows": 128}', b'{"__class__": "os.system", "args": ["true"]}',
        json.dumps({"rows": 3, "centroids": -1, "fold": 0, "warps": 1 << 40, "stages": 2}).encode(),
        json.dumps({"rows": 128, "centroids": 64, "fold": 2, "warps": 8, "stages": 3,
                    "rounds": False, "more": 1}).encode(),
        json.dumps({"rows": 128.0, "centroids": 64, "fold": 2, "warps": 8, "stages": 3}).encode(),
    ],
    ids=range(14),
)  # fmt: skip
def test_damaged_and_hostile_files_are_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key.json").write_bytes(content)
    assert tuned(tmp_path, Timer(2)) == TILES[2]
    assert tuned(tmp_path, Timer(4)) == TILES[2]


# Permissions do not stop root; these stop everybody.
def test_a_folder_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert tuned(tmp_path / "file" / "below", Timer(2)) == TILES[2]
    (tmp_path / "key.json").mkdir()
    (tmp_path / "key.json" / "full").write_text("")
    assert tuned(tmp_path, Timer(2)) == TILES[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "key.json"]


def test_the_folder_is_xdg_s() -> None:
    assert cache_folder({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c") / FOLDER
    for base in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}):
        assert cache_folder({**base, "HOME": "/h"}) == Path("/h/.cache") / FOLDER
    assert cache_folder({}) is None


# Breaks when what one GPU, dtype or size of problem found fastest is taken for another.
def test_another_gpu_or_problem_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    card = {"name": "A GPU 80GB/x", "capability": (8, 0), "processors": 108}
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: card["name"])
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: card["capability"])
    monkeypatch.setattr(
        "torch.cuda.get_device_properties",
        lambda device: SimpleNamespace(multi_processor_count=card["processors"]),
    )
    device = torch.device("cuda", 0)

    def key(rows: torch.dtype = DTYPE, d: int = D, k: int = K, wide: torch.dtype = DTYPE) -> str:
        return key_of(device, rows, d, k, wide)

    keys = [key(), key(torch.bfloat16), key(d=D + 1), key(k=2 * K), key(wide=torch.float64)]
    card["capability"] = (9, 0)
    keys.append(key())
    card["name"] = "another"
    keys.append(key())
    card["processors"] = 16
    keys.append(key())
    assert len(set(keys)) == len(keys)
    # Sizes in buckets: for a few rows or centroids more nothing is timed again.
    assert key(d=D - 1, k=K + 1) == key()
    assert all(Path(name).name == name for name in keys)


# Breaks when a tile that the assembler or the driver refuses ends the run that tries it.
@pytest.mark.parametrize(
    "error",
    [PTXASError("ptxas: register allocation failed"), OutOfResources(300_000, 232_448, "shared"),
     RuntimeError("Triton Error [CUDA]: invalid argument")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_a_tile_that_fails_is_passed_over(error: Exception) -> None:
    def fail() -> None:
        raise error

    assert seconds_of(fail) is None
