"""Arithmetic beside the kernels: by the compiled extension if there is one, else by torch."""
