"""Plans and checks that are made before the first row is read."""
