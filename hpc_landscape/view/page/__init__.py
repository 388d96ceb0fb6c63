"""The interactive page of a stored landscape: one file that works offline."""
