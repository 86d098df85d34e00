"""Where the arithmetic happens."""

from __future__ import annotations

import torch

from streamkm.errors import DeviceError, Option
from streamkm.kernels.extension import instruction_sets

__all__ = ["describe_kernel", "environment", "resolve_device"]


def resolve_device(name: str) -> torch.device:
    """The device that ``--device`` asks for; an explicit one exists or raises."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(
                Option("device", name),
                f": torch {torch.__version__} sees no CUDA GPU; use ",
                Option("device", "cpu"),
                ", or check the driver (nvidia-smi) and torch's build",
            )
        n_gpus = torch.cuda.device_count()
        index = device.index or 0
        if index >= n_gpus:
            there_are = f": there are {n_gpus} GPUs, counted from 0"
            raise DeviceError(Option("device", name), there_are)
        device = torch.device("cuda", index)
    return device


def describe_kernel(asked: str, name: str, precision: str = "exact") -> str:
    """What the log says of the kernel `name`, for which ``--kernel`` said `asked`."""
    chosen = " (auto)" if asked == "auto" else ""
    warning = "" if precision == "exact" else ", labels as screened (precision fast)"
    return f"kernel {name}{chosen}{warning}"


def environment(device: torch.device, kernel: str) -> dict[str, str]:
    """What may change the last bits of a result without any setting having changed."""
    import numpy as np

    compiled = instruction_sets()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": where,
        "kernel": kernel,
        "instruction set": compiled[0].name if compiled else "none, nothing is compiled",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "arithmetic threads": str(torch.get_num_threads()),
    }
