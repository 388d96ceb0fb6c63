"""Kinds of directions by name. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from ..kinds import DIRECTIONS
from ..words import split
from .base import DirectionKind, Directions, Origin, Unknown


def direction_kind(spec: str) -> DirectionKind:
    """The kind that a name, or ``name(key=value)``, asks for; UserError where there is none."""
    name, arguments = DIRECTIONS.parse(spec)
    kind = DIRECTIONS.call(DIRECTIONS.load(name), spec, arguments)
    if not isinstance(kind, DirectionKind):
        raise UserError(
            f"--directions {spec}: gives a {type(kind).__name__}, not a hpc_landscape.directions.base.DirectionKind"
        )
    return kind


def check_directions(settings: Any, axes: Mapping[str, str]) -> None:
    """UserError where the kind is none, or other settings do not go together with it."""
    kind = direction_kind(settings.directions)
    for option, what in kind.needs.items():
        if not split(getattr(settings, option)):
            raise UserError(f"--directions {kind.name} needs --{option}: {what}")
    for name in DIRECTIONS.built_in:
        for option in DIRECTIONS.load(name).only:
            given = getattr(settings, option)
            if given is not None and option not in (*kind.options, *kind.needs):
                raise UserError(f"--{option} {given}: goes with --directions {name}")
    kind.check(settings, axes)


def can_be_drawn_again(settings: Any) -> bool:
    """Whether each part of such directions can be drawn from the seed whenever it is wanted."""
    return direction_kind(settings.directions).drawn_again and not settings.orthogonalize


def make_directions(settings: Any, origin: Origin) -> Directions:
    """Directions of the kind that the settings name, on the CPU.

    On one thread, so that the norms do not depend on how many ranks share the machine.
    """
    from ..ranks.device import one_thread

    kind = direction_kind(settings.directions)
    with one_thread():
        made = kind.make(settings, origin)
    _check_made(made, kind, settings, origin)
    in_order = [[{name: part[name] for name in origin.weights} for part in parts] for parts in _parts(made)]
    made.vectors, made.targets = in_order[0], in_order[1] if made.targets is not None else None
    return made


def _parts(made: Directions) -> list[list[dict[str, Any]]]:
    return [made.vectors, *([] if made.targets is None else [made.targets])]


def _check_made(made: Directions, kind: DirectionKind, settings: Any, origin: Origin) -> None:
    """UserError where a kind has made other directions than it was asked for: ranks would wait for each other."""
    wanted = {name: (w.shape, w.dtype, w.device.type) for name, w in origin.weights.items()}
    for parts in _parts(made):
        found = [{name: (d.shape, d.dtype, d.device.type) for name, d in part.items()} for part in parts]
        if found != [wanted] * origin.count:
            raise UserError(
                f"--directions {settings.directions}: gave {len(found)} directions, or other names, shapes, dtypes or "
                f"devices than the weights have; {origin.count} are needed, one for each axis, each like them"
            )
    if (made.targets is not None) != kind.leads_to_models:
        raise UserError(
            f"--directions {settings.directions}: targets are for kinds with leads_to_models, and for these alone"
        )


def kind_in_file(spec: object) -> DirectionKind:
    """The kind that a stored file names; without a name, random. Only what is installed is made: a file is data."""
    if not isinstance(spec, str):
        return direction_kind("random")
    name = spec.partition("(")[0]
    try:
        return direction_kind(spec) if name in DIRECTIONS else Unknown(name)
    except UserError:
        return Unknown(name)
