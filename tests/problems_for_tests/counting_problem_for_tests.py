"""The tiny problem in a process that logs each call of fsync, with the file it was for."""

from __future__ import annotations

import os

from tiny_problem_for_tests import Watch, tiny

from hpc_landscape import Problem
from hpc_landscape.store import writer


def counting(log: str, every: float, delay: float = 0.25) -> Problem:
    """every: seconds between two calls of fsync, in place of the program's own."""
    watch = Watch(log, "", 0, "", 0, "", 0)
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        fsync(descriptor)
        watch.log("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))

    os.fsync = counted
    writer.SYNC_EVERY = every
    return tiny(log=log, delay=delay)
