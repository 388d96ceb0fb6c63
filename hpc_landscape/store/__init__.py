"""The file, and who writes it."""
