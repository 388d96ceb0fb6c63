"""What a file says of how far off its values are: the names of the attributes, and what they come to in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

ERROR = "execution_error_"  # and a metric's name: what 95% of the points are not off by more than
POINTS = "execution_error_points"  # at which it was seen
DIFFERENCES = f"{ERROR}differences_"  # from the plain way's value at each
RELATIVE = "execution_relative_error_"  # the worst that was seen; older files have none, and an estimate instead
FACTOR = 2.5  # of the worst that was seen: what is stated, unless all points were seen
GIVEN_UP = "given_up"  # the way that was asked for, and why it was not taken


def told(attributes: Mapping[str, Any], size: int) -> str:
    """How far off each metric is; nothing where the file does not say. size: the grid's number of points."""
    names = [key.removeprefix(ERROR) for key in attributes if key.startswith(ERROR) and not key.startswith(DIFFERENCES)]
    stated = {name: off for name in names if isinstance(off := attributes[ERROR + name], float)}
    points = attributes.get(POINTS)
    if not stated or not isinstance(points, np.ndarray):
        return ""
    relative = [f"{off:.2g}" for name in stated if isinstance(off := attributes.get(RELATIVE + name), float)]
    if not relative:
        return f"{_each(stated, 'about')} (estimated at {points.size} points)"
    seen = "the worst of all" if points.size == size else f"{FACTOR:g} times the worst of"
    return f"{_each(stated, 'up to')} ({seen} {points.size} points; relative at worst {', '.join(relative)})"


def _each(stated: Mapping[str, float], how: str) -> str:
    return ", ".join(f"{name} off by {how} {off:.2g}" for name, off in stated.items())
