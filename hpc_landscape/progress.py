"""How far a run is: a bar on a terminal, a line a minute in a log; and what the stages of its start have taken."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import console

LINE_EVERY = 60.0  # seconds
_stages: dict[str, float] = {}  # seconds that stages have taken in this process, by name


class Progress:
    """Points done over all ranks; rank 0 owns one. ``total`` points in all, ``done`` of them before this run.

    total: None while that is not known, as in a refinement.
    """

    def __init__(self, total: int | None, done: int, clock: Callable[[], float] = time.monotonic, shown: bool = True):
        self.total, self.before, self.done, self.clock = total, done, done, clock
        self.start = self.last = clock()
        self.bar = None
        self.shown = shown
        if shown and (terminal := console.terminal()) is not None:
            from tqdm import tqdm

            self.bar = tqdm(file=terminal, total=total, initial=done, unit="pt", smoothing=0.1, dynamic_ncols=True)

    def update(self, done: int) -> None:
        """Show that ``done`` points are done."""
        if self.bar is not None:
            self.bar.update(done - self.done)
        self.done = done
        now = self.clock()
        if self.shown and self.bar is None and now - self.last >= LINE_EVERY:
            self.last = now
            console.progress(self.line())

    def line(self) -> str:
        """One line: done, rate, time left."""
        rate = (self.done - self.before) / max(self.clock() - self.start, 1e-9)
        if self.total is None:
            return f"{self.done} points, {rate:.3g} points/s"
        left = duration((self.total - self.done) / rate) if rate > 0 else "unknown"
        return f"{self.done}/{self.total} points, {rate:.3g} points/s, {left} left"

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


@contextmanager
def stage(name: str, before: float = 0.0) -> Iterator[None]:
    """What is done meanwhile, or by the function that is decorated, is this stage of a start. before: seconds of it."""
    begin = time.monotonic() - before
    try:
        yield
    finally:
        _stages[name] = _stages.get(name, 0.0) + time.monotonic() - begin


def stages_taken() -> dict[str, float]:
    """Seconds of each stage so far, which are forgotten then."""
    taken = dict(_stages)
    _stages.clear()
    return taken


def age() -> float:
    """Seconds since this process was started; where the system does not tell, those that it has computed."""
    try:
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, ValueError, IndexError):  # not Linux
        return time.process_time()


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 42 s, 3 min 20 s, 2 h 05 min, 3 d 04 h."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} d {s % 86400 // 3600:02d} h"


def roughly(seconds: float) -> str:
    """The same of an estimate: 40 min, 2 h, 3 d."""
    if seconds < 90 * 60:
        return f"{10 * round(seconds / 600)} min"
    hours = seconds / 3600
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} d"


def size(n: float) -> str:
    """Bytes as a person reads them: 812 B, 541.2 KiB, 3.0 GiB."""
    if n < 1024:
        return f"{n:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        n /= 1024
        if n < 1024:
            return f"{n:.1f} {unit}"
    return f"{n / 1024:.1f} TiB"
