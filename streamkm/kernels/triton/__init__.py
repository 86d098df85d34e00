"""The kernel for CUDA GPUs, written in Triton."""
