"""The Triton kernels: interpreted, compiled for GPUs that are not here, and on one that is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.contract import KernelContract, MakeKernel, normal, sq_norms

pytest.importorskip("triton", reason="Triton is not installed: it exists for Linux only")

ROOT = Path(__file__).parents[2]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


# In a process of its own: the interpreter is chosen when triton is imported.
def test_interpreted_kernels_keep_the_contract() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header",
         "tests/kernels/triton_interpreted.py"],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


# Breaks when a change of the device code, or another Triton, costs registers or instructions.
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "d"), [("bf16", 64), ("bf16", 128), ("bf16", 256), ("fp32", 768)]
)
def test_screening_compiles_without_spills(capability: int, dtype: str, d: int) -> None:
    from bench.triton_aot import Case, compile_case

    resources = compile_case(Case("screen_kernel", dtype, d), capability)
    assert (resources.spills, resources.stack_bytes, resources.local_bytes) == (0, 0, 0)
    # wgmma on Hopper.
    assert resources.matrix_instruction == {80: "HMMA", 90: "HGMMA"}[capability]
    assert resources.epilogue_per_score < 5.25
    # What a multiprocessor of an A100 and of an H100 has for one program.
    assert resources.shared_bytes <= {80: 163, 90: 227}[capability] * 1024


@pytest.mark.parametrize("capability", [80, 90])
def test_fast_screening_takes_three_instructions_a_score(capability: int) -> None:
    from bench.triton_aot import Case, compile_case

    assert compile_case(Case("screen_kernel", "bf16", 128, "fast"), capability).epilogue == {
        "FMNMX": 1.0, "FFMA": 1.0, "LOP3": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["measure_kernel", "round_kernel", "add_chunks_kernel", "join_kernel"]
)
def test_other_kernels_compile_without_spills(name: str) -> None:
    from bench.triton_aot import Case, compile_case

    resources = compile_case(Case(name, "fp32", 128), 90)
    assert (resources.spills, resources.stack_bytes, resources.local_bytes) == (0, 0, 0)


# ---- on a GPU ---------------------------------------------------------------


@pytest.mark.gpu
@needs_gpu
class TestTritonOnCuda(KernelContract):
    @pytest.fixture
    def make(self) -> MakeKernel:
        from streamkm.kernels.triton import TritonKernel

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
    from streamkm.kernels.triton import TritonKernel

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
    assert int(kernel.n_rechecked) < 0.1 * len(x_BD)


# Breaks with any order of execution that shows in the bits.
@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("k", "d"), [(3, 128), (1000, 64), (20_000, 17)])
def test_a_hundred_runs_give_the_same_bits(k: int, d: int) -> None:
    from streamkm.kernels.triton import TritonKernel

    x_BD, c_KD = cuda(100_000, d), cuda(k, d)
    kernel = TritonKernel(len(x_BD), k, torch.float32, x_BD.device)

    def once() -> tuple[torch.Tensor, ...]:
        labels_B, sq_distances_B = kernel.assign(x_BD, sq_norms(x_BD), c_KD)
        sums_KD, counts_K = torch.zeros_like(c_KD), torch.zeros(k, dtype=torch.int64, device="cuda")
        kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)
        return labels_B, sq_distances_B, sums_KD, counts_K

    first = once()
    assert int(first[3].sum()) == len(x_BD)
    for _ in range(99):
        assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


# Breaks when an address is worked out in 32 bits.
@pytest.mark.gpu
@needs_gpu
def test_more_than_two_to_the_31_elements() -> None:
    from streamkm.kernels.triton import TritonKernel

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


# Breaks when something in the step asks the device and waits: a full queue must not matter.
@pytest.mark.gpu
@needs_gpu
def test_a_step_never_waits_for_the_device() -> None:
    from streamkm.kernels.triton import TritonKernel

    x_BD, c_KD = cuda(4096, 32), cuda(100, 32)
    kernel = TritonKernel(4096, 100, torch.float32, x_BD.device)
    sums_KD, counts_K = torch.zeros_like(c_KD), torch.zeros(100, dtype=torch.int64, device="cuda")

    def step() -> None:
        labels_B, _ = kernel.assign(x_BD, sq_norms(x_BD), c_KD)
        kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)

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

    from streamkm.kernels.triton import TritonKernel

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
