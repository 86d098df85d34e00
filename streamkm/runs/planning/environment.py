"""Describes what may change the last bits of a run's result: its kernel and its environment."""

from __future__ import annotations

import numpy as np
import torch

from streamkm.devices import device_name
from streamkm.kernels import instruction_sets

__all__ = ["describe_kernel", "environment"]


def describe_kernel(asked: str, name: str, precision: str = "exact") -> str:
    """The kernel `name` as the log shows it; `asked` is the value of ``--kernel``."""
    chosen = " (auto)" if asked == "auto" else ""
    instructions = f", {instruction_sets()[0].name}" if name == "cpu" else ""
    warning = "" if precision == "exact" else ", labels as screened (precision fast)"
    return f"kernel {name}{chosen}{instructions}{warning}"


def environment(device: torch.device, kernel: str) -> dict[str, str]:
    """What may change the last bits of a result although every setting is the same."""
    compiled = instruction_sets()
    found = {
        "device": device_name(device),
        "kernel": kernel,
        "instruction set": compiled[0].name if compiled else "none, nothing is compiled",
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    if kernel == "reference":  # Only torch divides sums among its threads.
        found["arithmetic threads"] = str(torch.get_num_threads())
    return found
