"""The kernel for CUDA GPUs, written in Triton."""

from streamkm.kernels.triton.kernel import TritonKernel

__all__ = ["TritonKernel"]
