"""The verbs, each from start to finish: no other package loops over a stream."""
