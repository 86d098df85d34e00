"""Dry runs: report what a command would do and need, and write nothing."""
