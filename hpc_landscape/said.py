"""What is said to people, on streams that may be full, closed, gone, or of another encoding: the log is not the run."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Sturdy:
    """A text stream that never raises: what it cannot take is lost, and what comes after is tried anew.

    lost: why something was lost, the first time; None while nothing was.
    """

    def __init__(self, stream: Any):
        self._stream = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w") if stream is None else stream
        self.lost: Exception | None = None if stream is not None else ValueError("it is closed")

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            with self._surviving():
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:
            self.lost = self.lost or error
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._surviving():
            self._stream.flush()

    def isatty(self) -> bool:
        with self._surviving():
            return bool(self._stream.isatty())
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            self.lost = self.lost or error


def survive() -> None:
    """From now on this process's sys.stdout and sys.stderr never raise."""
    sys.stdout, sys.stderr = Sturdy(sys.stdout), Sturdy(sys.stderr)


@contextmanager
def sturdy() -> Iterator[None]:
    """Meanwhile sys.stdout and sys.stderr never raise. In the end they are as before, and nothing waits in them.

    Descriptors 0 to 2 are taken where they are free: else the next file that is opened, the output say, would have
    one of them, and be printed into.
    """
    for _ in range(3):
        if (descriptor := os.open(os.devnull, os.O_RDWR)) > 2:
            os.close(descriptor)
            break
        os.set_inheritable(descriptor, True)
    before = sys.stdout, sys.stderr
    survive()
    ours = sys.stdout, sys.stderr
    try:
        yield
    finally:
        for stream in ours:
            _empty(stream)
        sys.stdout, sys.stderr = before


def _empty(stream: Sturdy) -> None:
    """Leave nothing in a stream at which Python, which flushes it in the end, would fail: exit code 120."""
    try:
        stream._stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream._stream.fileno())
            os.close(nowhere)
            stream._stream.flush()


def lost_result() -> Exception | None:
    """Why what was printed, where it is what was asked for, is not all there; None where it is, or nobody wanted it."""
    sys.stdout.flush()
    fault = getattr(sys.stdout, "lost", None)
    return None if isinstance(fault, BrokenPipeError) else fault


def flush(seconds: float = 1.0) -> None:
    """Bring out what was said, in so long at most: for a process that is about to end, whoever reads or does not."""

    def work() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
