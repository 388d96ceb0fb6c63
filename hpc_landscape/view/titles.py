"""What a picture is called: of which model it is, how it was made, and what tells several files apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..store.layout import Stored
from .field import Field, setting
from .frame import kind_of, normalized

# What may tell files apart, the most telling first, and how it reads.
_APART = {
    "title": "{}",
    "checkpoint": "{}",
    "to": "{}",
    "directions": "{} directions",
    "normalization": "normalized by {}",
    "seed": "seed {}",
    "bn": "BN {}",
    "precision": "{}",
}


def model_of(stored: Stored) -> str:
    """The name of what was measured, or of its problem; empty where the file says neither."""
    name = setting(stored.attributes, "title") or setting(stored.attributes, "problem")
    return name if isinstance(name, str) else ""


def title_of(stored: Stored, fields: Sequence[Field]) -> str:
    """The metrics, and of which model: "loss of ResNet"."""
    metrics = " and ".join(field.label for field in fields)
    return f"{metrics} of {model}" if (model := model_of(stored)) else metrics


def description(stored: Stored) -> list[str]:
    """How the landscape was made, in a few words each."""
    sets = "" if stored.grid.sets is None else f"{stored.grid.sets} sets of "
    points = " x ".join(str(n) for n in stored.grid.plane.shape) + (" points" if stored.grid.size > 1 else " point")
    parts = [sets + points]
    kind = kind_of(stored)
    if isinstance(setting(stored.attributes, "directions"), str):
        parts.append(f"{kind.title} directions")
    parts += [normalized(stored)] if normalized(stored) else []
    drawn = {"seed": "seed {}"} if kind.seeded else {}
    for key, words in {**drawn, "bn": "BN {}", "precision": "{}"}.items():
        value = setting(stored.attributes, key)
        if isinstance(value, (str, int)) and value != "none":
            parts.append(words.format(value))
    return parts


def shared(stored: Sequence[Stored]) -> list[str]:
    """What the descriptions of all have in common."""
    first, *others = [description(one) for one in stored]
    return [part for part in first if all(part in other for other in others)]


def labels(paths: Sequence[str], stored: Sequence[Stored]) -> list[str]:
    """A name for each file: the settings in which they differ, as few as tell them apart; else the files' names."""
    parts: list[list[str]] = [[] for _ in paths]
    for key, words in _APART.items():
        values = [_told(setting(one.attributes, key)) for one in stored]
        if len(set(values)) > 1:
            for part, value in zip(parts, values, strict=True):
                part += [words.format(value)] if value else []
        names = [", ".join(part) for part in parts]
        if all(names) and len(set(names)) == len(names):
            return names
    return _file_names(paths)


def _told(value: object) -> str:
    """A setting as a title has it: of a path the file's name."""
    text = str(value) if isinstance(value, (str, int)) and value != "none" else ""
    return ",".join(os.path.basename(part) for part in text.split(","))


def _file_names(paths: Sequence[str]) -> list[str]:
    """The files' names without their suffix; with folders where these alone tell them apart."""
    stems = [os.path.splitext(path)[0] for path in paths]
    bare = [os.path.basename(stem) for stem in stems]
    return bare if len(set(bare)) == len(set(stems)) else stems


def gaps(fields: Sequence[Field], names: Sequence[str], figure: Any) -> list[str]:
    """What is missing in a figure's fields, in a line, or none. names: of the fields."""
    pairs = [(name, field.gaps) for name, field in zip(names, fields, strict=True) if field.gaps]
    missing = "; ".join(f"{name}: {words}" if len(fields) > 1 else words for name, words in pairs)
    anywhere = any(not np.isfinite(field.values).all() for field in fields)
    grey = "; gaps in grey" if anywhere and figure.axes[0].get_facecolor()[0] < 1 else ""
    return [missing + grey] if missing else []
