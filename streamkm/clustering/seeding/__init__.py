"""Finds the first centroids, on a sample of the rows or on candidates from all of them."""
