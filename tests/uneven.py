"""Ranks that believe in nodes of unequal size, on one machine.

``mpirun -n 3 python tests/uneven.py 2+1 [shm:NODE] ARGUMENTS...`` is the program on nodes of two ranks and of one;
on the node of that number there is no room in /dev/shm.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

from hpc_landscape.ranks import comm as comm_module
from hpc_landscape.ranks.comm import MPIComm

NODES = (2, 1)


class UnevenComm(MPIComm):
    """MPI's world as so many ranks on each node."""

    nodes = NODES

    def _split(self) -> Any:
        return self.mpi.Split(color=node_of(self.mpi.Get_rank(), self.nodes))


def node_of(rank: int, nodes: tuple[int, ...] = NODES) -> int:
    """The number of the node that this rank is on."""
    return [node for node, ranks in enumerate(nodes) for _ in range(ranks)][rank]


_allocate = getattr(os, "posix_fallocate", None)  # Linux has it


def no_room(descriptor: int, *where: int) -> None:
    """In the place of posix_fallocate: /dev/shm is full."""
    if not os.readlink(f"/proc/self/fd/{descriptor}").startswith("/dev/shm"):
        return _allocate(descriptor, *where)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def main(words: list[str]) -> int:
    """Play the nodes and their faults, and be the program."""
    from hpc_landscape.cli import main as program

    UnevenComm.nodes = tuple(map(int, words.pop(0).split("+")))
    comm_module.MPIComm = UnevenComm
    if words[0].startswith("shm:"):
        full = int(words.pop(0).removeprefix("shm:"))
        if node_of(comm_module.launched()[1], UnevenComm.nodes) == full:
            os.posix_fallocate = no_room
    return program(words)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
