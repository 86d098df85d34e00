"""Measurements: streamkm beside its peers, on generated data. See `python -m bench --help`."""
