"""The ranks that compute together, alone or by MPI: what the program asks of them.

Before the first point all ranks move as little as they can: a number, a checksum, what rank 0 alone needs. In an
``allgather`` each of N ranks receives from all, N times N in all: it is for what all of them need.
"""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from ..console import flush
from ..errors import UserError

Value = TypeVar("Value")
LATE = 5.0  # seconds after one that has failed in a step in common: who comes later waits for it there
LEAVE = "leave"  # the message (LEAVE, exit code): whoever receives it ends its process at once


def leave(code: int) -> None:
    """End this process, whatever its main thread does. Not by MPI's abort: under srun its code may become 137."""
    flush()
    os._exit(code)


class Request(Protocol):
    """What has begun: ``Test()`` says whether it is done."""

    def Test(self) -> bool: ...


class Comm(ABC):
    """The ranks that compute together, alone or by MPI; ``mpi`` is what h5py takes, None without MPI."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1
    mpi: Any = None
    library = "none"

    @property
    def is_root(self) -> bool:
        return self.rank == 0

    @abstractmethod
    def barrier(self) -> None:
        """Wait for all ranks."""

    @abstractmethod
    def meet(self, seconds: float) -> bool:
        """Wait, at most so long, for all ranks to call this, and not any other; returns whether they have."""

    @abstractmethod
    def bcast(self, value: Value, root: int = 0) -> Value:
        """That rank's value, on every rank: small things, pickled."""

    @abstractmethod
    def bcast_array(self, array: NDArray[Any]) -> None:
        """Fill every rank's array, C-contiguous and of equal shape and dtype, with rank 0's."""

    @abstractmethod
    def least(self, number: float) -> float:
        """The least of the ranks' numbers, on every rank."""

    @abstractmethod
    def to_root(self, value: Value) -> list[Value]:
        """The value of each rank, on rank 0; on the others nothing."""

    @abstractmethod
    def allgather(self, value: Value) -> list[Value]:
        """The value of each rank, on every rank."""

    @abstractmethod
    def node_allgather(self, value: Value) -> list[Value]:
        """The value of each rank on this node."""

    @abstractmethod
    def split(self, number: int) -> Comm:
        """The ranks that give the same number, in their order; all ranks call it."""

    @abstractmethod
    def isend(self, value: object, rank: int) -> Request:
        """Begin to send; the result's ``Test()`` says when it has gone."""

    @abstractmethod
    def received(self) -> list[tuple[int, Any]]:
        """What has arrived, as (sender, value); does not wait."""

    @abstractmethod
    def leave_if_told(self, seconds: float) -> None:
        """Wait so long; where another rank aborts meanwhile, end this process with its exit code."""

    @abstractmethod
    def abort(self, code: int) -> None:
        """End every rank, now, with this exit code."""

    @contextmanager
    def raise_on_all_ranks(self, any_error: bool = False, in_step: bool = False) -> Iterator[None]:
        """Run a step that any rank may refuse: a UserError on one rank is raised on all, after every rank has come.

        The step itself must not communicate: another rank may not arrive at its communication. any_error: the same for
        every other exception, which the other ranks raise as a RuntimeError; without it the caller has to end them.
        in_step: the step does communicate: where some wait in it for a rank that has failed, that one raises alone.
        """
        fault: Exception | None = None
        arrived = True
        try:
            yield
        except UserError as error:
            fault = UserError(str(error))
            raise
        except BaseException as error:
            fault, arrived = RuntimeError(f"on rank {self.rank}: {type(error).__name__}: {error}"), any_error
            raise
        finally:
            if arrived and in_step:
                arrived = self.meet(math.inf if fault is None else LATE)
            if arrived and (culprit := self.first_rank(fault is not None)) is not None:
                found = self.bcast(fault, culprit)
                if found is not None and not (fault is not None and any_error):
                    raise found

    def from_root(self, function: Callable[[], Value], any_error: bool = False, everywhere: bool = False) -> Value:
        """What the function gives on rank 0, for every rank; what it raises there as in ``raise_on_all_ranks``.

        everywhere: whether all ranks call it, since it is what they can do together only.
        """
        found: list[Value] = []
        with self.raise_on_all_ranks(any_error, in_step=everywhere):
            if self.is_root or everywhere:
                found.append(function())
        return self.bcast(found if self.is_root else [])[0]

    def check_equal(self, value: object, message: str) -> None:
        """UserError with the message, on all ranks, where another one has another value.

        The value is told by its repr, and that by a checksum, which each rank compares with rank 0's.
        """
        checksum = hashlib.sha256(repr(value).encode(errors="backslashreplace")).digest()
        if (other := self.first_rank(checksum != self.bcast(checksum))) is not None:
            raise UserError(f"{message} (rank {other} has another than rank 0)")

    def most(self, number: float) -> float:
        """The largest of the ranks' numbers, on every rank."""
        return -self.least(-number)

    def first_rank(self, here: bool) -> int | None:
        """The first rank on which it is so, told on every rank; None where it is so on none."""
        found = self.least(self.rank if here else math.inf)
        return None if found == math.inf else int(found)

    def on_all(self, here: bool) -> bool:
        """Whether it is so on every rank."""
        return self.first_rank(not here) is None

    def first_text(self, text: str) -> str:
        """That of the first rank which has any, on every rank."""
        rank = self.first_rank(bool(text))
        return "" if rank is None else self.bcast(text, rank)


class SerialComm(Comm):
    """One process, no MPI."""

    def barrier(self) -> None:
        pass

    def meet(self, seconds: float) -> bool:
        return True

    def bcast(self, value: Value, root: int = 0) -> Value:
        return value

    def bcast_array(self, array: NDArray[Any]) -> None:
        pass

    def least(self, number: float) -> float:
        return number

    def to_root(self, value: Value) -> list[Value]:
        return [value]

    def allgather(self, value: Value) -> list[Value]:
        return [value]

    def node_allgather(self, value: Value) -> list[Value]:
        return [value]

    def split(self, number: int) -> Comm:
        return self

    def isend(self, value: object, rank: int) -> Request:
        raise ValueError(f"there is no rank {rank} to send to")

    def received(self) -> list[tuple[int, Any]]:
        return []

    def leave_if_told(self, seconds: float) -> None:
        pass

    def abort(self, code: int) -> None:
        leave(code)
