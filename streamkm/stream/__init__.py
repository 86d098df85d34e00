"""Rows on their way from a source to the device; knows nothing of k-means."""
