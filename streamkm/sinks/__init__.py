"""Where labels and distances go."""

from streamkm.sinks.base import Sink
from streamkm.sinks.registry import open_sink

__all__ = ["Sink", "open_sink"]
