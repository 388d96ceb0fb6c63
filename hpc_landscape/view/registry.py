"""Kinds of picture by name."""

from __future__ import annotations

from ..errors import UserError
from ..kinds import VIEWS
from .base import NO, Picture


def picture_of(shape: tuple[int, ...], kind: str | None, path: str) -> Picture:
    """The kind of picture that is asked for of a grid of this shape, or that suits it best; UserError where none does.

    path: the file's, for the message.
    """
    if kind is None:
        return max((_made(name) for name in VIEWS.built_in), key=lambda picture: picture.suits(shape))
    picture = _made(kind)
    if picture.suits(shape) == NO:
        known = [other for other in map(_made, VIEWS.built_in) if other.suits(shape) != NO]
        known.sort(key=lambda other: -other.suits(shape))
        raise UserError(
            f"{path} holds {' x '.join(map(str, shape))} points, which cannot be drawn as {picture.name}; take "
            f"{' or '.join(other.name for other in known)}"
        )
    return picture


def _made(kind: str) -> Picture:
    name, arguments = VIEWS.parse(kind)
    if name not in VIEWS and ":" not in name:
        raise UserError(f"unknown kind '{kind}'; it is one of {', '.join(VIEWS.names())}")
    picture = VIEWS.call(VIEWS.load(name), kind, arguments)
    if not isinstance(picture, Picture):
        raise UserError(f"--kind {kind}: gives a {type(picture).__name__}, not a hpc_landscape.view.base.Picture")
    return picture
