"""Messages between a run and its user: progress, signals, out of memory, bad rows."""
