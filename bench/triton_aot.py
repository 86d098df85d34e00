"""Compile the Triton kernels without a GPU: python -m bench.triton_aot OUT.json

Every kernel of `CASES` is compiled for compute capability 8.0 and 9.0. Registers, spills
and the instructions of the screening loop are read from the machine code. A time is
predicted from the loop; it is no measurement. Of `DEFAULTS`, which stand for all that a run
may launch, the file also says which spill and which screen without copying ahead. So it does of
the kernels of steps, which are compiled as a step asks for them.

The file has a section for each version of Triton: run this with each, as
``python -m bench.triton_aot bench/results/DATE-triton-aot.json 90 80``. What the file has already
is not compiled again: a run that was interrupted goes on, and after a change begin another file.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.machine_code import Resources, read_resources
from bench.step_code import compile_steps
from streamkm.kernels.triton import (
    assign,
    lanes,
    narrow,
    one_read,
    settle,
    update,
)
from streamkm.kernels.triton.kernel import (
    CHUNK,
    N_LISTED,
    OPTIONS,
    STEP_D,
)
from streamkm.kernels.triton.tiles import (
    LANES_OPTIONS,
    MAX_LANE_NUMBERS,
    NARROW_BLOCKS,
    NARROW_OPTIONS,
    SETTLE_OPTIONS,
    STREAMED_D,
    Tile,
    can_round,
    default_tile,
    fits_lanes,
    is_resident,
    lanes_blocks,
    one_read_blocks,
    one_read_options,
    padded_features,
    power_of_two,
    tiles,
    two_tile,
)

__all__ = ["CASES", "DEFAULTS", "Case", "Resources", "compile_case"]

#: Dtype of a pointer by the argument's name, where it is not that of the rows or centroids.
POINTERS = {
    "x16_ptr": "fp16", "c16_ptr": "fp16", "x_about_ptr": "fp32", "about_ptr": "fp32",
    "c_sq_ptr": "fp32", "labels_ptr": "i64", "queue_ptr": "i32", "count_ptr": "i32",
    "crowd_ptr": "i32", "order_ptr": "i64", "counts_ptr": "i64", "left_out_ptr": "u8",
    "shares_ptr": "fp32",
    "rechecked_ptr": "i64", "span_sums_ptr": "fp32", "span_counts_ptr": "i32",
}  # fmt: skip
MODULES = (assign, lanes, narrow, one_read, settle, update)
STORED = {
    "fp32": torch.float32, "fp64": torch.float64, "fp16": torch.float16, "bf16": torch.bfloat16,
    "u8": torch.uint8, "i8": torch.int8,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One kernel, as it is launched for rows of `dtype` with `n_features` features."""

    kernel: str
    dtype: str
    n_features: int
    precision: str = "exact"
    k: int = 20_000
    tile: Tile | None = None
    """A tile other than the default."""
    second: bool = False
    """Whether the second nearest is sought too."""
    weighted: bool = False
    spherical: bool = False

    def __str__(self) -> str:
        tile = f" {self.tile}" if self.tile else ""
        marks = [name for name in ("second", "weighted", "spherical") if getattr(self, name)]
        return " ".join(
            [self.kernel, self.dtype, f"k={self.k}", f"d={self.n_features}", self.precision, *marks]
        ) + tile  # fmt: skip


CASES = [
    *(
        Case("screen_kernel", dtype, d)
        for dtype, d in [("bf16", 64), ("bf16", 128), ("bf16", 256), ("bf16", 768), ("fp32", 100),
                         ("fp32", 128), ("fp32", 256), ("fp32", 768), ("u8", 128), ("fp64", 64),
                         ("fp64", 256)]
    ),
    Case("screen_kernel", "bf16", 128, "fast"),
    Case("screen_kernel", "bf16", 128, k=1024),
    *(Case("screen_kernel", "bf16", 128, tile=tile)
      for tile in tiles(128, torch.float32, 9)[1:]),
    *(Case("one_read_kernel", "fp32", d, k=k)
      for k, d in ((16, 128), (64, 16), (64, 64), (128, 32), (256, 3), (256, 16),
                   (256, 64), (256, 100), (256, 128))),
    *(Case("lanes_kernel", "fp32", d, k=k) for k, d in ((16, 3), (4, 16), (8, 8), (41, 1))),
    Case("lanes_kernel", "u8", 3, k=16),
    *(Case("one_read_kernel", dtype, 128, k=256) for dtype in ("bf16", "u8")),
    Case("one_read_kernel", "fp32", 128, "fast", k=256),
    Case("add_spans_kernel", "fp32", 64, k=64),
    *(Case(name, "fp32", 128)
      for name in ("measure_kernel", "round_kernel", "settle_kernel", "narrow_kernel")),
    Case("round_rows_kernel", "fp32", 768),
    *(Case(name, "fp32", 128) for name in ("add_chunks_kernel", "join_kernel")),
]  # fmt: skip


#: Every way to cut the work that is a default, for every kind of length: one, below 16, on and off
#: multiples of 16, more than a tile holds. Dtypes that are widened alike stand for one another.
DEFAULTS = [
    *(
        Case("screen_kernel", dtype, d, k=k)
        for dtype, lengths in (
            ("fp32", (1, 3, 16, 40, 64, 128, 256, 257, 768)),
            ("bf16", (1, 40, 64, 128, 256, 768)),
            ("fp64", (40, 64, 256)),
            ("u8", (40,)),
        )
        for d in lengths
        for k in (300, 20_000)
    ),
    *(Case("screen_kernel", dtype, d, k=2, second=True) for dtype in ("fp32", "u8")
      for d in (40, 256)),
    *(
        Case("one_read_kernel", "fp32", d, k=k)
        for k in (64, 256)
        for d in (1, 3, 16, 17, 32, 40, 64, 100, 128)
        if not fits_lanes(k, d)
    ),
    *(
        Case("one_read_kernel", dtype, d, k=256, weighted=weighted, spherical=True)
        for dtype, weighted in (("fp32", True), ("fp32", False), ("bf16", False), ("u8", False))
        for d in (40, 128)
    ),
    *(
        # With the most centroids that fit.
        Case("lanes_kernel", dtype, d, weighted=weighted, spherical=weighted,
             k=max(k for k in range(1, MAX_LANE_NUMBERS) if fits_lanes(k, d)))
        for dtype, lengths, weighted in (
            ("fp32", (1, 3, 5, 8, 12, 16), True), ("bf16", (7, 12), True), ("u8", (3,), False),
        )
        for d in lengths
    ),
    *(
        Case(name, dtype, d, k=k, second=k == 2)
        for name, ks, dtypes, lengths in (
            ("settle_kernel", (2, 20_000), ("fp32", "u8"), (40, 128)),
            ("narrow_kernel", (300,), ("fp32", "fp64", "u8"), (40, 768)),
            ("round_rows_kernel", (300,), ("fp32", "u8"), (40, 768)),
            ("add_chunks_kernel", (300,), ("fp32", "fp64"), (128,)),
            ("join_kernel", (300,), ("fp32", "fp64"), (128,)),
        )
        for k in ks
        for dtype in dtypes
        for d in lengths
    ),
    *(Case(name, dtype, 128) for name in ("measure_kernel", "round_kernel")
      for dtype in ("fp32", "fp64")),
    *(Case("add_spans_kernel", "fp32", d, k=k) for k, d in ((1, 1), (256, 100))),
]  # fmt: skip


def compile_case(case: Case, capability: int) -> Resources:
    """Compile as `streamkm.kernels.triton.kernel` would launch it, and read the machine code."""
    function = next(
        getattr(module, case.kernel) for module in MODULES if hasattr(module, case.kernel)
    )
    constants, options = launch_constants(case, capability)
    if case.n_features == 1:
        constants |= {"n_features": 1, "stride": 1}  # Triton makes a constant of every 1
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    signature = {
        name: "constexpr" if name in constants else argument_type(name, case)
        for name in function.arg_names
    }
    # As at run time: pointers, and the lengths of padded rows, are multiples of 16.
    lengths = ["padded_d"] + (["stride", "n_features"] if case.n_features % 16 == 0 else [])
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(function.arg_names)
        if signature[name].startswith("*") or name in lengths
    }
    source = ASTSource(function, signature, constants, aligned)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={**options, **OPTIONS}
    )
    return read_resources(compiled.asm, compiled.metadata.shared, options, constants)


def launch_constants(case: Case, capability: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Constants and options of a launch; each kernel takes the constants that it knows."""
    dtype = torch.float64 if case.dtype == "fp64" else torch.float32
    padded_d = padded_features(case.n_features)
    tile = case.tile or (
        two_tile(capability // 10)
        if case.second
        else default_tile(case.n_features, case.k, dtype, capability // 10)
    )
    stays = is_resident(case.n_features)
    rounds = tile.rounds and can_round(case.n_features, dtype)
    constants = {
        "BLOCK_M": tile.rows, "BLOCK_N": tile.centroids, "FOLD": tile.fold,
        "KEPT_N": tile.centroids // tile.fold, "BLOCK_D": padded_d if stays else STREAMED_D,
        "PADDED_D": padded_d,
        "BLOCK_K": 16, "BLOCK_C": 16, "STEP_D": STEP_D[dtype], "N_LISTED": N_LISTED, "CHUNK": CHUNK,
        "WIDE": tl.float64 if case.dtype == "fp64" else tl.float32, "RESIDENT": stays,
        "ROUNDED": not rounds,
        "EXACT": case.precision == "exact", "SECOND": case.second,
    }  # fmt: skip
    if case.kernel == "one_read_kernel":
        return one_read_constants(case, capability // 10)
    if case.kernel == "lanes_kernel":
        return {**lanes_blocks(case.k, case.n_features), **step_flags(case)}, LANES_OPTIONS
    if case.kernel == "add_spans_kernel":
        return {"BLOCK_S": 16, "BLOCK_E": 128}, {"num_warps": 4}
    if case.kernel == "screen_kernel":
        return constants, {"num_warps": tile.warps, "num_stages": tile.stages}
    if case.kernel == "narrow_kernel":
        return {**constants, **NARROW_BLOCKS}, NARROW_OPTIONS
    if case.kernel == "settle_kernel":
        return constants | {"BLOCK_D": 32}, SETTLE_OPTIONS
    if case.kernel == "round_rows_kernel":
        constants["BLOCK_M"] = 16
    if case.kernel in ("measure_kernel", "round_kernel"):
        constants["BLOCK_D"] = min(padded_d, 64)
    if case.kernel in ("add_chunks_kernel", "join_kernel"):
        constants["BLOCK_D"] = min(triton.next_power_of_2(case.n_features), 128)
        return constants, {"num_warps": 1}
    return constants, {"num_warps": 4}


def one_read_constants(case: Case, major: int) -> tuple[dict[str, Any], dict[str, int]]:
    block_k, padded_d = power_of_two(case.k), power_of_two(case.n_features)
    blocks: dict[str, Any] = {**one_read_blocks(block_k, padded_d, major)}
    is_stored = case.dtype != "fp32" and not case.weighted
    term = tl.float16 if is_stored and case.dtype == "fp16" else tl.bfloat16
    constants = blocks | {
        "TERM": term, "FACTOR": term,
        "N_TERMS": 1 if is_stored else 3, **step_flags(case),
    }  # fmt: skip
    return constants, one_read_options(case.n_features)


def step_flags(case: Case) -> dict[str, bool]:
    return {
        "HAS_SHARES": case.weighted, "HAS_LEFT_OUT": True, "ZEROS_FIRST": case.spherical,
        "EXACT": case.precision == "exact",
    }  # fmt: skip


def argument_type(name: str, case: Case) -> str:
    if name == "labels_ptr" and case.kernel in ("add_chunks_kernel", "join_kernel"):
        return "*i16"
    if name == "counts_ptr" and case.kernel in ("one_read_kernel", "lanes_kernel"):
        return "*i32"
    if name == "pack_eps":
        return "fp32"
    if not name.endswith("_ptr"):
        return "i32"
    wide = "fp64" if case.dtype == "fp64" else "fp32"
    return "*" + (case.dtype if name == "x_ptr" else POINTERS.get(name, wide))


# ---- prediction -------------------------------------------------------------

#: Multiprocessors of an H200 SXM, by NVIDIA's documents, and what each does in a cycle: float16
#: multiply-adds; lane operations of the pipe for minima, maxima and logic; instructions issued,
#: in lanes; bytes of shared memory.
PROCESSORS, MATRIX_RATE, ALU_RATE, ISSUE_RATE, SHARED_RATE = 132, 2048, 64, 128, 128
#: Cycles a second at which 790 TFLOP/s, a measured rate of bfloat16, are 0.8 of the peak.
CLOCK_HZ, MEASURED_MATRIX_FLOPS = 1.83e9, 790e12
#: Bytes a second from the L2 cache to all multiprocessors together, as published for an H100; bytes
#: a cycle to one that asks alone, and cycles until they come. None was measured on an H200.
L2_RATE, L2_PORT, L2_LATENCY = 5.5e12, 64, 400
ALU = ("FMNMX", "LOP3", "SEL", "FSEL", "FSETP")


@dataclass(frozen=True)
class Loop:
    """What `predict` has to know of a screening loop, for one tile of scores."""

    rows: int
    centroids: int
    padded_d: int
    instructions_per_score: float
    alu_per_score: float
    copies_ahead: bool
    products_ahead: bool
    """Whether the product of a tile runs while the tile before is looked through."""
    reloads_rows: bool = False
    rows_in_registers: bool = False
    fold: int = 4


def predict(loop: Loop, n_features: int, k: int = 20_000) -> dict[str, float | str]:
    """Share of the measured matrix rate, the time, and the cycles of a tile part by part."""
    scores = loop.rows * loop.centroids
    per_cycle = PROCESSORS * CLOCK_HZ
    # The matrix product by itself reaches no more than cuBLAS does.
    ceiling = MEASURED_MATRIX_FLOPS / (2 * MATRIX_RATE * per_cycle)
    copied = 2 * loop.padded_d * (loop.centroids + (loop.rows if loop.reloads_rows else 0))
    # A warpgroup multiplies 64 rows by 16 features at a time, and reads both factors each time.
    steps = loop.rows // 64 * loop.padded_d // 16
    factors = 32 * (loop.centroids + (0 if loop.rows_in_registers else 64))
    parts = {
        "product": scores * loop.padded_d / MATRIX_RATE / ceiling,
        "issue": scores * loop.instructions_per_score / ISSUE_RATE,
        "minima": scores * loop.alu_per_score / ALU_RATE,
        "shared_memory": (steps * factors + copied) / SHARED_RATE,
        "l2": copied / (L2_RATE / per_cycle),
    }
    looking = max(parts["issue"], parts["minima"])
    multiplying = max(parts["product"], parts["shared_memory"])
    cycles = max(multiplying, looking) if loop.products_ahead else multiplying + looking
    if not loop.copies_ahead:
        cycles += copied / L2_PORT + L2_LATENCY
    cycles = max(cycles, parts["l2"])
    # At the end the members of a row's best group are compared, each read by that row alone.
    parts["end"] = 4 * loop.fold * loop.rows * n_features / (L2_RATE / per_cycle)
    cycles += parts["end"] / (k / loop.centroids)
    share = 2 * scores * n_features / cycles * per_cycle / MEASURED_MATRIX_FLOPS
    seconds = 2 * 2**18 * k * n_features / MEASURED_MATRIX_FLOPS / share
    slowest = max(("product", "issue", "minima", "shared_memory", "l2"), key=parts.__getitem__)
    rounded = {f"{name}_cycles": float(round(n)) for name, n in parts.items()}
    return {"share": round(share, 2), "of_2^18_rows_s": round(seconds, 5), "slowest": slowest,
            **rounded}  # fmt: skip


def loop_of(case: Case, resources: Resources) -> Loop:
    """The screening loop that `case` compiled to."""
    constants, _ = launch_constants(case, 90)
    return Loop(
        constants["BLOCK_M"], constants["BLOCK_N"], constants["PADDED_D"],
        resources.loop_instructions_per_score,
        sum(resources.epilogue.get(name, 0) for name in ALU),
        copies_ahead=resources.copies_in_flight > 0, products_ahead=constants["RESIDENT"],
        reloads_rows=not constants["RESIDENT"], rows_in_registers=not constants["ROUNDED"],
        fold=constants["FOLD"],
    )  # fmt: skip


#: The loops before three stages, products ahead and constant addresses, by the machine code of
#: Triton 3.6.0.
BEFORE = {
    d: Loop(128, n, d, per_score, 1.75, copies_ahead=False, products_ahead=False)
    for d, n, per_score in ((64, 128, 4.56), (128, 128, 5.41), (256, 128, 7.0))
}


def main() -> None:
    """Add what this Triton compiles to the file, after each kernel."""
    path, capabilities = Path(sys.argv[1]), tuple(map(int, sys.argv[2:])) or (90, 80)
    whole: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    whole |= {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "measured_on_a_gpu": False,
        "note": "No GPU was at hand. Registers, spills and instructions are read from machine "
        "code; 'predicted' is arithmetic on them and on published rates, not a measurement.",
    }
    versions = whole.setdefault("triton", {}).setdefault(triton.__version__, {})
    for capability in capabilities:
        report: dict[str, Any] = versions.setdefault(
            f"sm_{capability}", {"kernels": {}, "predicted": {}, "defaults": {}}
        )
        report["predicted_before"] = {f"d={d}": predict(loop, d) for d, loop in BEFORE.items()}
        kernels: dict[str, Any] = report["kernels"]
        for case in dict.fromkeys([*DEFAULTS, *CASES]):
            if str(case) in kernels:
                continue
            resources = compile_case(case, capability)
            print(f"sm_{capability} {case}: {resources}", flush=True)
            kernels[str(case)] = asdict(resources)
            if _is_predicted(case, capability):
                loop = loop_of(case, resources)
                report["predicted"][str(case)] = predict(loop, case.n_features)
            report["defaults"] = _summary(kernels)
            path.write_text(json.dumps(whole, indent=1) + "\n")
        steps = compile_steps(capability)
        report["steps"] = {name: asdict(resources) for name, resources in steps.items()}
        report["steps_spill"] = [name for name, each in steps.items() if each.leaves_registers]
        path.write_text(json.dumps(whole, indent=1) + "\n")


def _is_predicted(case: Case, capability: int) -> bool:
    is_screen = case.kernel == "screen_kernel" and case.dtype == "bf16"
    return is_screen and case.k == 20_000 and capability == 90


def _summary(kernels: dict[str, Any]) -> dict[str, Any]:
    """Of the defaults: how many are compiled, which spill, which screen without copying ahead."""
    found = {case: Resources(**kernels[str(case)]) for case in DEFAULTS if str(case) in kernels}
    return {
        "compiled": len(found),
        "of": len(DEFAULTS),
        "spill_or_use_local_memory": [
            str(case) for case, resources in found.items() if resources.leaves_registers
        ],
        "wait_for_all": [
            str(case) for case, resources in found.items()
            if case.kernel == "screen_kernel" and resources.copies_in_flight < 1
        ],
    }  # fmt: skip


if __name__ == "__main__":
    main()
