"""How often a run saves: by seconds, or by batches."""

from __future__ import annotations

import re
from dataclasses import dataclass

from streamkm.errors import ConfigError

__all__ = ["Cadence"]


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often to save: after a number of seconds or of batches; one of them is None."""

    seconds: float | None = None
    batches: int | None = None

    def __str__(self) -> str:
        return str(self.batches) if self.seconds is None else f"{self.seconds:g}s"

    def is_due(self, n_batches: int, elapsed_s: float) -> bool:
        """Whether to save, `n_batches` and `elapsed_s` seconds after the last time."""
        if self.batches is not None:
            return n_batches >= self.batches
        assert self.seconds is not None
        return elapsed_s >= self.seconds

    @classmethod
    def parse(cls, text: str) -> Cadence:
        """The cadence in ``60s``, ``5m``, ``1h`` or a number of batches."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)", text.strip())
        if match:
            seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
            if seconds > 0:
                return cls(seconds=seconds)
        elif re.fullmatch(r"\d+", text.strip()) and int(text) > 0:
            return cls(batches=int(text))
        raise ConfigError(
            f"checkpoint-every must be a time such as 60s, 5m, 1h or a number of batches, "
            f"not {text!r}"
        )
