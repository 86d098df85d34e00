"""Files that a run leaves on disk: written, checked and read back."""
