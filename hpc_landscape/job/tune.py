"""Which form computes this run's points soonest, by measuring: only where it is asked for, and said in the file."""

from __future__ import annotations

import copy
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from ..data.resident import beginning
from ..errors import OURS
from ..evaluate.execution import ExecutionMode, compiling
from ..metrics import Loss
from ..ranks.comm import Comm
from ..store import layout
from .build import CHOICES, Maker, forms, inexact_last

BUDGET = 50.0  # seconds, for all that is tried
ENOUGH = 0.5  # seconds of passes that tell how fast a form is
BLOCKS = (2, 4, 8, 16, 32, 64, 128, 256)
SMALL = 0.1  # seconds a point, at most, where stacking points may help: it saves launches, not arithmetic
AGAIN = 0.01  # seconds after which an alarm comes again that came at a bad moment
_BOUNDS = ("__enter__", "__exit__", "__del__")
_AT_WORK = ("_call_impl", "_next_data")  # of every module, of every DataLoader
_LIBRARIES = (os.path.dirname(torch.__file__), os.path.dirname(os.__file__), "<")  # "<": made or frozen code
WORTH = 0.97  # of the plain form's time: another one has to take less


def tune(maker: Maker, stored: layout.Stored | None, comm: Comm, say: Callable[[str], None]) -> str:
    """Set the maker's settings to the fastest form for a rank's points; returns what was measured.

    Rank 0 measures, and all ranks take its word. A run that is gone on with keeps the choice that its file records.
    """
    choice, text = {}, "no data to measure on"
    if stored is not None:
        recorded = [int(stored.attributes.get(name, 0)) for name in CHOICES]
        choice = {"channels_last": bool(recorded[0]), "compile": bool(recorded[1]), "block": recorded[2] or None}
        text = str(stored.attributes.get("tuned", ""))
    largest = maker.most_points(comm)
    with comm.raise_on_all_ranks():
        if stored is None and comm.is_root and maker.sets.evaluation:
            choice, text = _Tuner(maker, largest).best()
    choice, text = comm.bcast((choice, text))
    maker.settings = maker.settings.replaced(tune=False, **choice)
    if stored is None:
        say(f"tuned        {text}")
    return text


class _Tuner:
    """Times forms on the first batches, as many as tell something."""

    def __init__(self, maker: Maker, largest_block: int):
        self.whole, self.points, self.largest_block = maker, maker.points, largest_block
        self.short, self.scale = copy.copy(maker), 1.0
        self.end = time.monotonic() + BUDGET
        self.seconds: dict[ExecutionMode, float] = {}  # a point, on all of the data
        self.once: dict[ExecutionMode, float] = {}  # what is paid before the first
        self.choices: dict[ExecutionMode, dict[str, Any]] = {}

    def best(self) -> tuple[dict[str, Any], str]:
        """(the settings of the fastest form, what was measured)."""
        plain = self._form()
        self._shorten(plain)
        for choice in self._candidates(plain):
            if time.monotonic() < self.end:
                self._measure(self._form(**choice))
        total = {form: self.once[form] + self.points * seconds for form, seconds in self.seconds.items()}
        winner = min(total, key=total.__getitem__, default=plain)
        if total.get(winner, 0) > WORTH * total.get(plain, math.inf):
            winner = plain
        return self.choices[winner], f"{winner}, for {self.points} points; seconds a point: {self._text()}"

    def _form(self, **choice: Any) -> ExecutionMode:
        settings = self.whole.settings.replaced(tune=False, **choice)
        form = forms(settings, self.whole.problem, self.whole.device, self.whole.sets.streamed)[0]
        self.choices.setdefault(form, choice)
        return form

    def _text(self) -> str:
        return "; ".join(
            f"{form} {seconds:.3g}" + (f" and {self.once[form]:.3g} once" if self.once[form] else "")
            for form, seconds in sorted(self.seconds.items(), key=lambda item: item[1])
        )

    def _shorten(self, plain: ExecutionMode) -> None:
        """Take so many of the first batches that a point takes long enough to be measured."""
        sets = self.whole.sets
        counts = [batches.count() for batches in (*sets.evaluation.values(), sets.warmup) if batches is not None]
        n = 1
        while True:
            self.short.sets = sets.each(lambda batches, n=n: beginning(batches, n))
            self.scale = sum(counts) / sum(min(n, count) for count in counts)
            self._measure(plain)
            seconds = self.seconds.get(plain, math.inf) / self.scale
            if n >= max(counts) or seconds > ENOUGH / 2:
                return
            n = min(max(counts), max(2 * n, int(n * ENOUGH / seconds)))

    def _candidates(self, plain: ExecutionMode) -> Iterator[dict[str, Any]]:
        if not inexact_last(self.whole.settings, self.whole.problem, self.whole.device):
            yield {"channels_last": True}
        small = self.seconds.get(plain, math.inf) < SMALL
        if small and self.whole.is_additive and not self.whole.sets.streamed:
            before = math.inf  # not the plain form's: stacking costs something once, which many points share
            for block in BLOCKS:
                if block > self.largest_block:
                    break
                yield {"block": block}
                here = self.seconds.get(self._form(block=block), math.inf)
                if here >= before:
                    break  # larger ones are slower still
                before = here
        if self.points * min(self.seconds.values(), default=math.inf) > BUDGET:  # else there is too little to win
            yield {"compile": True}

    def _measure(self, form: ExecutionMode) -> None:
        """Note how long a point takes; nothing where the model cannot be evaluated in this form, or not in time."""
        try:
            with _until(self.end), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                seconds, once = self._time(form)
        except (Exception, _OutOfTime):
            return
        self.seconds[form], self.once[form] = self.scale * seconds, once if form.compiled else 0.0

    def _time(self, form: ExecutionMode) -> tuple[float, float]:
        """(seconds a point on the first batches, what the first one took more)."""
        with compiling(form):
            return self._timed(form)

    def _timed(self, form: ExecutionMode) -> tuple[float, float]:
        start = time.perf_counter()
        self.short.try_first_batches(form)
        evaluator, data = self.short.make(form)
        evaluator.metrics = {f"{name}_loss": Loss(self.short.loss, on) for name, on in data.items()}
        block = [[0.0] * evaluator.placement.dimensions] * form.block
        taken: list[float] = []
        with evaluator.attached():
            evaluator.block(block)
            first = time.perf_counter() - start
            while len(taken) < 3 or (sum(taken) < ENOUGH and len(taken) < 50):
                begin = time.perf_counter()
                evaluator.block(block)
                taken.append(time.perf_counter() - begin)
                if time.monotonic() > self.end:
                    raise _OutOfTime
        return min(taken) / form.block, first - min(taken)


class _OutOfTime(BaseException):
    """No Exception, so that nothing on the way takes it for a fault of its own."""


@contextmanager
def _until(end: float) -> Iterator[None]:
    """Give up what is done meanwhile at the end, by the monotonic clock: compiling may take long.

    That waits until the model, or another part of the problem, is at work: what is being restored is restored.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(_: int, frame: FrameType | None) -> None:
        if _may_be_left(frame):
            raise _OutOfTime
        signal.setitimer(signal.ITIMER_REAL, AGAIN)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, end - time.monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _may_be_left(frame: FrameType | None) -> bool:
    """Whether what runs there is a module, a loader or the user's code, and nothing is being set or reset."""
    inside = False
    while frame is not None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if name in _BOUNDS or (file.startswith(OURS) and not inside):
            return False
        inside |= name in _AT_WORK or not file.startswith(_LIBRARIES)
        frame = frame.f_back
    return inside
