"""What --help prints: the options in their groups, or what one kind does."""

from __future__ import annotations

import difflib
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from .errors import UserError
from .options import Option

COLUMN = 24  # where the texts begin
WIDEST = 120


class Kinds(Protocol):
    """A registry, as --help reads it."""

    def names(self) -> Iterable[str]:
        """The kinds that there are."""

    def describe(self, name: str) -> tuple[str, Sequence[Option]]:
        """What a kind does, and its options."""


def help_of_all(groups: Mapping[str, Sequence[Option]], kinds: Mapping[str, Kinds]) -> str:
    """The options in their groups, and the kinds that there are.

    Args:
        groups: options by their group's title.
        kinds: registries by the option that chooses from them.
    """
    parts = [_section(title, ((_usage(o), _text(o)) for o in options)) for title, options in groups.items()]
    if kinds:
        names = ((chooses, ", ".join(registry.names())) for chooses, registry in kinds.items())
        parts.append(_section("kinds, each with a --help KIND", names))
    return "\n".join(parts)


def help_of_kind(name: str, kinds: Mapping[str, Kinds]) -> str:
    """What a kind does, and its options; of every kind that has this name.

    Raises:
        UserError: there is none.
    """
    parts = []
    for chooses, registry in kinds.items():
        if name in registry.names():
            text, options = registry.describe(name)
            parts.append(_section(f"{chooses} {name}", [("", text), *((o.name, _text(o)) for o in options)]))
    if not parts:
        close = difflib.get_close_matches(name, {known for registry in kinds.values() for known in registry.names()}, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"--help {name}: there is no kind of this name{meant}; see --help")
    return "\n".join(parts)


def _section(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A title, and below it names with their texts beside them; a text without a name takes the whole width."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    lines = [f"{title}:"]
    for name, text in rows:
        indent = " " * (COLUMN if name else 2)
        beside = len(name) + 4 <= COLUMN
        lines += [] if beside else [f"  {name}"]
        first = f"  {name}".ljust(len(indent)) if beside else indent
        lines += textwrap.wrap(text, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def _usage(option: Option) -> str:
    """How it is given: ``--seed N``."""
    if option.is_switch and option.default is False:
        value = option.metavar and f"[{option.metavar}]"
    else:
        value = option.metavar or f"{{{','.join(option.choices)}}}"
    return f"--{option.name} {value or ''}".rstrip()


def _text(option: Option) -> str:
    """What it is, and what it is where nothing is said."""
    default: Any = option.otherwise or option.default
    if default is None or default is False:
        return option.help
    return f"{option.help} (default: {'true' if default is True else default})"
