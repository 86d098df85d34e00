"""Compile the Triton kernels without a GPU: python -m bench.triton_aot OUT.json

Every kernel of `CASES` is compiled for compute capability 8.0 and 9.0. Registers, spills
and the instructions of the screening loop are read from the machine code. A time is
predicted from the loop; it is no measurement. Of `DEFAULTS`, which stand for all that a run
may launch, the file says only which spill.
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
from streamkm.kernels.triton import assign, lanes, one_read, settle, update
from streamkm.kernels.triton.kernel import (
    CHUNK,
    N_LISTED,
    OPTIONS,
    STEP_D,
)
from streamkm.kernels.triton.tiles import (
    LANES_OPTIONS,
    MAX_LANE_NUMBERS,
    SETTLE_OPTIONS,
    Tile,
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
    "order_ptr": "i64", "counts_ptr": "i64", "left_out_ptr": "u8", "shares_ptr": "fp32",
    "rechecked_ptr": "i64", "span_sums_ptr": "fp32", "span_counts_ptr": "i32",
}  # fmt: skip
MODULES = (assign, lanes, one_read, settle, update)
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
      for tile in tiles(128, torch.float32, torch.bfloat16, 9)[1:]),
    *(Case("one_read_kernel", "fp32", d, k=k)
      for k, d in ((16, 128), (64, 16), (64, 64), (128, 32), (256, 3), (256, 16),
                   (256, 64), (256, 100), (256, 128))),
    *(Case("lanes_kernel", "fp32", d, k=k) for k, d in ((16, 3), (4, 16), (8, 8), (41, 1))),
    Case("lanes_kernel", "u8", 3, k=16),
    *(Case("one_read_kernel", dtype, 128, k=256) for dtype in ("bf16", "u8")),
    Case("one_read_kernel", "fp32", 128, "fast", k=256),
    Case("add_spans_kernel", "fp32", 64, k=64),
    *(Case(name, "fp32", 128) for name in ("measure_kernel", "round_kernel", "settle_kernel")),
    Case("round_rows_kernel", "fp32", 768),
    *(Case(name, "fp32", 128) for name in ("add_chunks_kernel", "join_kernel")),
]  # fmt: skip


#: Every way to cut the work that is a default, for every dtype and every kind of length: one,
#: below 16, on and off multiples of 16, more than a tile holds.
DEFAULTS = [
    *(
        Case("screen_kernel", dtype, d, k=k, second=k == 2)
        for dtype in STORED
        for d in (1, 3, 16, 40, 64, 128, 256, 257, 768)
        for k in (2, 300, 20_000)
    ),
    *(
        Case("one_read_kernel", "fp32", d, k=k)
        for k in (16, 32, 64, 128, 256)
        for d in (1, 3, 16, 17, 40, 64, 100, 128)
        if not fits_lanes(k, d)
    ),
    *(
        # With the most centroids that fit.
        Case("lanes_kernel", dtype, d, weighted=weighted, spherical=weighted,
             k=max(k for k in range(1, MAX_LANE_NUMBERS) if fits_lanes(k, d)))
        for dtype in ("fp32", "fp16", "bf16", "u8", "i8")
        for d in range(1, 17)
        for weighted in (False, True)
    ),
    *(
        Case("one_read_kernel", "fp32", d, k=k, weighted=weighted, spherical=True)
        for k in (16, 256)
        for d in (40, 100, 128)
        for weighted in (False, True)
    ),
    *(
        Case("one_read_kernel", dtype, d, k=k)
        for dtype in ("fp16", "bf16", "u8", "i8")
        for k in (16, 256)
        for d in (3, 40, 100, 128)
        if not fits_lanes(k, d)
    ),
    *(
        Case(name, dtype, d, k=k, second=k == 2)
        for name, ks in (
            ("settle_kernel", (2, 300, 20_000)), ("round_rows_kernel", (300,)),
            ("add_chunks_kernel", (300,)), ("join_kernel", (300,)),
        )
        for k in ks
        for dtype in STORED
        for d in (1, 3, 40, 128, 768)
    ),
    *(
        Case(name, dtype, d)
        for name in ("measure_kernel", "round_kernel")
        for dtype in ("fp32", "fp64")
        for d in (1, 3, 40, 128, 768)
    ),
    *(Case("add_spans_kernel", "fp32", d, k=k) for k, d in ((1, 1), (256, 128), (256, 100))),
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
    return read_resources(compiled.asm["cubin"], compiled.metadata.shared, options, constants)


def launch_constants(case: Case, capability: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Constants and options of a launch; each kernel takes the constants that it knows."""
    dtype = torch.float64 if case.dtype == "fp64" else torch.float32
    padded_d = padded_features(case.n_features, dtype, STORED[case.dtype])
    tile = case.tile or (
        two_tile(capability // 10)
        if case.second
        else default_tile(case.n_features, case.k, dtype, STORED[case.dtype], capability // 10)
    )
    stays = is_resident(case.n_features, dtype, STORED[case.dtype])
    constants = {
        "BLOCK_M": tile.rows, "BLOCK_N": tile.centroids, "FOLD": tile.fold,
        "KEPT_N": tile.centroids // tile.fold, "BLOCK_D": padded_d if stays else 64,
        "BLOCK_K": 16, "BLOCK_C": 16, "STEP_D": STEP_D[dtype], "N_LISTED": N_LISTED, "CHUNK": CHUNK,
        "WIDE": tl.float64 if case.dtype == "fp64" else tl.float32, "RESIDENT": stays,
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
    constants = blocks | {
        "TERM": tl.float16 if is_stored and case.dtype == "fp16" else tl.bfloat16,
        "N_TERMS": 1 if is_stored else 3, **step_flags(case),
    }  # fmt: skip
    return constants, one_read_options(padded_d)


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
#: multiply-adds; lane operations of the pipe for minima, maxima and logic.
PROCESSORS, MATRIX_RATE, ALU_RATE = 132, 2048, 64
#: Cycles a second at which 790 TFLOP/s, a measured rate of bfloat16, are 0.8 of the peak.
CLOCK_HZ, MEASURED_MATRIX_FLOPS = 1.83e9, 790e12


def predict(n_features: int, alu_per_score: float) -> dict[str, float]:
    """Shares of the measured matrix rate, and times, if the loop's parts take turns or overlap."""
    padded_d = padded_features(n_features, torch.float32, torch.bfloat16)
    matrix = padded_d / MATRIX_RATE
    epilogue = alu_per_score / ALU_RATE
    useful = 2 * n_features * PROCESSORS * CLOCK_HZ / MEASURED_MATRIX_FLOPS
    # The matrix product by itself reaches no more than cuBLAS does.
    ceiling = MEASURED_MATRIX_FLOPS / (2 * MATRIX_RATE * PROCESSORS * CLOCK_HZ)
    shares = {
        "in_turn": round(useful / (matrix / ceiling + epilogue), 2),
        "overlapped": round(useful / max(matrix / ceiling, epilogue), 2),
    }
    # Of 2^18 rows against 20,000 centroids, as scripts/gpu times them.
    seconds = 2 * 2**18 * 20_000 * n_features / MEASURED_MATRIX_FLOPS
    times = {f"{name}_s": round(seconds / share, 5) for name, share in shares.items()}
    return shares | times


def main() -> None:
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "triton": triton.__version__,
        "measured_on_a_gpu": False,
        "note": "No GPU was at hand. Registers, spills and instructions are read from machine "
        "code; 'predicted' is arithmetic on them and on published rates, not a measurement.",
        "kernels": {},
        "defaults": {"compiled": 0, "spill_or_use_local_memory": []},
    }
    for capability in (80, 90):
        for case in CASES:
            resources = compile_case(case, capability)
            print(f"sm_{capability} {case}: {resources}")
            report["kernels"][f"sm_{capability} {case}"] = asdict(resources)
        for case in DEFAULTS:
            resources = compile_case(case, capability)
            report["defaults"]["compiled"] += 1
            if resources.leaves_registers:
                print(f"sm_{capability} {case}: {resources}")
                report["defaults"]["spill_or_use_local_memory"].append(f"sm_{capability} {case}")
    alu = ("FMNMX", "LOP3", "SEL", "FSEL", "FSETP")
    report["predicted"] = {
        str(case): predict(
            case.n_features,
            sum(report["kernels"][f"sm_90 {case}"]["epilogue"].get(name, 0) for name in alu),
        )
        for case in CASES
        if case.kernel == "screen_kernel" and case.dtype == "bf16" and case.k == 20_000
    }
    Path(sys.argv[1]).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
