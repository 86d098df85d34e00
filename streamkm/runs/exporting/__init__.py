"""What other programs take of a run."""
