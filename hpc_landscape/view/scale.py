"""From values to a colour scale: linear or logarithmic, its limits, and levels at round numbers."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import UserError

# Log levels a decade, from many to few; beyond one a decade, every second decade, and so on.
_MANTISSAS = ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
_STEPS = (1, 2, 2.5, 5, 10)

LARGEST = 1e300  # that is drawn: the distance between two such is still a number

Extend = Literal["neither", "min", "max", "both"]


@dataclass(frozen=True)
class Scale:
    """levels increase, and bound the colours; values outside are drawn in the end colours."""

    log: bool
    levels: np.ndarray
    extend: Extend  # where values lie outside

    def transform(self, values: np.ndarray | float) -> np.ndarray:
        """Values in the space that is drawn: log10 for a log scale, where what is not positive lies below the scale."""
        if not self.log:
            return np.clip(np.asarray(values, dtype=np.float64), -LARGEST, LARGEST)
        floor = self.levels[0] / 10
        with np.errstate(invalid="ignore"):
            return np.log10(np.where(np.asarray(values) < floor, floor, values))

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest level, in the space that is drawn."""
        low, high = self.transform(self.levels[[0, -1]])
        return float(low), float(high)

    @property
    def texts(self) -> list[str]:
        """The levels in as few digits as tell them apart."""
        return numbers(self.levels.tolist())


def choose(
    values: np.ndarray,
    log: bool | None = None,
    levels: int | Sequence[float] = 12,
    vmin: float | None = None,
    vmax: float | None = None,
) -> Scale:
    """The scale for these finite values, 1-D. log: None decides by them; levels: about how many, or the levels.

    Raises UserError where the limits or levels contradict each other or a log scale.
    """
    asked_levels = np.asarray(levels, dtype=np.float64)  # without a dimension: how many
    values = np.clip(values, -LARGEST, LARGEST)
    _check(values, log, asked_levels, vmin, vmax)
    if log is None:
        asked = [limit for limit in (vmin, vmax, *(asked_levels if asked_levels.ndim else ())) if limit is not None]
        log = _wants_log(values) and all(limit > 0 for limit in asked)
    low, high = _limits(values, log, vmin, vmax)
    if asked_levels.ndim:
        chosen = np.unique(asked_levels)
    else:
        chosen = (_log_levels if log else _linear_levels)(low, high, int(asked_levels))
        first = low if vmin is not None else chosen[0]
        last = high if vmax is not None else chosen[-1]
        ends = np.isclose(chosen, first, 1e-14, 0) | np.isclose(chosen, last, 1e-14, 0)  # to within rounding
        chosen = np.array([first, *chosen[(chosen > first) & (chosen < last) & ~ends], last])
    below = values.size and values.min() < chosen[0]
    above = values.size and values.max() > chosen[-1]
    extend: Extend = ("both" if above else "min") if below else ("max" if above else "neither")
    return Scale(bool(log), chosen, extend)


def _check(values: np.ndarray, log: bool | None, levels: np.ndarray, vmin: float | None, vmax: float | None) -> None:
    for name, limit in (("vmin", vmin), ("vmax", vmax)):
        if limit is not None and not abs(limit) <= LARGEST:
            raise UserError(f"{name} {limit:g}: expected a number from {-LARGEST:g} to {LARGEST:g}")
    if vmin is not None and vmax is not None and not vmin < vmax:
        raise UserError(f"vmin {vmin:g} must be less than vmax {vmax:g}")
    if not levels.ndim and not 2 <= levels <= 200:
        raise UserError(f"levels {int(levels)}: expected a number of levels from 2 to 200, or a list of levels")
    if levels.ndim and (len(np.unique(levels)) < 2 or not np.isfinite(levels).all()):
        raise UserError("levels: expected at least two different finite numbers")
    if not log:
        return
    if vmin is not None and vmin <= 0:
        raise UserError(f"vmin {vmin:g}: a log scale begins above 0")
    if vmax is not None and vmax <= 0:
        raise UserError(f"vmax {vmax:g}: a log scale ends above 0")
    if levels.ndim and levels.min() <= 0:
        raise UserError(f"level {levels.min():g}: the levels of a log scale are above 0")
    if values.size and values.max() <= 0:
        raise UserError("a log scale needs positive values, and there are none; leave the log out")


def _wants_log(values: np.ndarray) -> bool:
    """Whether linear levels would hide most of the surface: over 3 decades, or over half of it in the lowest band."""
    if not values.size or values.min() < 0 or values.max() <= 0:
        return False
    positive = values[values > 0]
    low, high, middle = positive.min(), positive.max(), np.median(positive)
    return bool(high > 1e3 * low or (high > 10 * low and middle - low < (high - low) / 20))


def _limits(values: np.ndarray, log: bool, vmin: float | None, vmax: float | None) -> tuple[float, float]:
    """The values' range, or the limits asked for; widened where it is empty."""
    if log:
        values = values[values >= sys.float_info.min]  # below, half of a value may be zero
    low, high = (float(values.min()), float(values.max())) if values.size else (1.0, 10.0) if log else (0.0, 1.0)
    if not log and values.size > 20:  # a few outliers must not take all the colours
        inner_low, inner_high = (float(q) for q in np.quantile(values, (0.02, 0.98)))
        if high - low > 20 * (inner_high - inner_low) > 0:
            low, high = inner_low, inner_high
    low, high = (low if vmin is None else vmin), (high if vmax is None else vmax)
    if high - low > 1e-12 * max(abs(low), abs(high)):
        return low, high
    if log:
        return (low if vmin is not None else high / 2), (high if vmax is not None else low * 2)
    margin = 0.1 * abs(high) or 1.0
    return (low if vmin is not None else high - margin), (high if vmax is not None else low + margin)


def _linear_levels(low: float, high: float, n: int) -> np.ndarray:
    """About n round numbers that enclose [low, high]."""
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((s * power for s in _STEPS), key=lambda s: abs(math.log(s / raw)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return np.arange(first, last + 1) * step


def _log_levels(low: float, high: float, n: int) -> np.ndarray:
    """About n numbers, round on a log scale, that enclose [low, high]; linear ones where the range is narrow."""
    if high / low < 3:
        return _linear_levels(low, high, n)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = {e: 10.0**e for e in range(-307, 308)}  # all that a float holds ten of
    every = [powers[e] for e in range(first, last + 1) if e in powers]
    tries = [[m * power for power in every for m in mantissas] for mantissas in _MANTISSAS]
    tries += [[powers[e] for e in range(first // k * k, last + k, k) if e in powers] for k in range(2, 60)]
    enclosing = []
    for candidate in tries:
        levels = np.array(candidate)
        begin = max(int(np.searchsorted(levels, low * (1 + 1e-9), side="right")) - 1, 0)
        end = int(np.searchsorted(levels, high * (1 - 1e-9)))
        enclosing.append(levels[begin : end + 1])
    return min(enclosing, key=lambda levels: abs(len(levels) - 1 - n) if len(levels) > 2 else math.inf)


def numbers(values: Sequence[float]) -> list[str]:
    """Numbers as text, in as few digits as tell them apart."""
    for digits in range(4, 17):
        texts = [number(v, digits) for v in values]
        if len(set(texts)) == len(set(values)):
            return texts
    return [repr(float(v)) for v in values]


def number(value: float, digits: int = 4) -> str:
    """A number as a reader writes it: 0.125, 2e4, 1e-5."""
    text = f"{value + 0.0:.{digits}g}"  # + 0.0: no minus before a zero
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text
