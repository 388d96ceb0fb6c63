"""What is said to people, on streams that may be full, closed, gone, or of another encoding: the log is not the run."""

from __future__ import annotations

import errno
import os
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

PATIENCE = 1.0  # seconds that a run waits for a reader who does not read: beyond it, words are lost
PIECE = 200  # characters: whatever takes anything takes twice as many at once, escaped ones (10 bytes) too


def say(text: str) -> None:
    """A line on standard output, if that can be. It never raises, nor do the other ways to say something."""
    _bring("stdout", f"{text}\n")


def notice(text: str) -> None:
    """Something of ours beside the results: on standard error, with our name."""
    _bring("stderr", f"hpc_landscape: {text}\n")


def progress(text: str) -> None:
    """A line of a log on standard error."""
    _bring("stderr", f"{text}\n")


def _bring(name: str, text: str) -> None:
    """A problem may have put a stream of its own there: where that takes nothing, the process's first one may."""
    stream = _sturdy(getattr(sys, name))
    before = stream.lost
    stream.write(text)
    stream.flush()
    if stream.lost is not before and stream is not getattr(sys, name):
        first = _sturdy(_first[name] if _first else getattr(sys, f"__{name}__"))
        first.write(text)
        first.flush()


def terminal() -> Any:
    """Standard error where it is a terminal, else None: never raises, nor does what it gives."""
    stream = _sturdy(sys.stderr)
    return stream if stream.isatty() else None


class Sturdy:
    """A text stream that never raises: what it cannot take is lost, and what comes after is tried anew.

    lost: why something was lost, the last time; None while nothing was. patience: seconds that it waits for its reader,
    at a pipe or terminal that is held; None: as long as that takes.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self.lost: Exception | None = None
        self.patience: float | None = None
        self._held = 0  # characters that may not have been brought out
        self._stuck = False

    def write(self, text: str) -> int:
        for start in range(0, len(text), PIECE):
            with self._surviving():
                self._put(text[start : start + PIECE])
        return len(text)

    def _put(self, piece: str) -> None:
        self._wait()
        try:
            self._stream.write(piece)
        except UnicodeEncodeError:
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            self._stream.write(piece.encode(encoding, "backslashreplace").decode(encoding))
        self._held += len(piece)
        if self.patience is not None and self._held >= PIECE:
            self._bring_out()

    def _bring_out(self) -> None:
        if hasattr(self._stream, "flush"):
            self._stream.flush()
        self._held = 0

    def _wait(self) -> None:
        """Raise where nobody reads; one who did not a moment ago is not waited for again."""
        if self.patience is None or not hasattr(select, "poll"):
            return
        try:
            descriptor = self._stream.fileno()
        except Exception:  # no file
            return
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        self._stuck = not poll.poll(0 if self._stuck else 1000 * self.patience)
        if self._stuck:
            raise BlockingIOError(errno.EAGAIN, "nobody reads it")

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._surviving():
            self._wait()
            self._bring_out()

    def isatty(self) -> bool:
        with self._surviving():
            return hasattr(self._stream, "isatty") and bool(self._stream.isatty())
        return False

    def __getattr__(self, name: str) -> Any:
        if name == "_stream":  # of a copy in the making
            raise AttributeError(name)
        return getattr(self._stream, name)

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.lost = error


def _sturdy(stream: object) -> Sturdy:
    return stream if isinstance(stream, Sturdy) else Sturdy(stream)


def survive() -> None:
    """From now on this process's sys.stdout and sys.stderr never raise.

    Descriptors 0 to 2 are taken where they are free: else the next file that is opened, the output say, would have
    one of them, and be printed into.
    """
    for _ in range(3):
        if (descriptor := os.open(os.devnull, os.O_RDWR)) > 2:
            os.close(descriptor)
            break
        os.set_inheritable(descriptor, True)
    for name in ("stdout", "stderr"):
        stream = _sturdy(getattr(sys, name))
        if stream._stream is None:
            stream = Sturdy(os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))  # it has a descriptor, and an encoding
            stream.lost = ValueError("it is closed")
        setattr(sys, name, stream)


def hurry() -> None:
    """From now on what is said is no result, for which a reader may take any time."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Sturdy):
            stream.patience = PATIENCE


@contextmanager
def sturdy() -> Iterator[None]:
    """Meanwhile sys.stdout and sys.stderr never raise. In the end they are as before, and nothing waits in them."""
    before = sys.stdout, sys.stderr
    survive()
    ours = _sturdy(sys.stdout), _sturdy(sys.stderr)
    _first.update(stdout=ours[0], stderr=ours[1])
    try:
        yield
    finally:
        for stream in ours:
            _empty(stream)
        sys.stdout, sys.stderr = before
        _first.clear()


_first: dict[str, Sturdy] = {}  # what were this process's streams before a problem came


def _empty(stream: Sturdy) -> None:
    """Leave nothing in a stream at which Python, which flushes it in the end, would fail: exit code 120."""
    before, stream.lost = stream.lost, None
    stream.flush()
    if stream.lost is not None:
        with suppress(Exception):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            stream.flush()
    stream.lost = stream.lost or before


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

    with suppress(Exception):  # there may be no more room for a thread
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(seconds)
