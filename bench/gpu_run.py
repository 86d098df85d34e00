"""One part of scripts/gpu: where it runs, its sizes, its clock, its results."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import triton

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ROOT", "Run", "write_results"]

ROOT = Path(__file__).parents[1]


@dataclass
class Run:
    """One part, where it runs, and the results so far."""

    part: str
    device: torch.device
    results: dict[str, Any]
    out: Path
    data: Path
    """Folder for arrays."""

    @property
    def is_rehearsal(self) -> bool:
        return self.device.type == "cpu"

    @property
    def major(self) -> int:
        """First number of the compute capability; Hopper's in a rehearsal."""
        return 9 if self.is_rehearsal else torch.cuda.get_device_capability()[0]

    def add(self, row: dict[str, Any]) -> None:
        """Write one of the part's results at once: the part may be killed before its end."""
        self.results.setdefault(self.part, []).append(row)
        write_results(self.out, self.results)

    def size(self, full: int, toy: int) -> int:
        return toy if self.is_rehearsal else full

    def ceiling(self, name: str) -> float:
        """What the card was measured to do; NaN if that failed."""
        found = self.results.get("ceilings", {}).get(name)
        return found if isinstance(found, float) else float("nan")

    def seconds(self, action: Callable[[], object]) -> float:
        """Median seconds of `action` on the device."""
        if self.is_rehearsal:
            start = time.perf_counter()
            action()
            return time.perf_counter() - start
        milliseconds: float = triton.testing.do_bench(
            action, warmup=20, rep=100, return_mode="median"
        )
        return milliseconds / 1e3

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(sum(shape))
        values = torch.randn(shape, generator=generator, device=self.device)
        return values.to(dtype)

    def unit(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.nn.functional.normalize(self.normal(*shape)).to(dtype)


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Write the file whole or not at all: a part may be killed while it writes."""
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(out)
