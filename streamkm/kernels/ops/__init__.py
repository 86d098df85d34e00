"""Arithmetic beside the kernels: compiled where there is an extension, else torch."""
