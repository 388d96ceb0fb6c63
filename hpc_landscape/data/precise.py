"""Losses are computed in 32 bits at least, whatever the model says."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from dataclasses import is_dataclass
from operator import is_
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from ..errors import warn
from ..model.numbers import HALVES


def full_precision(thing: object) -> Any:
    """The same nest with what is of 16 bits in 32, each part of the type that it had; a single number stays.

    A number that is the loss already was rounded when it was computed: ``precise`` says so.
    """
    if isinstance(thing, Tensor):
        return thing.float() if thing.dtype in HALVES and thing.ndim else thing
    if isinstance(thing, (tuple, list)):
        parts = [full_precision(part) for part in thing]
        if all(map(is_, parts, thing)):
            return thing
        return type(thing)(*parts) if hasattr(thing, "_fields") else type(thing)(parts)
    held = thing if isinstance(thing, MutableMapping) else vars(thing) if _is_record(thing) else {}
    changed = {key: new for key, value in held.items() if (new := full_precision(value)) is not value}
    if not changed:
        return thing
    thing = copy.copy(thing)
    for key, value in changed.items():
        if isinstance(thing, MutableMapping):
            thing[key] = value
        else:
            object.__setattr__(thing, key, value)  # it may be frozen
    return thing


def _is_record(thing: object) -> bool:
    """Whether an object does nothing but hold values."""
    return (is_dataclass(thing) and not isinstance(thing, type)) or isinstance(thing, SimpleNamespace)


def precise(loss: Tensor) -> Tensor:
    """The loss; with a warning where it was computed in 16 bits."""
    if loss.dtype in HALVES:
        warn(
            f"the loss is a {str(loss.dtype).removeprefix('torch.')}, of 2 or 3 digits: where it is computed, in the "
            "model or in forward, take .float() of what it is computed of"
        )
    return loss
