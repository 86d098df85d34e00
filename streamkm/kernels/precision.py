"""Keeps float32 matrix products in full precision, which the bounds on rounding assume."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["full_precision"]


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products in float32, whatever ``set_float32_matmul_precision`` allows.

    A program that embeds this package may allow tf32 or bfloat16 for its networks. With
    these the screen would call rows certain that are not. The setting is restored afterwards.
    """
    mkldnn = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # has no types
    backends = (torch.backends.cuda.matmul, mkldnn)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
