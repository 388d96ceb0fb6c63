"""What --help prints: the options in their groups, or what one kind does."""

from __future__ import annotations

import difflib
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .errors import UserError
from .options import Option
from .registry import KindOption, Registry

COLUMN = 24  # where the texts begin
WIDEST = 120


def help_of_all(groups: Mapping[str, Sequence[Option]], kinds: Sequence[Registry]) -> str:
    """The options in their groups, and the kinds that there are.

    Args:
        groups: options by their group's title.
        kinds: the registries.
    """
    parts = [_section(title, ((_usage(o), _text(o)) for o in options)) for title, options in groups.items()]
    if kinds:
        names = ((registry.option, ", ".join(registry.names())) for registry in kinds)
        parts.append(_section("kinds, of which --help KIND tells more", names))
    return "\n".join(parts)


def help_of_kind(name: str, kinds: Sequence[Registry], settings: Mapping[str, Option]) -> str:
    """What a kind does, and its options; of every kind that has this name.

    Args:
        name: the kind's.
        kinds: the registries.
        settings: the program's own options by name, of which a kind may go by some.

    Raises:
        UserError: there is no such kind.
    """
    own = {option.name: KindOption(_usage(option), help=_text(option)) for option in settings.values()}
    parts = []
    for registry in kinds:
        if name in registry.names():
            text, options = registry.describe(name, own)
            rows = ((o.name, f"{o.help} {_brackets(o.type, o.default)}".strip()) for o in options)
            parts.append(_section(f"{registry.option} {name}", [("", text.replace("``", "")), *rows]))
    if not parts:
        close = difflib.get_close_matches(name, {known for registry in kinds for known in registry.names()}, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"--help {name}: there is no kind of this name{meant}; see --help")
    return "\n".join(parts)


def _section(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A title, and below it names with their texts beside them; a text without a name takes the whole width."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    lines = [f"{title}:"]
    for name, text in rows:
        indent = " " * (COLUMN if name else 2)
        first = f"  {name}".ljust(len(indent))
        if not text or len(name) + 4 > COLUMN:
            lines.append(first.rstrip())
            first = indent
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
    said = "" if default is None or default is False else "true" if default is True else str(default)
    return f"{option.help} {_brackets('', said)}".strip()


def _brackets(kind: str, default: str) -> str:
    said = [kind] * bool(kind) + [f"default: {default}"] * bool(default)
    return f"({', '.join(said)})" if said else ""
