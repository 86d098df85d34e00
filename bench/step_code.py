"""Machine code of the kernels of steps, compiled as a step asks Triton for them, without a GPU."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.machine_code import read_resources
from bench.step_model import NoDriver, step_of, without_gpu
from streamkm.kernels.triton import graded, state

if TYPE_CHECKING:
    from bench.machine_code import Resources

__all__ = ["compile_steps"]

#: Rows as stored, features and clusters of the steps whose kernels are compiled.
STEPS = (
    *((torch.float32, d, 1024) for d in (3, 128, 1100)),
    (torch.bfloat16, 128, 20_000), (torch.uint8, 40, 2),
)  # fmt: skip


def compile_steps(capability: int) -> dict[str, Resources]:
    """The kernels of steps beside their assignment, as Triton is asked for them."""
    gpu, found = NoDriver(), {}
    for (stored, d, k), algorithm in product(STEPS, ("minibatch", "lloyd")):
        asked: list[tuple[Any, ...]] = []

        def ask(*wanted: Any, asked: list[tuple[Any, ...]] = asked) -> NoDriver:
            asked.append(wanted)
            return gpu

        with without_gpu(gpu, ask):
            step_of(algorithm, k, d, stored)(1)
        for function, _, signature, _, constants, options, attributes, _ in asked:
            if function.fn.__module__ not in (graded.__name__, state.__name__):
                continue
            name = f"{function.fn.__name__} {stored} k={k} d={d}"
            if name in found:
                continue
            compiled = triton.compile(
                ASTSource(function, signature, constants, attributes),
                target=GPUTarget("cuda", capability, 32), options=vars(options),
            )  # fmt: skip
            used = {function.arg_names[place]: each for (place,), each in constants.items()}
            found[name] = read_resources(
                compiled.asm, compiled.metadata.shared, vars(options), used
            )
    return found
