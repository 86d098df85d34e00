"""The Triton kernels: interpreted, compiled for GPUs that are not here, and on one that is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from streamkm.kernels import Rows
from tests.kernels.contract import KernelContract, MakeKernel, normal, sq_norms

if TYPE_CHECKING:
    from bench.triton_aot import Resources

pytest.importorskip("triton", reason="Triton is not installed: it exists for Linux only")

ROOT = Path(__file__).parents[3]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def interpreter_runs() -> bool:
    """Triton's interpreter before 3.7 makes numbers of arrays, which NumPy 2.4 refuses."""
    import triton

    versions = [tuple(map(int, m.__version__.split(".")[:2])) for m in (triton, np)]
    return versions[0] >= (3, 7) or versions[1] < (2, 4)


# In a process of its own: the interpreter is chosen when triton is imported.
@pytest.mark.skipif(
    not interpreter_runs(), reason="this Triton interprets nothing beside this NumPy"
)
@pytest.mark.parametrize("file", ["interpreted.py", "interpreted_step.py"])
def test_interpreted_kernels_keep_the_contract(file: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header",
         f"tests/kernels/triton/{file}"],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


@dataclass(frozen=True)
class Problem:
    """What a kernel is compiled for."""

    capability: int
    dtype: str
    d: int
    k: int
    spherical: bool = False

    def __str__(self) -> str:
        return f"sm_{self.capability}, {self.dtype}, d={self.d}, k={self.k}"


def assert_no_spills(resources: Resources) -> None:
    assert not resources.leaves_registers, resources


# Breaks when a change of the device code, or another Triton, costs registers or instructions.
@pytest.mark.parametrize(
    "on",
    [Problem(80, "bf16", d=128, k=20_000), Problem(90, "bf16", d=128, k=20_000),
     Problem(80, "fp32", d=100, k=20_000), Problem(90, "fp32", d=256, k=20_000),
     Problem(80, "fp64", d=64, k=20_000), Problem(90, "u8", d=1, k=300)],
    ids=str,
)  # fmt: skip
def test_screening_compiles_without_spills(on: Problem) -> None:
    from bench.triton_aot import Case, compile_case

    resources = compile_case(Case("screen_kernel", on.dtype, on.d, k=on.k), on.capability)
    assert_no_spills(resources)
    # wgmma on Hopper.
    assert resources.matrix_instruction == {80: "HMMA", 90: "HGMMA"}[on.capability]
    assert resources.epilogue_per_score <= 4
    # Copies go on while the loop waits for the one that it needs, by the PTX.
    assert resources.copies_in_flight >= 1
    # What a multiprocessor of an A100 and of an H100 has for one program.
    assert resources.shared_bytes <= {80: 163, 90: 227}[on.capability] * 1024


# Breaks when what finds the two nearest is given too few registers, as 8 warps are on 8.0.
@pytest.mark.parametrize("capability", [80, 90])
def test_screening_for_two_compiles_without_spills(capability: int) -> None:
    from bench.triton_aot import Case, compile_case

    assert_no_spills(compile_case(Case("screen_kernel", "u8", 256, second=True), capability))


def test_screening_takes_three_instructions_a_score() -> None:
    from bench.triton_aot import Case, compile_case

    assert compile_case(Case("screen_kernel", "bf16", 128), 90).epilogue_per_score <= 3
    epilogue = compile_case(Case("screen_kernel", "bf16", 128, "fast"), 90).epilogue
    assert sum(epilogue.values()) <= 3
    # Of the four scores of a group one minimum each, and one tile number for all.
    assert (epilogue["FMNMX"], epilogue["LOP3"]) == (1.0, 0.25)


# Few features and a row of one compile too: both are constants to the compiler. Lengths that are
# no multiple of 16 are loaded number by number, and take the most registers.
@pytest.mark.parametrize(
    "on",
    [Problem(80, "fp32", d=100, k=16, spherical=True), Problem(80, "fp32", d=40, k=256),
     Problem(80, "fp32", d=100, k=256, spherical=True), Problem(80, "fp32", d=128, k=256),
     Problem(90, "fp32", d=100, k=256, spherical=True), Problem(90, "fp32", d=128, k=256),
     Problem(90, "u8", d=1, k=1)],
    ids=str,
)  # fmt: skip
def test_one_read_compiles_without_spills(on: Problem) -> None:
    from bench.triton_aot import Case, compile_case

    case = Case("one_read_kernel", on.dtype, on.d, k=on.k, spherical=on.spherical)
    resources = compile_case(case, on.capability)
    assert_no_spills(resources)
    assert {80: "HMMA", 90: "HGMMA"}[on.capability] in resources.matrix_instruction
    # Two programs fit a multiprocessor.
    assert resources.shared_bytes <= {80: 81, 90: 113}[on.capability] * 1024


# Breaks when a thread is given more centroids and sums than it has registers for.
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "k", "d"), [("fp32", 16, 5), ("u8", 4, 16), ("fp32", 2, 1)])
def test_rows_in_lanes_compile_without_spills(capability: int, dtype: str, k: int, d: int) -> None:
    from bench.triton_aot import Case, compile_case

    case = Case("lanes_kernel", dtype, d, k=k, weighted=True, spherical=True)
    assert_no_spills(compile_case(case, capability))


# A tenth of what tiles for tensor cores take, which have 16 features at least.
def test_rows_in_lanes_take_few_instructions() -> None:
    from bench.triton_aot import Case, compile_case

    per_score = compile_case(Case("lanes_kernel", "fp32", 3, k=16), 90).loop_instructions_per_score
    assert per_score <= 45


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    "name",
    ["measure_kernel", "round_kernel", "settle_kernel", "add_chunks_kernel", "join_kernel",
     "add_spans_kernel", "round_rows_kernel"],
)  # fmt: skip
def test_other_kernels_compile_without_spills(capability: int, name: str) -> None:
    from bench.triton_aot import Case, compile_case

    assert_no_spills(compile_case(Case(name, "fp32", 128), capability))


# Breaks when the published figures say that a default spills, or waits for every copy, or are of
# other defaults than these; or that a kernel of a step spills.
def test_no_published_default_spills_or_waits_for_all() -> None:
    from bench.triton_aot import CASES, DEFAULTS

    newest = max((ROOT / "bench" / "results").glob("*-triton-aot.json"))
    by_version = json.loads(newest.read_text())["triton"]
    assert "3.6.0" in by_version  # what GPU machines have
    for version, by_capability in by_version.items():
        found = by_capability["sm_90"]["defaults"]
        assert found["spill_or_use_local_memory"] == found["wait_for_all"] == [], version
        names = set(by_capability["sm_90"]["kernels"])
        assert set(map(str, DEFAULTS)) <= names
        assert found["compiled"] == len(DEFAULTS)
        assert by_capability["sm_90"]["steps_spill"] == [], version
        assert names <= set(map(str, [*DEFAULTS, *CASES]))


# ---- on a GPU ---------------------------------------------------------------


@pytest.mark.gpu
@needs_gpu
class TestTritonOnCuda(KernelContract):
    @pytest.fixture
    def make(self) -> MakeKernel:
        from streamkm.kernels.triton.kernel import TritonKernel

        return TritonKernel

    @pytest.fixture
    def device(self) -> torch.device:
        return torch.device("cuda")


def cuda(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return normal(*shape, dtype=dtype, device=torch.device("cuda"))


# Breaks when labels are only nearly right at sizes where the interpreter is too slow.
@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("k", "d"), [(20_000, 64), (20_000, 128), (4096, 256), (1000, 768)])
def test_labels_are_float64_s_at_full_size(dtype: torch.dtype, k: int, d: int) -> None:
    from streamkm.kernels.triton.kernel import TritonKernel

    x_BD = torch.nn.functional.normalize(cuda(5000, d)).to(dtype)
    c_KD = torch.nn.functional.normalize(cuda(k, d))
    kernel = TritonKernel(len(x_BD), k, torch.float32, x_BD.device)
    labels_B, _ = kernel.assign(x_BD, sq_norms(x_BD), c_KD)
    exact_BK = torch.cdist(
        x_BD.double(), c_KD.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    least_B, truth_B = exact_BK.min(dim=1)
    wrong_B = labels_B != truth_B
    chosen_B = exact_BK.gather(1, labels_B[:, None]).squeeze(1)
    assert ((chosen_B - least_B)[wrong_B] < 1e-12).all()
    assert int(wrong_B.sum()) <= 1
    # From 9.7 to 10.2 % of these are in doubt, by the bound: the worst of the shapes.
    assert int(kernel.n_rechecked) < 0.15 * len(x_BD)


# Breaks with any order of execution that shows in the bits.
@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("k", "d"), [(16, 3), (3, 32), (3, 128), (64, 64), (256, 128), (1000, 64), (20_000, 17)]
)
def test_a_hundred_runs_give_the_same_bits(k: int, d: int) -> None:
    from streamkm.kernels.triton.kernel import TritonKernel

    x_BD, c_KD = cuda(100_000, d), cuda(k, d)
    kernel = TritonKernel(len(x_BD), k, torch.float32, x_BD.device)

    def once() -> tuple[torch.Tensor, ...]:
        labels_B, sq_distances_B = kernel.assign(x_BD, sq_norms(x_BD), c_KD)
        sums_KD = torch.zeros((k + 1, d), device="cuda")
        counts_K = torch.zeros(k + 1, dtype=torch.int64, device="cuda")
        rows = Rows(x_BD, sq_norms(x_BD))
        kernel.step(rows, c_KD, sums_KD=sums_KD, counts_K=counts_K)
        return labels_B, sq_distances_B, sums_KD, counts_K

    first = once()
    assert int(first[3].sum()) == len(x_BD)
    for _ in range(99):
        assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


# Breaks when a layout that a tile brings along shows in the bits.
@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("d", [40, 128, 300])
def test_tiles_decide_no_bits(d: int) -> None:
    from streamkm.kernels.triton.kernel import TritonKernel
    from streamkm.kernels.triton.tiles import tiles

    x_BD, c_KD = cuda(3000, d), cuda(5000, d)
    results = []
    major, _ = torch.cuda.get_device_capability()
    for tile in tiles(d, torch.float32, major):
        kernel = TritonKernel(3000, 5000, torch.float32, x_BD.device, tile=tile)
        results.append(kernel.assign(x_BD, sq_norms(x_BD), c_KD))
    for labels_B, sq_distances_B in results[1:]:
        assert torch.equal(labels_B, results[0].labels_B)
        assert torch.equal(sq_distances_B, results[0].sq_distances_B)


# Breaks when tuning does not run, or what it found is not found again.
@pytest.mark.gpu
@needs_gpu
def test_tuning_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamkm.kernels.triton.kernel import TritonKernel
    from streamkm.kernels.triton.tuning import FOLDER, LEAST_TUNED_K

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    x_BD, c_KD = cuda(2000, 64), cuda(LEAST_TUNED_K, 64)
    chosen = []
    for _ in range(2):
        kernel = TritonKernel(2000, LEAST_TUNED_K, torch.float32, x_BD.device, tune=True)
        kernel.assign(x_BD, sq_norms(x_BD), c_KD)
        chosen.append(kernel._tile)
    assert chosen[0] == chosen[1]
    assert len(list((tmp_path / FOLDER).iterdir())) == 1


# Breaks when an address is worked out in 32 bits.
@pytest.mark.gpu
@needs_gpu
def test_more_than_two_to_the_31_elements() -> None:
    from streamkm.kernels.triton.kernel import TritonKernel

    n_rows, d = 2**31 // 64 + 1000, 64
    if torch.cuda.get_device_properties(0).total_memory < 16 * n_rows * 8:
        pytest.skip("needs 4 GiB of rows in the GPU's memory")
    x_BD = torch.zeros((n_rows, d), dtype=torch.uint8, device="cuda")
    x_BD[-500:] = 200
    c_KD = torch.tensor([[0.0], [201.0]], device="cuda").expand(2, d).contiguous()
    kernel = TritonKernel(n_rows, 2, torch.float32, x_BD.device)
    labels_B, sq_distances_B = kernel.assign(x_BD, torch.empty(0, device="cuda"), c_KD)
    assert int(labels_B.sum()) == 500
    assert (labels_B[-500:] == 1).all()
    assert (sq_distances_B[-500:] == d).all()
    sums_KD = torch.zeros((3, d), device="cuda")
    counts_K = torch.zeros(3, dtype=torch.int64, device="cuda")
    rows = Rows(x_BD, torch.empty(0, device="cuda"))
    kernel.step(rows, c_KD, sums_KD=sums_KD, counts_K=counts_K)
    assert counts_K[:2].tolist() == [n_rows - 500, 500]
    assert (sums_KD[1] == 500 * 200).all()


# Breaks when something in the step asks the device and waits: a full queue must not matter.
@pytest.mark.gpu
@needs_gpu
def test_a_step_never_waits_for_the_device() -> None:
    from streamkm.kernels.triton.kernel import TritonKernel

    x_BD, c_KD = cuda(4096, 32), cuda(100, 32)
    kernel = TritonKernel(4096, 100, torch.float32, x_BD.device)
    sums_KD, counts_K = torch.zeros_like(c_KD), torch.zeros(100, dtype=torch.int64, device="cuda")

    few = TritonKernel(4096, 20, torch.float32, x_BD.device)
    rows = Rows(x_BD, sq_norms(x_BD))

    def step() -> None:
        labels_B, _ = kernel.assign(x_BD, rows.sq_norms_B, c_KD)
        kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)
        few.step(rows, c_KD[:20], sums_KD=sums_KD[:21], counts_K=counts_K[:21])

    step()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Breaks when the number of rows is a constant of the compiled code.
@pytest.mark.gpu
@needs_gpu
def test_another_batch_length_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    from streamkm.kernels.triton.kernel import TritonKernel

    x_BD, c_KD = cuda(4096, 32), cuda(99, 32)
    kernel = TritonKernel(4096, 99, torch.float32, x_BD.device)
    kernel.assign(x_BD, sq_norms(x_BD), c_KD)
    compiled: list[str] = []
    hook = lambda **about: compiled.append(about["repr"])  # noqa: E731
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", hook)
    for b in (1, 2, 16, 1000, 1024, 4095):
        kernel.assign(x_BD[:b], sq_norms(x_BD[:b]), c_KD)
    other = TritonKernel(4096, 64, torch.float32, x_BD.device)
    other.assign(x_BD, sq_norms(x_BD), c_KD[:64])
    assert compiled == []
