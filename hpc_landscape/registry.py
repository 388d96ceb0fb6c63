"""Kinds by name: the built-in ones, those that installed packages bring, and a user's own. Imports no torch."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

from .errors import UserError, printable, user_traceback
from .objects import find_object, imported


class KindOption(NamedTuple):
    """What a kind can be told. default: its text, "" where it has to be said. type, help: "" where nothing is known."""

    name: str
    type: str = ""
    default: str = ""
    help: str = ""


class Registry:
    """What there is of a kind, by name; each is imported when it is asked for, and not before.

    Args:
        what: the word for one, "metric" say.
        option: the option that names one, "--metrics" say.
        built_in: name -> "module:attribute".
        group: of the entry points with which installed packages bring more; a built-in name stays what it is.
        own: how one of a user's own files is named; "": it cannot be.
        given: arguments that the program gives by itself: they are no options.
    """

    def __init__(
        self, what: str, option: str, built_in: Mapping[str, str], group: str, own: str = "", given: Iterable[str] = ()
    ):
        self.what, self.option, self.built_in, self.group = what, option, dict(built_in), group
        self.own, self.given = own, frozenset(given)

    @functools.cached_property
    def _plugins(self) -> dict[str, metadata.EntryPoint]:
        found = sorted(metadata.entry_points(group=self.group), key=lambda point: (point.name, _package(point)))
        return {point.name: point for point in reversed(found) if point.name not in self.built_in}

    def names(self) -> list[str]:
        """The built-in names, then those that packages bring, in alphabetical order; nothing is imported."""
        return [*self.built_in, *sorted(self._plugins)]

    def __contains__(self, name: str) -> bool:
        """Whether there is one of this name; what packages bring is looked for only where none is built in."""
        return name in self.built_in or name in self._plugins

    def load(self, name: str) -> Any:
        """What this name, or ``module:object`` or ``file.py:object``, means.

        Raises:
            UserError: where there is no such kind, and names those that there are; or where importing it fails.
        """
        if name in self.built_in:
            where, _, attribute = self.built_in[name].partition(":")
            return getattr(importlib.import_module(where), attribute)
        where, _, attribute = name.rpartition(":")
        if self.own and where and attribute:
            return find_object(name, self.option)
        if name not in self._plugins:
            raise self.unknown(name)
        point = self._plugins[name]
        with imported(f"{self.option} {name}, of the package {_package(point)}", point.value):
            return point.load()

    def unknown(self, name: str, more: Iterable[str] = ()) -> UserError:
        """That there is no such kind. more: other names that could be meant."""
        names = [*self.names(), *more]
        close = difflib.get_close_matches(name.partition("(")[0], names, 1)
        there = ", ".join([*names, f"or {self.own}"] if self.own else names)
        meant = f"; did you mean {close[0]}?" if close else ""
        return UserError(f"{self.option} {name}: there is no such {self.what}; there are {there}{meant}")

    def broken(self) -> dict[str, str]:
        """The names that packages bring and that cannot be imported, with the package and the reason in a line."""
        found = {}
        for name, point in sorted(self._plugins.items()):
            try:
                self.load(name)
            except UserError as error:
                found[name] = printable(f"{_package(point)}: {str(error).strip().splitlines()[-1].strip()}")
        return found

    def parse(self, spec: str) -> tuple[str, dict[str, Any]]:
        """``name(key=value, ...)`` -> name, arguments: literals alone, nothing is executed."""
        name, bracket, rest = spec.partition("(")
        if not bracket:
            return spec, {}
        wanted = f"{self.option} {spec}: expected name(key=value, ...), such as accuracy(k=5)"
        try:
            call = ast.parse(f"f({rest}", mode="eval").body
            if not isinstance(call, ast.Call) or call.args:
                raise UserError(wanted)
            return name.strip(), {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        except (SyntaxError, ValueError):
            raise UserError(wanted) from None

    def call(self, make: Callable[..., Any], spec: str, arguments: Mapping[str, Any]) -> Any:
        """What it makes of the arguments; UserError where it does not take them, or raises."""
        try:
            inspect.signature(make).bind(**arguments)
        except TypeError as error:
            raise UserError(f"{self.option} {spec}: {error}") from None
        try:
            return make(**arguments)
        except UserError as error:
            raise UserError(f"{self.option} {spec}: {error}") from None
        except Exception as error:
            raise UserError(f"{self.option} {spec}: making it raised {user_traceback(error)}") from None

    def describe(self, name: str, settings: Mapping[str, KindOption] | None = None) -> tuple[str, list[KindOption]]:
        """What help says of one.

        Args:
            name: as ``load`` takes it.
            settings: the program's own options by name: those that the kind says to use are described by them.

        Returns:
            Its text, in one paragraph, and its options: its arguments, then the settings that it uses.
        """
        found = self.load(name)
        text = inspect.getdoc(found) or ""
        used = [(settings or {}).get(option, KindOption(option)) for option in getattr(found, "options", ())]
        return getattr(found, "help", "") or " ".join(text.partition("\n\n")[0].split()), [*self._own(found), *used]

    def _own(self, found: Any) -> list[KindOption]:
        """The arguments of its signature that the program does not give by itself."""
        parameters = inspect.signature(found).parameters
        another = "|".join(map(re.escape, parameters))
        doc = re.sub(rf"\n(?!\s*\n|\s*(?:{another}): )\s*", " ", inspect.getdoc(found) or "")  # a line for each
        options = []
        for p in parameters.values():
            if p.name in self.given or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                continue
            kind = "" if p.annotation is p.empty else inspect.formatannotation(p.annotation).strip("'")
            said = re.search(rf"(?m)(?:^|\. )\s*{p.name}: (.+?)(?:\.$|\. |$)", doc)
            default = "" if p.default is p.empty else repr(p.default)
            options.append(KindOption(p.name, kind, default, said[1] if said else ""))
        return options


def _package(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "?"


def broken_lines(registries: Iterable[Registry]) -> list[str]:
    """For each kind that a package brings, and that cannot be imported, a line that says so."""
    found = [(registry.option, registry.broken()) for registry in registries]
    return [f"{option} {name} cannot be loaded ({why})" for option, broken in found for name, why in broken.items()]
