"""Ways to find the first centroids, on a sample or on candidates."""
