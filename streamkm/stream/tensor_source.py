"""A tensor as a source: on its own device rows are copied there, and never pass through the host.

It is the one source that knows torch, so it is not among the sources, which do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.sources.base import ArraySpec, Described, RowRange, check_dtype, check_shape
from streamkm.sources.layout import check_read
from streamkm.sources.memory import digest_of_rows, spec_in_memory
from streamkm.stream.transfer import as_stored_tensor

if TYPE_CHECKING:
    import numpy as np
    import torch

    from streamkm.sources.base import Source

__all__ = ["TensorSource", "dtype_name", "tensor_on"]


class TensorSource(Described):
    """A tensor of N x D numbers as a source; it is neither moved nor changed.

    Blocks, pieces and fingerprint are those of the same numbers in an array, and so is every
    result.

    Parameters
    ----------
    tensor : torch.Tensor of shape (..., n_features)
        On any device, with any strides. The axes before the last are rows, in C order.

    Raises
    ------
    SourceError
        If the tensor is empty, or holds no real numbers.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._name = f"tensor on {tensor.device}"
        dtype = check_dtype(dtype_name(tensor), self._name)
        shape = check_shape(tuple(tensor.shape), self._name)
        self.tensor = tensor.detach().flatten(0, -2)
        self._spec = spec_in_memory(shape, dtype, f"on {tensor.device}")
        self._closed = False

    @property
    def name(self) -> str:
        """Where the tensor lies, for errors."""
        return self._name

    @property
    def spec(self) -> ArraySpec:
        """Shape, dtype and layout."""
        return self._spec

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Copy `rows` to the host, into `out`; see `Source.read`."""
        check_read(self._name, self._spec, rows, out, closed=self._closed)
        as_stored_tensor(out, self._spec.dtype).copy_(self.tensor[rows.start : rows.stop])

    def fingerprint(self) -> str:
        """Hex digest of shape, dtype and every byte, the same as that of an array."""
        return digest_of_rows(self)

    def notes(self) -> list[str]:
        """Nothing."""
        return []

    def close(self) -> None:
        """Refuse further reads; the tensor stays the caller's."""
        self._closed = True


def dtype_name(tensor: torch.Tensor) -> str:
    """Name of the element type of `tensor`, as NumPy would call it."""
    return str(tensor.dtype).removeprefix("torch.")


def tensor_on(source: Source, device: torch.device) -> torch.Tensor | None:
    """The rows of `source` if they lie on `device`, as a tensor that must not be changed."""
    if isinstance(source, TensorSource) and source.tensor.device == device:
        return source.tensor
    return None
