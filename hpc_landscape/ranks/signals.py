"""What signals do: leave, or stop after the point in hand; and no stop waits for ever.

Python runs a handler in the main thread and between two of its instructions: not before a long call into a library has
returned. Its wakeup descriptor gets the signal's number at once; a thread reads it there, whatever the main thread is
in. A main thread that does not come to an end is left behind by that thread.
"""

from __future__ import annotations

import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType

from ..console import notice
from ..errors import FAILED, INTERRUPTED, STOPPED, USER_ERROR, Stopped, UserError, refusal
from .base import Comm, leave
from .comm import launched

_NAMES = {"SIGTERM": STOPPED, "SIGUSR1": STOPPED, "SIGHUP": STOPPED, "SIGXCPU": STOPPED, "SIGINT": INTERRUPTED}
CODES = {int(getattr(signal, name)): code for name, code in _NAMES.items() if hasattr(signal, name)}
REPEATED = getattr(signal, "SIGXCPU", None)  # the kernel sends it every second: it presses for nothing
PATIENCE = 20.0  # seconds, at least, that a stop waits for what is in hand
RESERVE = 10.0  # seconds of a stop's grace, a quarter of it at most, that are kept for leaving
END = b"\0"  # no signal
ECHO = 0.5  # seconds in which a launcher passes on a signal that the process has got already


def reserve(grace: float | None) -> float:
    """Seconds that are kept for leaving, after those for the points in hand."""
    return RESERVE if grace is None else min(RESERVE, grace / 4)


def time_to_finish(grace: float | None) -> float:
    """Seconds that a point in hand has after a stop; without a grace at least."""
    return PATIENCE if grace is None else grace - reserve(grace)


class Signals:
    """Receives this process's stop signals: ``with Signals(comm, grace) as signals``.

    Before and after points there is nothing to save: a signal ends the program with its own exit code. With a grace, in
    seconds, SIGUSR1 before the points is the end of an allocation in which not one has come about.

    code: the exit code of the first signal, or 0; pressed: another one has come since.
    """

    def __init__(self, comm: Comm, grace: float | None = None):
        self.comm, self.grace, self._in_vain = comm, grace, grace is not None
        self.code, self.pressed = 0, False
        self._first = self._leave_by = math.inf
        self._points = self._ended = self._left = False
        self._error: BaseException | None = None

    def __enter__(self) -> Signals:
        self._ear, self._mouth = os.pipe()
        os.set_blocking(self._mouth, False)
        self._wakeup = signal.set_wakeup_fd(self._mouth, warn_on_full_buffer=False)
        _open.append(self._mouth)
        ignored = getattr(signal, "SIGHUP", None)  # by nohup
        handled = [number for number in CODES if number != signal.SIGINT]
        self._handled = [n for n in handled if n != ignored or signal.getsignal(n) != signal.SIG_IGN]
        self._handling = _handling({number: self._leave for number in self._handled})
        self._handling.__enter__()
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end_hearing()
        if self._left and error is not None and not isinstance(error, Stopped):
            raise Stopped(self.code) from error  # it had broken off an import, say: what fails of it since is no fault

    def _end_hearing(self) -> None:
        self._ended = True
        self._handling.__exit__(None, None, None)
        signal.set_wakeup_fd(self._wakeup)
        _open.remove(self._mouth)
        with suppress(BlockingIOError):  # full, so that the thread reads it anyway
            os.write(self._mouth, END)  # closing it is no end: forked processes have it too
        self._thread.join()
        os.close(self._mouth)
        os.close(self._ear)

    def leave_by(self, when: float) -> None:
        """However it comes: end this process then, by the monotonic clock."""
        self._leave_by = min(self._leave_by, when)

    def fail(self, error: BaseException) -> None:
        """Have the main thread look what has failed, not only after a long point; where it cannot, end without it."""
        self._error = error
        self.leave_by(time.monotonic() + PATIENCE)
        main = threading.main_thread().ident
        if main is not None and callable(signal.getsignal(signal.SIGUSR1)):  # a run's
            signal.pthread_kill(main, signal.SIGUSR1)

    @contextmanager
    def stopping(
        self,
        check: Callable[[], None] = lambda: None,
        hopeless: Callable[[], bool] = lambda: False,
        patience: Callable[[], float] = lambda: PATIENCE,
    ) -> Iterator[None]:
        """A signal lets every rank finish the point in hand: the thread that speaks with them looks at ``code``.

        check raises where there is nothing to finish it for. hopeless: whether the point in hand waits for what may
        never come: then a signal raises Stopped. patience: seconds that a stop waits for it; so long, and the reserve,
        that thread has to end all of this.
        """

        def stop(number: int, frame: FrameType | None) -> None:
            check()
            self.code = self.code or CODES[number]  # at once: the thread may learn of it a moment later
            if hopeless():
                raise Stopped(self.code)

        self._points, self._patience = True, patience
        try:
            with _handling(dict.fromkeys([*self._handled, signal.SIGINT], stop)):
                yield
        finally:
            self._points, self._leave_by, self._in_vain = False, math.inf, False

    def _leave(self, number: int, frame: FrameType | None) -> None:
        self._left, self.code = True, self.code or self._code_of(number)
        raise Stopped(self._code_of(number))

    def _code_of(self, number: int) -> int:
        in_vain = number == signal.SIGUSR1 and self._in_vain and not self._points
        return FAILED if in_vain else CODES[number]

    # What the thread does

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self._ear, select.POLLIN)
        while True:
            if poll.poll(None if self._leave_by == math.inf and not self._points else 200):
                numbers = os.read(self._ear, 2**16)
                for number in numbers:
                    self._on_signal(number)
                if self._ended:
                    return
            if time.monotonic() >= self._leave_by:
                self._end()

    def _on_signal(self, number: int) -> None:
        now = time.monotonic()
        if number not in CODES or self._error is not None:  # then it is ours, and no stop
            return
        if self._first == math.inf:
            self.code, self._first = self.code or self._code_of(number), now
            wait = self._patience() + reserve(self.grace) if self._points else time_to_finish(self.grace)
            self.leave_by(now + wait)
        elif number != REPEATED and now - self._first > (ECHO if launched()[2] else 0):
            self.pressed = True
            self.leave_by(now + (reserve(self.grace) if self._points else 0))

    def _end(self) -> None:
        code = self.code or STOPPED
        if self._error is not None:
            if isinstance(self._error, UserError):
                notice(refusal(self._error))
                code = USER_ERROR
            else:
                notice(f"failed: {type(self._error).__name__}: {self._error}")
                code = FAILED
        if self.comm.size > 1:  # MPI may hang as well
            ending = threading.Thread(target=self.comm.abort, args=(code,), daemon=True)
            ending.start()
            ending.join(5)
        leave(code)


def ignore_stops() -> None:
    """From now on this process only ends: its exit code stays, whatever the end of an allocation sends."""
    for number in CODES.keys() - {signal.SIGINT, signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _handling(handlers: dict[int, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def blocked_for_children() -> Iterator[None]:
    """Processes that are started meanwhile do not get what stops a run, but for SIGTERM, by which they are ended.

    A terminal, or Slurm, sends it to all processes of a run, and the point in hand needs its data-loading workers.
    Only this thread does not get it meanwhile: another one does.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, CODES.keys() - {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_open: list[int] = []


def _as_without_us() -> None:
    """In a forked process, a data-loading worker say: what ends that one is not for us, and does end it."""
    if _open:
        with suppress(ValueError):
            signal.set_wakeup_fd(-1)
            for number in CODES:
                if getattr(signal.getsignal(number), "__module__", None) == __name__:
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


os.register_at_fork(after_in_child=_as_without_us)
