"""Honest timings: everything that is compared runs in turns, so that a slow moment of the machine hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Seconds = dict[str, list[float]]


class Told(float):
    """Seconds that another process has measured."""


def in_turns(runs: Mapping[str, Callable[[], Any]], turns: int) -> Seconds:
    """Seconds of each run in each turn, after one turn that does not count."""
    seconds: Seconds = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in [*runs.items()][:: 1 if turn % 2 else -1]:  # none always comes after the same one
            start = time.perf_counter()
            told = run()  # what measures itself, elsewhere, says so
            taken = told if isinstance(told, Told) else time.perf_counter() - start
            if turn:
                seconds[name].append(taken)
    return seconds


def ratio(seconds: Seconds, slow: str, fast: str) -> float:
    """How many times faster: the median of the ratios of each turn."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def rows(seconds: Seconds, units: int = 1) -> list[tuple[str, str]]:
    """(name, median and spread for one unit) of each."""
    return [
        (name, f"{statistics.median(s) / units:.4g} s  ({min(s) / units:.4g} to {max(s) / units:.4g})")
        for name, s in seconds.items()
    ]
