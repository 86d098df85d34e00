"""k-means itself: states, updates, seeding, scaling. Knows tensors and no files."""
