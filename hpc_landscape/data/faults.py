"""What was raised: a fault of the machine, which may pass, or one that would come again; and how often it is tried."""

from __future__ import annotations

import errno
import http.client
import multiprocessing
import os
import pickle
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from ..errors import GivenUp, Stopped, is_out_of_memory, printable

Value = TypeVar("Value")
PAUSES = (1.0, 3.0)  # seconds before the second try and the third
AGAIN = "what it has broken off is done again, to the same values; others of this kind are not told"
STEP = 0.05  # seconds between looks for a stop meanwhile

WORKER, LATE, HANDED = "a data-loading worker died", "a data-loading worker is late", "memory or files ran short"
IO, BROKEN = "reading or writing failed", "a connection broke"
# What none but the machine says: of its disks and servers, its network, and of what all processes share.
_DISKS = "EIO ESTALE EREMOTEIO ENODEV ENXIO EBADF EUCLEAN ENOSPC EDQUOT EROFS ENOLCK ESHUTDOWN EBUSY"
_NETWORK = "ENOTCONN ECONNRESET ECONNABORTED ECONNREFUSED EPIPE ETIMEDOUT EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH"
_SHARED = "EMFILE ENFILE EAGAIN ENOMEM ENOBUFS"
_NUMBERS = {
    getattr(errno, name): kind  # Linux has all of them
    for kind, names in ((IO, _DISKS), (BROKEN, _NETWORK + " ENETRESET"), (HANDED, _SHARED))
    for name in names.split()
    if hasattr(errno, name)
}
_SAYS = (
    (WORKER, r"DataLoader worker \(pid|worker exited unexpectedly|[Pp]in memory thread exited"),
    (LATE, r"DataLoader timed out after"),
    (
        HANDED,
        r"unable to (open|write|mmap|resize|map)\b.*(shared memory|torch_)|received \d+ items of ancdata|"
        r"Too many open files|can't start new thread|torch_shm_manager|bus error encountered in worker|"
        r"out of shared memory",
    ),
)
_NUMBERED = re.compile(r"\[Errno (\d+)\]|\berrno = (\d+)")  # as Python says it, and HDF5
_SYSTEM = re.compile(r"(\w+\.)*(OSError\b|\w+: \[Errno)")  # in a traceback
_IN_WORKER = re.compile(r"^Caught \w+ in (DataLoader worker process|pin memory thread)")
_CONNECTIONS = (ConnectionError, socket.gaierror, BrokenExecutor)
_CLOSED = {"SSLEOFError", "SSLZeroReturnError"}  # of connections; by name, since a Python may have no ssl
_WHILE_READING = (TimeoutError, multiprocessing.ProcessError, http.client.HTTPException)  # else perhaps a metric's own
_ENDS = (EOFError, pickle.UnpicklingError, OSError)  # of a queue, or of a file: whose they are says the line
_QUEUES = os.path.dirname(multiprocessing.__file__)
_STUCK = re.compile(
    r"(CUDA|HIP) (error|driver error): .*(illegal memory access|device-side assert|launch failure|misaligned address|"
    r"illegal instruction|uncorrectable|invalid program counter|hardware stack error|launch timed out|unknown error|"
    r"busy or unavailable|driver shutting down|initialization error|no CUDA-capable device|device is lost)|"
    r"\bNCCL (error|Error)|\bnccl\w*Error|\bECC error"
)


class Cause(NamedTuple):
    """Why the machine, and nobody's code, is at fault. kind: one of a few; text: what was said, on one line."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.text})"


def cause(error: BaseException, reading: bool = False) -> Cause | None:
    """What of the machine has failed; None for any other fault. reading: raised while data was read.

    Looks through what an exception was raised from, and through the text that a worker's comes as.
    """
    if is_out_of_memory(error):
        return None  # told in another way
    for one in chain(error):
        kind = _kind(one, reading)
        if kind:
            return Cause(kind, summary(one))
    return None


def sticks(error: BaseException) -> bool:
    """Whether a GPU, or the ranks' tie between theirs, computes nothing in this process any more."""
    return not is_out_of_memory(error) and any(_STUCK.search(str(one)) for one in chain(error))


def in_worker(error: BaseException) -> bool:
    """Whether it was raised in a data-loading worker, and again here."""
    return _IN_WORKER.match(str(error)) is not None


def chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that it was raised from, or while they were handled."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop(0)
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            todo += [one.__cause__, one.__context__]


def summary(error: BaseException) -> str:
    """An exception on one line; of a worker's, which comes as a traceback in text, its last line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if in_worker(error):
        numbered = [line for line in lines if _NUMBERED.search(line) and not line.startswith(" ")]
        return printable((numbered or lines)[-1].strip())[:200]
    return printable(f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__)[:200]


def _kind(error: BaseException, reading: bool) -> str:
    text = str(error)
    if isinstance(error, _ENDS) and _raised_in(error).startswith(_QUEUES):
        return WORKER
    if isinstance(error, OSError) and error.errno in _NUMBERS and not isinstance(error, socket.gaierror):
        return _NUMBERS[error.errno]
    if (
        isinstance(error, _CONNECTIONS)
        or type(error).__name__ in _CLOSED
        or (reading and isinstance(error, _WHILE_READING))
    ):
        return BROKEN
    for kind, pattern in _SAYS:
        if re.search(pattern, text):
            return kind
    if isinstance(error, OSError) or in_worker(error):
        lines = [line for line in text.splitlines() if isinstance(error, OSError) or re.match(_SYSTEM, line)]
        numbers = [int(a or b) for a, b in _NUMBERED.findall("\n".join(lines))]
        if kinds := [_NUMBERS[number] for number in numbers if number in _NUMBERS]:
            return kinds[0]
    return BROKEN if in_worker(error) and _names_a_connection(text) else ""


def _names_a_connection(text: str) -> bool:
    """Whether one of the exceptions in a traceback's text is of a connection."""
    names = {line.partition(":")[0].rpartition(".")[2] for line in text.splitlines()}
    types = (_builtin(name) for name in names)
    return any(isinstance(kind, type) and issubclass(kind, (ConnectionError, TimeoutError)) for kind in types)


def _builtin(name: str) -> Any:
    import builtins

    others = {"gaierror": ConnectionError, "timeout": TimeoutError, **dict.fromkeys(_CLOSED, ConnectionError)}
    return others.get(name) or getattr(builtins, name, None)


def _raised_in(error: BaseException) -> str:
    """The file whose line has raised it."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last.tb_frame.f_code.co_filename if last else ""


def told_by_reading() -> None:
    """Let a forked worker's death show where its data is read, which looks for it every few seconds.

    PyTorch's handler of SIGCHLD raises it wherever this process is: between two points, say, or in a model.
    """
    theirs = signal.getsignal(signal.SIGCHLD)
    if not callable(theirs) or not getattr(theirs, "__module__", "").startswith("torch."):
        return

    def quietly(number: int, frame: Any) -> None:
        with suppress(RuntimeError):
            theirs(number, frame)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, quietly)


class Patience:
    """What the machine has failed at is tried again, twice in a row at most, after a pause.

    tell(cause) is called before; stop() is the code of a stop that has come, or 0: it ends a pause. file: which has the
    points that are finished, once there are any.
    """

    def __init__(
        self, tell: Callable[[Cause], None] = lambda cause: None, stop: Callable[[], int] = lambda: 0, file: str = ""
    ):
        self.tell, self.stop, self.file = tell, stop, file

    def again(self, error: Exception, tries: int, reading: bool = False) -> bool:
        """Whether to try again what has raised the error after so many tries in vain: where the machine is at fault.

        Pauses first. Raises GivenUp after the last try, Stopped where a stop comes meanwhile.
        """
        found = cause(error, reading)
        if found is None:
            return False
        if code := self.stop():  # nothing is tried again; SIGTERM to all processes ends the workers too
            raise Stopped(code) from error
        if tries >= len(PAUSES):
            raise self.given_up(f"{found}, {tries + 1} times in a row{_hint(found)}") from error
        self.tell(found)
        end = time.monotonic() + PAUSES[tries]
        while time.monotonic() < end:
            if code := self.stop():
                raise Stopped(code)
            time.sleep(STEP)
        return True

    def call(self, function: Callable[[], Value], reading: bool = False) -> Value:
        """What the function returns, at the first try or a later one."""
        for tries in range(len(PAUSES) + 1):
            try:
                return function()
            except Exception as error:
                if not self.again(error, tries, reading):
                    raise
        raise AssertionError("the last try returns or raises")

    def given_up(self, text: str) -> GivenUp:
        """What ends the run: the text, and what to do."""
        there = f"; the points finished before are in {self.file}" if self.file else ""
        return GivenUp(f"{text}{there}. Once this is mended the same command goes on")


def _hint(found: Cause) -> str:
    killed = found.kind == WORKER and ("Killed" in found.text or "exited unexpectedly" in found.text)
    return "; is the machine's memory out? Then take fewer num_workers" if killed else ""
