"""What signals do: leave, or stop after the point in hand.

Python runs a handler in the main thread and between two of its instructions: not before a long call into a library has
returned. Its wakeup descriptor gets the signal's number at once, and the writer's thread reads it there.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import FAILED, INTERRUPTED, STOPPED, Stopped
from ..store.writer import Writer

CODES = {signal.SIGTERM: STOPPED, signal.SIGUSR1: STOPPED, signal.SIGINT: INTERRUPTED}


@contextmanager
def leaving(grace: float | None = None) -> Iterator[None]:
    """SIGTERM and SIGUSR1 end the program with its own exit code: before and after points there is nothing to save.

    With a grace, SIGUSR1 is the end of an allocation in which not one point has come about.
    """

    def leave(number: int, frame: Any) -> None:
        raise Stopped(FAILED if number == signal.SIGUSR1 and grace is not None else STOPPED)

    with _handling({signal.SIGTERM: leave, signal.SIGUSR1: leave}):
        yield


@contextmanager
def _handling(handlers: dict[int, Any]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stopping(
    writer: Writer, grace: float | None = None, hopeless: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """A signal lets every rank finish the point in hand; a second Ctrl-C does not wait for it.

    With a grace, in seconds, all leave shortly before it is over, finished or not. Where the writer has failed, there
    is nothing to finish the point for. hopeless: whether the point in hand waits for what may never come: then a signal
    raises Stopped.
    """

    def stop(number: int, frame: Any) -> None:
        writer.check()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        writer.stop_code = writer.stop_code or CODES[number]
        if hopeless():
            raise Stopped(writer.stop_code)

    writer.grace = math.inf if grace is None else grace
    with _hearing() as writer.hear_signals, _handling({number: stop for number in CODES}):
        yield


@contextmanager
def _hearing() -> Iterator[Callable[[], int]]:
    """Gives a function that returns the stop code of a signal that has come, or 0; any thread may call it."""
    ear, mouth = os.pipe()
    os.set_blocking(ear, False)
    os.set_blocking(mouth, False)

    def heard() -> int:
        try:
            numbers = os.read(ear, 64)
        except BlockingIOError:
            return 0
        return next((CODES[number] for number in numbers if number in CODES), 0)

    before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    _open.append(mouth)
    try:
        yield heard
    finally:
        _open.remove(mouth)
        signal.set_wakeup_fd(before)
        os.close(ear)
        os.close(mouth)


_open: list[int] = []


def _deaf() -> None:
    """In a forked process, a data-loading worker say: what ends that one is not for us."""
    if _open:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_deaf)
