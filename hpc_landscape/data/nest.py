"""Batches of whatever nesting: every tensor in them changed, and the type of everything around them kept."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..errors import UserError
from ..model.parts import is_plain

Change = Callable[[Tensor], Tensor]


def move(
    batch: object, device: torch.device | None, dtype: torch.dtype | None = None, channels_last: bool = False
) -> Any:
    """A batch, of whatever nesting, on the device, its floating-point tensors in the dtype, images in that order."""

    ahead = device is not None and device.type != "cpu"  # what comes to the host is read there without a wait

    def moved(tensor: Tensor) -> Tensor:
        if tensor.is_complex() and dtype == torch.float64:
            return tensor.to(device, torch.complex128, non_blocking=ahead)
        if not tensor.is_floating_point():
            return tensor.to(device, non_blocking=ahead)
        if channels_last and tensor.ndim == 4 and is_plain(tensor):
            return tensor.to(device, dtype, non_blocking=ahead, memory_format=torch.channels_last)
        return tensor.to(device, dtype, non_blocking=ahead)

    return each_tensor(batch, moved, device)


def each_tensor(thing: Any, change: Change, device: torch.device | None = None) -> Any:
    """The same nest with every tensor changed; device: for what is no tensor but moves as one.

    Containers are new ones, so that who takes a part out of a batch does not take it out of the next pass. What only
    its own ``to`` can see into is moved by that, and not looked into.
    """
    if isinstance(thing, Tensor):
        return change(thing)
    if isinstance(thing, (str, bytes, int, float, type(None))):
        return thing
    if isinstance(thing, PackedSequence):  # its batch sizes stay on the CPU
        rest = [None if t is None else change(t) for t in thing[2:]]
        return type(thing)(change(thing.data), thing.batch_sizes, *rest)
    if type(thing) is dict:
        return {key: each_tensor(value, change, device) for key, value in thing.items()}
    if type(thing) in (tuple, list):
        return type(thing)([each_tensor(value, change, device) for value in thing])
    if _moves(thing) and not isinstance(thing, UserDict):
        thing = _copied(thing)  # some move themselves, in place
        thing = thing if device is None else thing.to(device)
    return rebuilt(thing, lambda value: each_tensor(value, change, device))


def _moves(thing: object) -> bool:
    """Whether it is an object that knows how to move itself."""
    return not isinstance(thing, (type, Tensor)) and callable(getattr(thing, "to", None))


def _copied(thing: object) -> Any:
    try:
        return copy.copy(thing)
    except Exception:
        return thing


def rebuilt(thing: object, change: Callable[[Any], Any]) -> Any:
    """A container of a type of its own, each part changed; UserError where it lets nobody make another."""
    old = list(_parts(thing))
    if not old:
        return thing
    new = [change(value) for _, value in old]
    kind: Callable[..., Any] = type(thing)
    try:
        if isinstance(thing, MutableMapping) or dataclasses.is_dataclass(thing):
            return _filled(copy.copy(thing), [key for key, _ in old], new)
        if isinstance(thing, Mapping):
            return kind(dict(zip((key for key, _ in old), new, strict=True)))
        if isinstance(thing, list):
            made = copy.copy(thing)
            made[:] = new
            return made
        made = thing._make(new) if hasattr(thing, "_make") else kind(new)
        if hasattr(thing, "__dict__"):
            vars(made).update(vars(thing))
        return made
    except Exception as error:
        if all(a is b for (_, a), b in zip(old, new, strict=True)):
            return thing  # all of it is where it should be
        raise UserError(
            f"a batch holds a {type(thing).__name__} that cannot be made anew ({type(error).__name__}: {error}): give "
            "it a method to(device), or make batches of tuples and dicts"
        ) from None


def _filled(made: object, keys: list[Any], values: list[Any]) -> Any:
    for key, value in zip(keys, values, strict=True):
        if isinstance(made, MutableMapping):
            made[key] = value
        else:
            object.__setattr__(made, key, value)  # of a frozen dataclass too
    return made


def _parts(thing: object) -> Iterator[tuple[Any, Any]]:
    """(key, part) of what each_tensor looks into."""
    if isinstance(thing, Mapping):
        yield from thing.items()
    elif isinstance(thing, (tuple, list)):
        yield from enumerate(thing)
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        yield from ((f.name, getattr(thing, f.name)) for f in dataclasses.fields(thing) if hasattr(thing, f.name))


def contents(thing: object) -> list[tuple[str, Any]] | None:
    """(name, part) of everything in a thing: as a nest, or the attributes of what moves by itself; else None."""
    if isinstance(thing, PackedSequence):
        return [(name, part) for name, part in thing._asdict().items()]
    if isinstance(thing, (Mapping, tuple, list)) or (dataclasses.is_dataclass(thing) and not isinstance(thing, type)):
        return [(str(key), part) for key, part in _parts(thing)]
    if _moves(thing):
        slots = [name for kind in type(thing).__mro__ for name in _slots(kind)]
        found = {name: getattr(thing, name) for name in slots if hasattr(thing, name)}
        return sorted((found | getattr(thing, "__dict__", {})).items())
    return None


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def tensors_in(thing: object, seen: tuple[int, ...] = ()) -> Iterator[Tensor]:
    """Every tensor in a batch, those of what moves by itself too."""
    if isinstance(thing, Tensor):
        yield thing
    elif id(thing) not in seen:
        for _, part in contents(thing) or ():
            yield from tensors_in(part, (*seen, id(thing)))
