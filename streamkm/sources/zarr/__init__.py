"""Zarr arrays, formats 2 and 3, on disk and behind addresses."""
