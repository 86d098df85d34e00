"""Lays out tensors as a safetensors file, without a copy on the way to the disk.

safetensors' own ``save`` makes up to three copies of all tensors in memory, and ``save_file``
writes past `streamkm.files`. The format is simple: the length of a JSON header in eight bytes,
the header, the tensors one after the other. Reading is left to the library.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["tensor_file"]

#: The format's names of the dtypes that states and models hold.
_NAMES = {"float32": "F32", "float64": "F64", "int64": "I64", "int32": "I32", "bool": "BOOL"}


def tensor_file(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> list[bytes | memoryview]:
    """The parts of a file, in order; the same tensors always give the same parts.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        Contiguous arrays of any shape, of a dtype in `_NAMES`. Not copied.
    metadata : mapping of str to str, optional
        Text that the header holds beside the tensors' names.
    """
    # Wide dtypes first, so that each tensor is aligned, as the format asks.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        array = tensors[name]
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = [tensors[name].reshape(-1).view(np.uint8).data for name in names]
    return [len(text).to_bytes(8, "little"), text, *data]
