"""The stream of rows from a source to the device; knows nothing of k-means."""
