"""Ranks: the only file that imports mpi4py. A communicator is passed as an argument, never fetched from a global.

A rank that waits polls with short sleeps: a blocked MPI call spins, and takes the core that another rank works on.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..console import flush, notice
from ..errors import UserError
from .base import LEAVE, Comm, Request, SerialComm, Value, leave
from .launcher import HYDRA, Told, check_launcher, families, launched

_MATCH = "; use the mpirun of that MPI, or srun --mpi=pmix, or build mpi4py with this one"
CHUNK = 2**30  # bytes per broadcast: MPI counts are 32-bit in many installations
TURN = 5.0  # seconds that a call waits for another thread's, where MPI takes one at a time: then it is stuck
NOTICED = 0.3  # seconds in which a rank that looks for messages has seen one


def world(need_mpi: bool = False) -> Comm:
    """All ranks of this job: MPI's world where a launcher started several, else a single process without MPI.

    Raises UserError where the launcher and MPI disagree: each process would believe itself alone.
    """
    check_launcher()
    told = launched()
    if told.processes == 1 and not told.size_unknown and not need_mpi:
        return SerialComm()
    size, _, variable = told
    several = f"{size} processes" if not told.size_unknown else f"process {told.rank} of several"
    by = f"the launcher started {several} ({variable}={os.environ.get(variable, '')})"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a foreign launcher: said below, and once
            MPI, begun = _start_mpi(variable)
    except UserError as error:
        raise UserError(f"{by} but {error}{_MATCH}") from None
    except Exception as error:  # ImportError, or RuntimeError when mpi4py finds no MPI library
        why = by if size > 1 or told.size_unknown else "MPI is needed"
        what = f"mpi4py cannot be used ({str(error).splitlines()[0]})"
        raise UserError(f"{why} but {what}; pip install 'hpc_landscape[mpi]'") from None
    comm = MPIComm(MPI.COMM_WORLD)
    if not _agree(told, comm.size):
        raise UserError(
            f"{by} but MPI sees {comm.size}: mpirun or srun and mpi4py use different MPIs (mpi4py: {comm.library})"
            f"{_MATCH}"
        )
    if comm.is_root and size > 1 and comm.size != size and not told.size_unknown:
        notice(f"warning: {variable}={size} is of another launcher: MPI sees {comm.size} processes")
    _check_threads(MPI, comm, begun)
    return comm


def _agree(told: Told, size: int) -> bool:
    """Whether MPI's size is what a launcher has told, if only one that another runs in."""
    if told.size_unknown:
        return told.rank < size
    return told.processes in (1, size) or size in [other.processes for other in families() if other.processes > 1]


def _check_threads(MPI: Any, comm: MPIComm, begun: bool) -> None:
    """UserError where only the main thread may call MPI: the writer's does so too, in turn where that is asked for.

    begun: whether somebody else has initialized MPI.
    """
    level = comm.least(MPI.Query_thread())
    if comm.size == 1 or level >= MPI.THREAD_SERIALIZED:
        return
    name = "MPI_THREAD_FUNNELED" if level == MPI.THREAD_FUNNELED else "MPI_THREAD_SINGLE"
    if begun:
        remedy = "it was initialized so before: set mpi4py.rc.thread_level = 'multiple' before mpi4py.MPI is imported"
    else:
        remedy = f"it grants no more ({comm.library}): use an MPI that is built with MPI_THREAD_MULTIPLE"
    raise UserError(f"MPI lets only the main thread call it ({name}), and ranks need MPI_THREAD_SERIALIZED; {remedy}")


def _start_mpi(variable: str) -> tuple[Any, bool]:
    """(mpi4py's MPI, initialized; whether it was before).

    UserError where it would end the process: MPICH does under Open MPI's launcher.
    """
    import mpi4py

    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    from mpi4py import MPI

    begun = MPI.Is_initialized()
    if not begun:
        if "MPICH" in MPI.Get_library_version():
            _prepare_mpich(MPI, variable)
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    return MPI, begun


def _prepare_mpich(MPI: Any, variable: str) -> None:
    """MPICH ends the process where it finds Open MPI's launcher: its own may run within that, and is told of here."""
    if any(name in os.environ for name in HYDRA):
        if "PMIX_NAMESPACE" in os.environ:
            os.environ.setdefault("MPIR_CVAR_PMI_VERSION", "1")
    elif variable.startswith("OMPI_") or {"PMIX_NAMESPACE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"} <= set(os.environ):
        raise UserError(f"it is Open MPI's, and mpi4py uses another MPI ({_library(MPI)})")


def _library(MPI: Any) -> str:
    return " ".join(MPI.Get_library_version().replace("\x00", "").split("\n")[0].split())


class MPIComm(Comm):
    """An mpi4py communicator."""

    def __init__(self, mpi: Any, lock: threading.RLock | None = None):
        """lock: of another communicator of this process, for an MPI that takes one call at a time."""
        from mpi4py import MPI

        self._MPI = MPI
        self.mpi = mpi.Dup()  # our messages never meet the user's
        self.rank, self.size = mpi.Get_rank(), mpi.Get_size()
        self._end = self.mpi.Dup()  # for meet(), which no collective that others are in is to be taken for
        self._numbers = np.empty(2)  # this rank's, and the least: kept, should the wait for it be broken off
        self._lock = (lock or threading.RLock()) if MPI.Query_thread() < MPI.THREAD_MULTIPLE else None
        self._node = self._split()
        self.local_rank, self.local_size = self._node.Get_rank(), self._node.Get_size()
        self.library = _library(MPI)

    def _split(self) -> Any:
        """The ranks of this node: those that share memory."""
        return self.mpi.Split_type(self._MPI.COMM_TYPE_SHARED)

    @contextmanager
    def _serialized(self) -> Iterator[None]:
        """Where MPI takes one call at a time: wait for the other thread's. None of them waits for another rank long."""
        lock = self._lock
        held = lock is not None and lock.acquire(timeout=TURN)
        try:
            yield
        finally:
            if held and lock is not None:
                lock.release()

    def _arrive(self, mpi: Any, seconds: float | None = None) -> bool:
        """Wait for all ranks of a communicator, at most so long; returns whether they have come."""
        with self._serialized():
            arrived = mpi.Ibarrier()
        return _wait(_Request(self, arrived), seconds)

    def barrier(self) -> None:
        self._arrive(self.mpi)

    def meet(self, seconds: float) -> bool:
        return self._arrive(self._end, seconds)

    def bcast(self, value: Value, root: int = 0) -> Value:
        self.barrier()
        with self._serialized():
            return self.mpi.bcast(value, root)

    def bcast_array(self, array: NDArray[Any]) -> None:
        self.barrier()
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, CHUNK):
            with self._serialized():
                self.mpi.Bcast([flat[start : start + CHUNK], self._MPI.BYTE])

    def least(self, number: float) -> float:
        self._numbers[:] = number, math.inf
        with self._serialized():
            begun = self.mpi.Iallreduce(self._numbers[:1], self._numbers[1:], self._MPI.MIN)
        _wait(_Request(self, begun))
        return float(self._numbers[1])

    def to_root(self, value: Value) -> list[Value]:
        self.barrier()
        with self._serialized():
            return self.mpi.gather(value) or []

    def allgather(self, value: Value) -> list[Value]:
        self.barrier()
        with self._serialized():
            return self.mpi.allgather(value)

    def node_allgather(self, value: Value) -> list[Value]:
        self._arrive(self._node)
        with self._serialized():
            return self._node.allgather(value)

    def split(self, number: int) -> Comm:
        self.barrier()
        with self._serialized():
            parts = self.mpi.Split(number, self.rank)
            try:
                return MPIComm(parts, self._lock)
            finally:
                parts.Free()

    def isend(self, value: object, rank: int) -> Request:
        with self._serialized():
            return _Request(self, self.mpi.isend(value, rank))

    def received(self) -> list[tuple[int, Any]]:
        messages = []
        status = self._MPI.Status()
        with self._serialized():
            while (message := self.mpi.improbe(status=status)) is not None:
                messages.append((status.Get_source(), message.recv()))
        return messages

    def leave_if_told(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _, (kind, content) in self.received():
                if kind == LEAVE:
                    leave(content)
            time.sleep(0.01)

    def abort(self, code: int) -> None:
        """End every rank, now, with this exit code.

        Ranks that look for messages leave by themselves: MPI's own abort has them call exit() in the thread that looks,
        where C++ and HDF5 clean up beside a computation; what crashes there becomes the exit code of mpirun.
        """
        flush()
        requests = []  # a message that nobody holds may be gone before it is sent
        with suppress(Exception):  # whoever cannot be told is ended all the same
            for rank in {*range(self.size)} - {self.rank}:
                requests.append(self.isend((LEAVE, code), rank))
        if self.size > 1:
            time.sleep(NOTICED)
        _exit_at_once()
        with self._serialized():
            self.mpi.Abort(code)


class _Request:
    """What an MPI call has begun."""

    def __init__(self, comm: MPIComm, request: Any):
        self._comm, self._request = comm, request

    def Test(self) -> bool:
        with self._comm._serialized():
            return self._request.Test()


def _exit_at_once() -> None:
    """Let exit() leave this process without cleaning up."""
    with suppress(AttributeError, OSError, TypeError):  # glibc has it
        libc = ctypes.CDLL(None)
        libc.on_exit(libc._exit, None)


_keyvals: list[int] = []  # under which a communicator keeps ours of it


def ours_of(mpi: Any) -> MPIComm:
    """Our communicator over an mpi4py one: the same at every call, since MPI has room for some thousands only."""
    if not _keyvals:
        _keyvals.append(type(mpi).Create_keyval())
    found = mpi.Get_attr(_keyvals[0])
    if found is None:
        found = MPIComm(mpi)
        mpi.Set_attr(_keyvals[0], found)
    return found


def _wait(request: Request, seconds: float | None = None) -> bool:
    """Sleep between looks for a small share of what has been waited: others wait for what this rank passes on.

    Among 1,024 ranks the news that the last one has come takes 10 such steps.
    """
    start = time.monotonic()
    while not request.Test():
        waited = time.monotonic() - start
        if seconds is not None and waited > seconds:
            return False
        time.sleep(min(max(1e-4, waited / 50), 0.02))
    return True
