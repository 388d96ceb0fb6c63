"""Which mode computes this run's points soonest, by measuring: only where it is asked for, and said in the file."""

from __future__ import annotations

import copy
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from ..data.resident import beginning
from ..errors import OURS
from .build import CHOICES, EvaluatorBuilder, candidate_modes
from .execution import ExecutionMode, compiling

if TYPE_CHECKING:
    from ..setting_groups import SpeedSettings

BUDGET = 50.0  # seconds, for all that is tried
ENOUGH = 0.5  # seconds of passes that tell how fast a mode is
BLOCKS = (2, 4, 8, 16, 32, 64, 128, 256)
SMALL = 0.1  # seconds a point, at most, where stacking points may help: it saves launches, not arithmetic
AGAIN = 0.01  # seconds after which an alarm comes again that came at a bad moment
_BOUNDS = ("__enter__", "__exit__", "__del__")
_AT_WORK = ("_call_impl", "_next_data")  # of every module, of every DataLoader
_LIBRARIES = (os.path.dirname(torch.__file__), os.path.dirname(os.__file__), "<")  # "<": made or frozen code
WORTH = 0.97  # of the plain mode's time: another one has to take less


def recorded(attributes: Mapping[str, Any], speed: SpeedSettings) -> tuple[dict[str, Any], str]:
    """(what these settings leave open of a run that is gone on with, what was measured then), as its file has them."""
    if not speed.tune:
        last = "channels last" in str(attributes.get("execution"))
        return ({"channels_last": last} if speed.channels_last is None else {}), ""
    channels_last, compiled, block = (int(attributes.get(name, 0)) for name in CHOICES)
    choice = {"channels_last": bool(channels_last), "compile": bool(compiled), "block": block or None}
    return choice, str(attributes.get("tuned", ""))


def tune(builder: EvaluatorBuilder, most: int) -> tuple[dict[str, Any], str]:
    """(the speed settings of the fastest mode for a rank's points, what was measured).

    most: points that there is room for together.
    """
    if not builder.sets.evaluation:
        return {}, "no data to measure on"
    return _Tuner(builder, most).best()


class _Tuner:
    """Times modes on the first batches, as many as tell something."""

    def __init__(self, builder: EvaluatorBuilder, largest_block: int):
        self.whole, self.points, self.largest_block = builder, builder.points, largest_block
        self.short, self.scale = copy.copy(builder), 1.0
        self.end = time.monotonic() + BUDGET
        self.seconds: dict[ExecutionMode, float] = {}  # a point, on all of the data
        self.once: dict[ExecutionMode, float] = {}  # what is paid before the first
        self.choices: dict[ExecutionMode, dict[str, Any]] = {}

    def best(self) -> tuple[dict[str, Any], str]:
        """(the settings of the fastest mode, what was measured)."""
        plain = self._mode()
        self._shorten(plain)
        for choice in self._candidates(plain):
            if time.monotonic() < self.end:
                self._measure(self._mode(**choice))
        total = {mode: self.once[mode] + self.points * seconds for mode, seconds in self.seconds.items()}
        winner = min(total, key=total.__getitem__, default=plain)
        if total.get(winner, 0) > WORTH * total.get(plain, math.inf):
            winner = plain
        return self.choices[winner], f"{winner}, for {self.points} points; seconds a point: {self._text()}"

    def _mode(self, **choice: Any) -> ExecutionMode:
        builder = self.whole
        mode = candidate_modes(
            replace(builder.speed, tune=False, **choice),
            builder.precision,
            builder.normalization,
            builder.model.root,
            builder.subject.own_forward,
            builder.device,
            builder.sets.streamed,
        )[0]
        self.choices.setdefault(mode, choice)
        return mode

    def _text(self) -> str:
        return "; ".join(
            f"{mode} {seconds:.3g}" + (f" and {self.once[mode]:.3g} once" if self.once[mode] else "")
            for mode, seconds in sorted(self.seconds.items(), key=lambda item: item[1])
        )

    def _shorten(self, plain: ExecutionMode) -> None:
        """Take so many of the first batches that a point takes long enough to be measured."""
        sets = self.whole.sets
        counts = [batches.count() for batches in sets.all]
        n = 1
        while True:
            self.short.sets = sets.each(partial(beginning, count=n))
            self.scale = sum(counts) / sum(min(n, count) for count in counts)
            self._measure(plain)
            seconds = self.seconds.get(plain, math.inf) / self.scale
            if n >= max(counts) or seconds > ENOUGH / 2:
                return
            n = min(max(counts), max(2 * n, int(n * ENOUGH / seconds)))

    def _candidates(self, plain: ExecutionMode) -> Iterator[dict[str, Any]]:
        if plain.channels_last:
            yield {"channels_last": False}
        small = self.seconds.get(plain, math.inf) < SMALL
        if small and self.whole.is_additive and not self.whole.sets.streamed:
            before = math.inf  # not the plain mode's: stacking costs something once, which many points share
            for block in BLOCKS:
                if block > self.largest_block:
                    break
                yield {"block": block}
                here = self.seconds.get(self._mode(block=block), math.inf)
                if here >= before:
                    break  # larger ones are slower still
                before = here
        if self.points * min(self.seconds.values(), default=math.inf) > BUDGET:  # else there is too little to win
            yield {"compile": True}

    def _measure(self, mode: ExecutionMode) -> None:
        """Note how long a point takes; nothing where the model cannot be evaluated in this mode, or not in time."""
        try:
            with _until(self.end), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                seconds, once = self._time(mode)
        except (Exception, _OutOfTime):
            return
        self.seconds[mode], self.once[mode] = self.scale * seconds, once if mode.compiled else 0.0

    def _time(self, mode: ExecutionMode) -> tuple[float, float]:
        """(seconds a point on the first batches, what the first one took more)."""
        with compiling(mode):
            return self._timed(mode)

    def _timed(self, mode: ExecutionMode) -> tuple[float, float]:
        start = time.perf_counter()
        self.short.try_first_batches(mode)
        evaluator, data = self.short.build(mode)
        evaluator.metrics = {f"{name}_loss": self.short.subject.trial(on) for name, on in data.items()}
        block = [[0.0] * evaluator.placement.dimensions] * mode.stacked
        taken: list[float] = []
        with evaluator.attached():
            evaluator.evaluate(block)
            first = time.perf_counter() - start
            while len(taken) < 3 or (sum(taken) < ENOUGH and len(taken) < 50):
                begin = time.perf_counter()
                evaluator.evaluate(block)
                taken.append(time.perf_counter() - begin)
                if time.monotonic() > self.end:
                    raise _OutOfTime
        return min(taken) / mode.stacked, first - min(taken)


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
        if _may_be_left(frame) and not _is_callback(frame):
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


def _is_callback(frame: FrameType | None) -> bool:
    """Whether it may be a weak reference's, in which whatever is raised is lost: a function of a library's own."""
    return frame is not None and frame.f_code.co_name == "<lambda>" and frame.f_code.co_filename.startswith(_LIBRARIES)
