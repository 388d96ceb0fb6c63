"""An option: name, type, default and help; and text, from a command line or YAML, as the type that is asked for."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

# What text means by itself: YAML's words, with 1e-4 as a number; 1:30 and dates, which YAML 1.1 makes numbers and days
# of, stay text.
MEANINGS = {
    "null": r"~|null|",
    "bool": r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
    "int": r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)",
    "float": r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
NOTHING = ("null", "~")


@dataclass(frozen=True)
class Option:
    """What may be chosen. In --help, ``metavar`` stands for its value and ``otherwise`` for a default of nothing."""

    name: str
    type: Any
    default: Any
    help: str
    metavar: str | None = None
    otherwise: str | None = None

    @property
    def choices(self) -> list[str]:
        """The words that it may be, where only some are."""
        return [word for part in _parts(self.type) for word in ("true", "false") * (part is bool) or _literals(part)]

    @property
    def is_switch(self) -> bool:
        """Whether its name alone means true."""
        return bool in _parts(self.type)

    @property
    def is_text(self) -> bool:
        """Whether it may be any text."""
        return str in _parts(self.type)

    @property
    def expected(self) -> str:
        """What a value of it is, in words."""
        if self.is_switch and len(self.choices) == 2:
            return "true or false"
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return "text" if self.is_text else "a whole number" if int in _parts(self.type) else "a number"

    def read(self, text: str) -> Any:
        """Its value from text; ValueError where that is none."""
        return as_type(text, self.type)


def as_type(value: Any, kind: Any) -> Any:
    """A value as a type annotation asks for it.

    Args:
        value: text as it was typed, lists or mappings of such from YAML, or a value already.
        kind: None, bool, int, float, str, Any, a Literal, Enum, Path, a list, tuple, set or mapping, a class or
            function by its dotted name, or a union of them; of other classes an instance that YAML makes.

    Raises:
        ValueError: it is none of that type.
    """
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        return as_type(value, parts[0])
    if origin in (Union, UnionType):
        return _of_any(value, sorted(parts, key=lambda part: part is not NoneType))
    if kind in (None, NoneType):
        if value not in (None, *NOTHING):
            raise ValueError("not nothing")
        return None
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(kind, type) and issubclass(kind, Enum) and value in kind.__members__:
        return kind[value]
    if origin in (type, Callable) and isinstance(value, str):
        return _named(value)
    meant = read_text(value) if isinstance(value, str) and kind is not str else value
    if kind in (Any, object):
        return meant
    if origin is Literal:
        return _of_choices((value, meant), parts)
    if parts and isinstance(meant, (list, tuple, set, dict)):
        return _of_items(meant, origin, parts)
    if kind is float and type(meant) is int:
        return float(meant)
    if not isinstance(kind, type) or not isinstance(meant, kind) or (type(meant) is bool and kind is not bool):
        raise ValueError(f"not of type {kind}")
    return meant


def read_text(text: str) -> Any:
    """What text means by itself: a number, true or false, nothing, a list or mapping in YAML, or else the text."""
    import yaml

    try:
        meant = yaml.load(text, Loader=_loader())
    except Exception:  # of YAML's syntax, or from what makes the values, such as a number of too many digits
        return text
    as_typed = isinstance(meant, str) or (meant is None and text not in NOTHING)  # quotes and all; a comment
    return text if as_typed else meant


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict[str, list[Any]] = {}

    for name, pattern in MEANINGS.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(f"(?:{pattern})\\Z"), None)
    return Loader


def _named(name: str) -> Any:
    """The class or function of this dotted name, torch.nn.GELU, say."""
    import pydoc

    if not callable(found := pydoc.locate(name)):
        raise ValueError(f"there is no class or function {name}")
    return found


def _of_any(value: object, kinds: Sequence[Any]) -> Any:
    for kind in kinds:
        try:
            return as_type(value, kind)
        except ValueError:
            continue
    raise ValueError(f"of none of the types {kinds}")


def _of_choices(values: Sequence[Any], choices: Sequence[Any]) -> Any:
    for choice in choices:
        if any(type(value) is type(choice) and value == choice for value in values):  # 1 == True
            return choice
    raise ValueError(f"none of {choices}")


def _of_items(values: Any, origin: Any, parts: Sequence[Any]) -> Any:
    """Lists, tuples, sets and mappings, their items typed; an abstract one as a list or dict."""
    if isinstance(values, dict):
        if issubclass(dict, origin):
            return {as_type(key, parts[0]): as_type(value, parts[1]) for key, value in values.items()}
    elif origin is tuple:
        kinds = [parts[0]] * len(values) if parts[1:] == (...,) else parts
        return tuple(as_type(value, kind) for value, kind in zip(values, kinds, strict=True))
    elif issubclass(list, origin) or issubclass(origin, (set, frozenset)):
        return (list if issubclass(list, origin) else origin)(as_type(value, parts[0]) for value in values)
    raise ValueError(f"not of type {origin}")


def _parts(kind: object) -> Sequence[Any]:
    """The types of which a union is, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _literals(kind: object) -> list[str]:
    return [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []
