"""The ranks that evaluate one point together."""

from __future__ import annotations

import pickle
from typing import Any

from .base import Comm, SerialComm

CHUNK = 2**26  # bytes that each rank gives at a time


class Elsewhere(Exception):
    """A rank of the team has failed at the points in hand. faults: what those say that have."""

    def __init__(self, faults: list[Any]):
        super().__init__(*faults)
        self.faults = faults


class Team:
    """Ranks that are at the same points, in step: each says what it has found, or that it has failed.

    number: of the team, of so many (count).
    """

    def __init__(self, comm: Comm, number: int = 0, count: int = 1):
        self.comm, self.number, self.count = comm, number, count
        self.rank, self.size = comm.rank, comm.size

    @property
    def leads(self) -> bool:
        """Whether this rank says which points, and brings what they gave to the file."""
        return self.rank == 0

    def of_first(self, mine: Any) -> Any:
        """What the first rank gives here, on all ranks of the team."""
        return self.comm.bcast(mine)

    def exchange(self, mine: Any) -> list[Any]:
        """What each rank of the team gives here; Elsewhere, on all of them, where one has failed instead."""
        found = self._all(("found", mine))
        if faults := [what for how, what in found if how == "failed"]:
            raise Elsewhere(faults)
        return [what for _, what in found]

    def fail(self, fault: Any) -> list[Any]:
        """Let the others know, where they exchange next, that this rank has failed; returns the faults of all."""
        return [what for how, what in self._all(("failed", fault)) if how == "failed"]

    def _all(self, mine: tuple[str, Any]) -> list[tuple[str, Any]]:
        """The same of every rank, in parts that MPI can count."""
        if self.size == 1:
            return [mine]
        data = pickle.dumps(mine, protocol=5)
        parts = [self.comm.allgather((len(data), data[:CHUNK]))]
        for start in range(CHUNK, max(length for length, _ in parts[0]), CHUNK):
            parts.append(self.comm.allgather((0, data[start : start + CHUNK])))
        return [pickle.loads(b"".join(part[rank][1] for part in parts)) for rank in range(self.size)]


ALONE = Team(SerialComm())
