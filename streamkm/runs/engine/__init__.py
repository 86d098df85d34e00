"""The loops of a run: scale, seed, train, close, and label."""
