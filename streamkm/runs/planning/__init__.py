"""What is decided before the first row is read."""
