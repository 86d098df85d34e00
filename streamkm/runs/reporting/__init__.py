"""What a run says while it works: progress, signals, refusals."""
