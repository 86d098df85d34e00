"""A run from start to finish: the only place with loops over a stream."""
