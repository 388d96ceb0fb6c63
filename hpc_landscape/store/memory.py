"""Finished points in memory: the writer of a computation whose values nobody stores, and the oracle for the others."""

from __future__ import annotations

from typing import Any


class MemoryWriter:
    """Takes what the other writers take, values of any kind; ``values`` holds them by the point's flat index."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}

    def put(self, point: int, wall_time: float, values: Any, failed: bool = False) -> None:
        """Take a finished point."""
        self.values[point] = values
