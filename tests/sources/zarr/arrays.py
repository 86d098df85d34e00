"""Zarr arrays on disk, of every codec that is decoded in place."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ShardingCodec, ZstdCodec

from streamkm.sources import open_source

V2: dict[str, Any] = {
    "uncompressed": None,
    "blosc": numcodecs.Blosc("lz4"),
    "blosc, bits shuffled": numcodecs.Blosc("zstd", shuffle=numcodecs.Blosc.BITSHUFFLE),
    "zstd": numcodecs.Zstd(),
    "zstd with a checksum": numcodecs.Zstd(checksum=True),
    "lz4": numcodecs.LZ4(),
    "gzip": numcodecs.GZip(),
    "zlib": numcodecs.Zlib(),
}
V3: dict[str, Any] = {
    "uncompressed": None,
    "blosc": BloscCodec(cname="lz4"),
    "blosc, not compressible": BloscCodec(cname="zstd", shuffle="noshuffle", clevel=0),
    "zstd": ZstdCodec(),
    "gzip": GzipCodec(),
    "numcodecs.lz4": {"name": "numcodecs.lz4", "configuration": {}},
    "numcodecs.zlib": {"name": "numcodecs.zlib", "configuration": {}},
}
CODECS: list[tuple[Literal[2, 3], str]] = [*((2, name) for name in V2), *((3, name) for name in V3)]


def store_array(
    path: Path, version: Literal[2, 3], codec: str, data: np.ndarray, **options: Any
) -> zarr.Array[Any]:
    with warnings.catch_warnings():
        # That numcodecs' codecs are no part of the specification of v3.
        warnings.simplefilter("ignore")
        stored = zarr.create_array(
            path,
            shape=data.shape,
            dtype=data.dtype,
            zarr_format=version,
            overwrite=True,
            **{"compressors": (V2 if version == 2 else V3)[codec], **options},
        )
        stored[...] = data
    return stored


def sharding(
    shard: tuple[int, ...], chunk: tuple[int, ...], codec: str, **options: Any
) -> dict[str, Any]:
    """Options of an array with shards, also of kinds that `shards=` cannot express."""
    codecs = [BytesCodec(), *([V3[codec]] if V3[codec] else [])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        serializer = ShardingCodec(chunk_shape=chunk, **{"codecs": codecs, **options})
    return {"chunks": shard, "serializer": serializer, "compressors": None}


def opened(path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = open_source(path)
    assert source.spec.layout.endswith(", decoded in place")
    return source


def chunk_files(path: Path) -> list[Path]:
    metadata = {"zarr.json", ".zarray", ".zattrs"}
    return sorted(p for p in path.rglob("*") if p.is_file() and p.name not in metadata)
