"""How the ranks are put together, so that several evaluate a point."""

from __future__ import annotations

from typing import Literal

from ..data.batches import LoaderBatches
from ..data.sets import Sets
from ..ranks.comm import Comm, SerialComm
from ..ranks.team import Team


def number_of_teams(
    asked: int | Literal["auto"], points: int, ranks: int, batches: int | None = None
) -> tuple[int, str]:
    """How many teams there are, and where that is not what was asked for, what there is instead.

    asked: ranks that evaluate a point together; auto: one, but where there are fewer points than ranks, all of them.
    batches: of the larger set, where that is known: a rank of a team has one at least.
    """
    most = ranks if batches is None else max(1, min(ranks, batches))  # in a team
    least = -(-ranks // most)
    if asked == "auto":
        return max(least, min(points, ranks)), ""
    count = max(1, ranks // asked)
    if count < least:
        return least, f"--ranks_per_point {asked}: there are {batches} batches, and a rank has one at least"
    return count, f"--ranks_per_point {asked}: {ranks} ranks are no multiple of it" if ranks % asked else ""


def describe_teams(count: int, ranks: int) -> str:
    """So many teams in words."""
    sizes = sorted({ranks // count, -(-ranks // count)})
    return f"{count} of {' or '.join(map(str, sizes))} ranks, which evaluate a point together"


def known_batches(sets: Sets) -> int | None:
    """Of the set that has most; None where one is a stream that tells only when it is read."""
    every = [*sets.evaluation.values(), *([sets.warmup] if sets.warmup is not None else [])]
    if any(batches.streamed and not isinstance(batches, LoaderBatches) for batches in every):
        return None
    return max((batches.count() for batches in every), default=None)


def team_of(comm: Comm, count: int) -> Team:
    """This rank's, of so many of neighbouring ranks, of equal size but for one; all ranks call it."""
    number = comm.rank * count // comm.size
    return Team(SerialComm() if count == comm.size else comm.split(number), number, count)
