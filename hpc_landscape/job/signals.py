"""What signals do: leave, or stop after the point in hand."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import INTERRUPTED, STOPPED, Stopped
from ..store.writer import Writer


@contextmanager
def leaving() -> Iterator[None]:
    """SIGTERM and SIGUSR1 end the program with its own exit code: before and after points there is nothing to save."""

    def leave(number: int, frame: Any) -> None:
        raise Stopped(STOPPED)

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
def stopping(writer: Writer) -> Iterator[None]:
    """A signal lets every rank finish the point in hand; a second Ctrl-C does not wait for it.

    Where the writer has failed, there is nothing to finish it for.
    """

    def stop(number: int, frame: Any) -> None:
        writer.check()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        writer.stop_code = writer.stop_code or (INTERRUPTED if number == signal.SIGINT else STOPPED)

    with _handling({signal.SIGTERM: stop, signal.SIGUSR1: stop, signal.SIGINT: stop}):
        yield
