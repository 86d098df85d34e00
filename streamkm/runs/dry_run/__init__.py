"""What a command would do and need; nothing is written."""
