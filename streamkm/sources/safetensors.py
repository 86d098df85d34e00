"""Reads tensors of ``.safetensors`` files by position.

The header is JSON that gives type, shape and offsets of each tensor, so that rows are read like
those of any flat file, bfloat16 among them. The package safetensors is not needed.
"""

from __future__ import annotations

import json
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamkm.errors import SourceError
from streamkm.sources.base import DTYPES, RowRange, check_shape
from streamkm.sources.flat import FlatSource
from streamkm.sources.members import chosen_member
from streamkm.sources.rowfile import row_file

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.sources.rowfile import ByteFile, Stored

__all__ = ["open_safetensors"]

#: Element types that can be clustered, by their names in the header.
ELEMENTS = {
    "BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
}  # fmt: skip
#: Bytes of a header, at most: the limit of the format itself.
MAX_HEADER_BYTES = 100_000_000
#: Bytes before the header: its length.
_LENGTH_BYTES = 8


class _Tensor(NamedTuple):
    """A tensor as the header describes it."""

    element: str
    shape: tuple[int, ...]
    start: int
    stop: int


def open_safetensors(
    path: Path | Stored, *, dataset: str | None = None, keep_open: bool = True
) -> FlatSource:
    """Open a tensor of two or more dimensions.

    Parameters
    ----------
    path : Path or Stored
        The file.
    dataset : str, optional
        Name of the tensor, such as ``embed.weight``; by default the only one of numbers in two or
        more dimensions.
    keep_open : bool
        See `RowFile`.

    Returns
    -------
    FlatSource

    Raises
    ------
    SourceError
        If it is no such file, is truncated, or holds no such tensor.
    """
    file = row_file(path, keep_open=keep_open)
    try:
        tensors, base = _tensors(file)
        numbers = {name: each.shape for name, each in tensors.items() if each.element in ELEMENTS}
        name = chosen_member(path, numbers, dataset)
        tensor = tensors[name]
        n_rows, n_features = check_shape(tensor.shape, f"{path}: {name}")
        dtype = ELEMENTS[tensor.element]
        expected = prod(tensor.shape) * DTYPES[dtype].itemsize
        if tensor.stop - tensor.start != expected:
            raise SourceError(
                f"{path}: {name}: the header gives {tensor.stop - tensor.start} bytes to a tensor "
                f"of {expected}; the file is damaged"
            )
        if base + tensor.stop > file.size:
            raise SourceError(
                f"{path}: truncated: {name} ends at byte {base + tensor.stop}, the file has "
                f"{file.size}; copy or write it again"
            )
        return FlatSource(
            file,
            n_rows=n_rows,
            n_features=n_features,
            dtype=dtype,
            offset=base + tensor.start,
            swapped=not np.dtype("<u4").isnative,
            kind=f"safetensors {name}",
        )
    except SourceError:
        file.close()
        raise


def _tensors(file: ByteFile) -> tuple[dict[str, _Tensor], int]:
    """The tensors by name, and the offset that theirs count from."""
    try:
        length = int.from_bytes(_bytes(file, 0, _LENGTH_BYTES), "little")
        if length > min(MAX_HEADER_BYTES, file.size - _LENGTH_BYTES):
            raise ValueError(f"its header would take {length} bytes")
        header = json.loads(_bytes(file, _LENGTH_BYTES, length))
        if not isinstance(header, dict):
            raise TypeError("its header is no JSON object")
        found = {name: _tensor(about) for name, about in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f"{file.path}: is no readable .safetensors file: {error}; copy or write it again"
        ) from error
    return found, _LENGTH_BYTES + length


def _tensor(about: dict[str, Any]) -> _Tensor:
    shape, (start, stop) = about["shape"], about["data_offsets"]
    numbers = [*shape, start, stop]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"a shape or an offset is no count: {numbers}")
    return _Tensor(str(about["dtype"]), tuple(shape), start, stop)


def _bytes(file: ByteFile, offset: int, size: int) -> bytes:
    out = np.empty(size, np.uint8)
    file.read_into(out, offset, RowRange(0, 0))
    return out.tobytes()
