"""Which kernel a run uses, and what else may change the last bits of its result."""

from __future__ import annotations

import numpy as np
import torch

from streamkm.devices import device_name
from streamkm.kernels import instruction_sets

__all__ = ["describe_kernel", "environment"]


def describe_kernel(asked: str, name: str, precision: str = "exact") -> str:
    """What the log says of the kernel `name`, for which ``--kernel`` said `asked`."""
    chosen = " (auto)" if asked == "auto" else ""
    warning = "" if precision == "exact" else ", labels as screened (precision fast)"
    return f"kernel {name}{chosen}{warning}"


def environment(device: torch.device, kernel: str) -> dict[str, str]:
    """What may change the last bits of a result without any setting having changed."""
    compiled = instruction_sets()
    return {
        "device": device_name(device),
        "kernel": kernel,
        "instruction set": compiled[0].name if compiled else "none, nothing is compiled",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "arithmetic threads": str(torch.get_num_threads()),
    }
