"""Where rows come from, and where labels go."""

from streamkm.sources.base import DTYPES, ArraySpec, RowRange, Source, check_dtype, check_shape
from streamkm.sources.registry import open_source
from streamkm.sources.sink import Sink
from streamkm.sources.sinks import open_sink
from streamkm.sources.weights import Weights, open_weights

__all__ = [
    "DTYPES",
    "ArraySpec",
    "RowRange",
    "Sink",
    "Source",
    "Weights",
    "check_dtype",
    "check_shape",
    "open_sink",
    "open_source",
    "open_weights",
]
